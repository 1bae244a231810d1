"""A loaded base model: its parts, where they are, what it is, its text, its noise."""

from ..core.surroundings import shield_diffusers

shield_diffusers()  # its models import what is installed, also what is broken
