"""The processes by which networks are trained, and how their timesteps are drawn: names for settings and bases."""

from __future__ import annotations

# Noise is added by alpha-bar (Ho et al. 2020), or along a straight line (Liu et al. 2022).
DIFFUSION, FLOW = "diffusion", "flow"

UNIFORM, LOGIT_NORMAL = "uniform", "logit-normal"
SPREADS = (UNIFORM, LOGIT_NORMAL)
"""How the timesteps of flow matching are drawn, before the base's shift."""

HIGH_NOISE, LOW_NOISE, BOTH = "high", "low", "both"
EXPERTS = (HIGH_NOISE, LOW_NOISE)
"""The two networks of a base that has one for each part of the noise (Wan 2.2 A14B)."""
