"""What ComfyUI lends: device, memory, progress bars, interrupts, and whether it is busy. Imported when a node runs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.cli_args import args
from server import PromptServer

_LOOK_EVERY = 0.1
Interrupted = mm.InterruptProcessingException


def device() -> torch.device:
    """The device that ComfyUI computes on."""
    return mm.get_torch_device()


def devices() -> tuple[str, ...]:
    """The devices that a training can have: every card of the kind that ComfyUI computes on, or that one device."""
    own = device()
    count = 1 if own.type in ("cpu", "mps") else torch.get_device_module(own).device_count()
    return (str(own),) if count < 2 else tuple(f"{own.type}:{number}" for number in range(count))


def to_output(images: torch.Tensor) -> torch.Tensor:
    """Frames as every IMAGE socket carries them."""
    return images.to(mm.intermediate_device(), torch.float32)


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Out of ComfyUI's inference mode, whose tensors can never take part in training; no gradients."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def make_room(bytes_needed: int) -> None:
    """Ask ComfyUI to unload enough of its own models. Only from the thread that runs prompts, where none is in use."""
    if device().type != "cpu":
        mm.free_memory(bytes_needed, device())


def make_room_between_prompts(patience: float = 20.0) -> None:
    """The same for a job that no prompt started: ComfyUI unloads its models when it is between two prompts.

    Returns when it has, or when a prompt came first or `patience` seconds are over.
    """
    if device().type == "cpu":
        return
    queue, until = PromptServer.instance.prompt_queue, time.monotonic() + patience
    queue.set_flag("unload_models", True)
    while time.monotonic() < until and not is_generating():
        # ComfyUI takes the flag first and unloads then.
        if not queue.get_flags(reset=False).get("unload_models") and not mm.loaded_models():
            return
        time.sleep(_LOOK_EVERY)


def release() -> None:
    """After a job: what only garbage held goes back to the device."""
    gc.collect()
    mm.soft_empty_cache()


def is_generating() -> bool:
    """Whether a prompt is being executed right now."""
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return bool(running)


def interrupt_requested() -> bool:
    """Whether the user pressed Cancel; asking does not use the request up."""
    return bool(mm.processing_interrupted())


def progress() -> Callable[[int, int], None]:
    """A callback (done, total) that moves the running node's bar and raises when the user pressed Cancel.

    The bar itself looks for Cancel only as often as it is drawn, so every call does.
    """
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


def client_id() -> str | None:
    """The browser that the running prompt came from."""
    return PromptServer.instance.client_id


def send(event: str, data: object) -> None:
    """A message to every open browser; from any thread."""
    PromptServer.instance.send_sync(event, data)


def tell_node(node_id: str | None, text: str) -> None:
    """A line of text in the node that is running, in every open browser."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


def metadata_allowed() -> bool:
    """Whether the user lets files say how they were made."""
    return not args.disable_metadata


def cors_origin() -> str:
    """The page of another origin that the user lets in by --enable-cors-header; "" for none, "*" for any."""
    return str(getattr(args, "enable_cors_header", None) or "")
