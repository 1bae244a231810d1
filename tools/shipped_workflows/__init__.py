"""The shipped workflows as nodes with their values and links; build_workflows.py makes the files of them."""

from __future__ import annotations

from .blueprints import BLUEPRINTS
from .first import FIRST
from .methods import METHODS
from .mixing import MIXING
from .parts import Node
from .real_models import NEEDS, REAL_MODELS
from .sampling import SAMPLING

__all__ = ["BLUEPRINTS", "NEEDS", "WORKFLOWS", "Node"]

WORKFLOWS: dict[str, list[Node]] = dict(sorted({**FIRST, **METHODS, **MIXING, **SAMPLING, **REAL_MODELS}.items()))
"""Every workflow by the name of its file, in the order of the template browser."""
