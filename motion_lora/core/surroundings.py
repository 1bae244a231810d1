"""Packages that are installed and broken: they must cost only what needs them.

Other libraries import them because they are there, whether they are wanted or not; an old or half-removed one then ends
everything with an error that has nothing to do with the work.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys

logger = logging.getLogger(__name__)

# What importing a package that was built for another torch, CUDA or numpy has been seen to raise.
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError, SystemError, NameError)
# Package -> the module whose import fails, and diffusers' note of whether the package is there.
_OF_DIFFUSERS = {
    "xformers": ("xformers.ops", "_xformers_available"),
    "flash_attn": ("flash_attn", "_flash_attn_available"),
    "sageattention": ("sageattention", "_sageattention_available"),
    "bitsandbytes": ("bitsandbytes", "_bitsandbytes_available"),
    "gguf": ("gguf", "_gguf_available"),
    "torch_npu": ("torch_npu", "_torch_npu_available"),
    "flashinfer": ("flashinfer", "_flashinfer_available"),
    "optimum": ("optimum.quanto", "_optimum_quanto_available"),
}


@functools.lru_cache(maxsize=1)
def shield_diffusers() -> tuple[str, ...]:
    """Let diffusers do without packages that do not load, with a warning; to be called before its models are imported.

    Returns their names. Only diffusers' note of them is changed; nothing is asked of packages that are not installed.
    """
    found = tuple(package for package, (module, _) in _OF_DIFFUSERS.items() if is_broken(package, module))
    if found:
        notes = importlib.import_module("diffusers.utils.import_utils")
        for package in found:
            if hasattr(notes, _OF_DIFFUSERS[package][1]):
                setattr(notes, _OF_DIFFUSERS[package][1], False)
    for package in found:
        # Others that ask, as PEFT does when it is imported, are told that it is not there. Its import fails either way.
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    return found


def is_broken(package: str, module: str = "") -> bool:
    """Whether a package is installed and cannot be imported; says so in the log, with the way out."""
    try:
        if importlib.util.find_spec(package) is None:
            return False
        importlib.import_module(module or package)
    except BROKEN as error:
        warn(package, str(error))
        return True
    return False


def way_out_of(error: ImportError) -> str:
    """One line for a package that was needed and cannot be imported."""
    package = (error.name or "").split(".")[0]
    reason = " ".join(str(error).split())[:200]
    if not package:
        return f"a package cannot be imported ({reason}): install the requirements again"
    return f"{package} cannot be imported ({reason}): install it again, pip install --force-reinstall {package}"


def warn(package: str, reason: str) -> None:
    """One line for a package that is left unused."""
    logger.warning(
        "%s is installed and does not work (%s); it is left unused. Update it for this torch, or remove it: "
        "pip uninstall %s",
        package,
        " ".join(reason.split())[:200],
        package,
    )
