"""ComfyUI-MotionLoRA: entry point for ComfyUI. Nothing heavy is imported until ComfyUI asks for the nodes."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201  (the type lives in the host, which is not imported here)
    """Hand ComfyUI the extension; a fault is logged in full, because ComfyUI itself logs one line of it."""
    try:
        from .nodes import MotionLoRAExtension
    except Exception:
        import logging

        logging.getLogger(__name__).exception("ComfyUI-MotionLoRA could not be loaded")
        raise
    return MotionLoRAExtension()
