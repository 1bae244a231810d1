"""A loaded base model: its parts, where they are, what it is, its text, its noise."""
