"""What nodes share: their widgets, and what they show."""
