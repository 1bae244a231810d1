"""The published methods as data: their stages, their losses, their table."""
