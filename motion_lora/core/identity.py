"""Which base model it is, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseIdentity:
    """Which base model it is: a name for people, hashes of the UNet's architecture and of a sample of its weights."""

    name: str
    config_hash: str
    weights_hash: str
