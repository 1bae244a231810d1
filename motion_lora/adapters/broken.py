"""PEFT asks packages that no plain LoRA needs; where one of them is broken, PEFT is told that it is not there."""

from __future__ import annotations

import functools
import importlib

from ..core.surroundings import BROKEN, is_broken, warn


@functools.lru_cache(maxsize=1)
def shield_peft() -> None:
    """Keep an old torchao and a broken bitsandbytes out of every injection; nothing changes where they work.

    PEFT raises for them on each injection into any network, so nobody in the process can rely on the former answer.
    """
    _without_old_torchao()
    if is_broken("bitsandbytes"):
        model = importlib.import_module("peft.tuners.lora.model")
        for name in ("is_bnb_available", "is_bnb_4bit_available"):
            setattr(model, name, _never)


def _without_old_torchao() -> None:
    try:
        dispatch = importlib.import_module("peft.tuners.lora.torchao")
    except ModuleNotFoundError:
        return  # a PEFT from before torchao
    try:
        if getattr(dispatch, "is_torchao_available", _never)():
            importlib.import_module("torchao")
    except BROKEN as error:
        warn("torchao", str(error))
        dispatch.is_torchao_available = _never  # type: ignore[attr-defined]


def _never() -> bool:
    return False
