"""Values that travel, and what works on values alone: no network, no file format, no picture."""
