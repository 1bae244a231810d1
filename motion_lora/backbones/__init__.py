"""What is particular to a family of networks: how it is recognised, where its layers are, how its time is bypassed."""

from ..core.surroundings import shield_diffusers

shield_diffusers()  # its models import what is installed, also what is broken
