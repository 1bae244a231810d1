"""Run by the Python of a ComfyUI, in its checkout: the bridge's videos against the library's; prints JSON.

`test_bridge.py` starts it. Everything of ComfyUI is the real thing: its samplers, its guidance, its model management.
"""

# ruff: noqa: E402 - ComfyUI's path and options come before its modules

from __future__ import annotations

import importlib
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [str(Path.cwd()), str(ROOT / "tests")]

import comfy.options

comfy.options.enable_args_parsing()

import comfy.sample
import comfy.samplers
import torch
import utils.extra_config  # noqa: F401 - as ComfyUI's main does: later its own path hides the package
from comfy_extras.nodes_custom_sampler import SamplerCustom

import nodes as core

pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack
bridge = importlib.import_module("pack.nodes.bridge")

from lora_samples import motion_sample
from tiny import tiny_pipeline

from motion_lora.core.curves import FrameCurve, Schedule
from motion_lora.core.highway import Highway
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings

PROMPT, NEGATIVE, SEED, STEPS = "a red circle", "a blue square", 7, 6
SAMPLERS = {"euler": "euler", "dpmpp-2m-karras": "dpmpp_2m"}


def stacks(base: Any) -> dict[str, AdapterStack]:
    lora = motion_sample(base.unet, seed=3)
    moving = StackEntry(lora, 0.7, steps=Schedule(end=0.6), frames=FrameCurve(curve=((0.0, 1.0), (1.0, 0.2))))
    everything = AdapterStack((StackEntry(lora, 0.5), moving)).with_highway(Highway("all", 1.1))
    return {"plain": AdapterStack(), "stack": everything}


def bridged(base: Any, stack: AdapterStack, scheduler: str, cfg: float, batch: int) -> torch.Tensor:
    """Frames (b, f, h, w, 3) by ComfyUI's own nodes."""
    model, clip, vae, latents = bridge.ForKSampler.execute(base, 0, 0, 0, batch, stack).args
    (sigmas,) = bridge.BaseSigmas.execute(base, scheduler, STEPS).args
    positive, negative = (core.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, NEGATIVE))
    sampler = comfy.samplers.sampler_object(SAMPLERS[scheduler])
    made = SamplerCustom.execute(model, True, SEED, cfg, positive, negative, sampler, sigmas, latents).args[0]
    (images,) = core.VAEDecode().decode(vae, made)
    return images.reshape(batch, -1, *images.shape[1:])


def expected(base: Any, stack: AdapterStack, scheduler: str, cfg: float, batch: int) -> torch.Tensor:
    """The same by Sample Video's code; a batch from the noise that ComfyUI draws for it."""
    wanted = SampleSettings(
        PROMPT, NEGATIVE, num_inference_steps=STEPS, guidance_scale=cfg, scheduler=scheduler, seed=SEED
    )
    sides = (base.default_height // base.vae_factor, base.default_width // base.vae_factor)
    empty = torch.zeros(batch, 4, base.default_num_frames, *sides)
    noise = None if batch == 1 else comfy.sample.prepare_noise(empty, SEED)
    videos = [replace(wanted, seed=SEED + i) for i in range(batch)]
    return torch.stack([one.frames for one in sample(base, videos, stack=stack, latents=noise)])


# Every prediction, spacing, sampler, guidance, batch and stack, though not each with each.
BASES = (("epsilon", "linspace"), ("epsilon", "leading"), ("v_prediction", "trailing"))
CASES = (("plain", 1.0, 1), ("stack", 3.0, 2))


def other_backbone() -> dict[str, float]:
    """A network that wants the text of each frame."""
    base = tiny_pipeline(levels=2, backbone="animatediff")
    with torch.inference_mode():
        got = bridged(base, AdapterStack(), "euler", 2.0, 2)
    want = expected(base, AdapterStack(), "euler", 2.0, 2)
    return {"error": float((got - want).abs().max()), "spread": float((want - want.mean()).abs().mean())}


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for prediction, spacing in BASES:
        base = tiny_pipeline(prediction_type=prediction)
        base = replace(base, scheduler_config={**base.scheduler_config, "timestep_spacing": spacing})
        before, made = [parameter.clone() for parameter in base.unet.parameters()], stacks(base)
        for stack, cfg, batch in CASES:
            for scheduler in SAMPLERS:
                with torch.inference_mode():
                    got = bridged(base, made[stack], scheduler, cfg, batch)
                want = expected(base, made[stack], scheduler, cfg, batch)
                spread = float((want - want.mean()).abs().mean())
                key = f"{prediction} {spacing} {stack} {scheduler} cfg {cfg:g} batch {batch}"
                found[key] = {"error": float((got - want).abs().max()), "spread": spread}
                sys.stderr.write(f"{key}: {found[key]}\n")
        same = all(torch.equal(a, b) for a, b in zip(before, base.unet.parameters(), strict=True))
        found[f"{prediction} {spacing} base unchanged"] = {"error": 0.0 if same else 1.0, "spread": 1.0}
    found["animatediff"] = other_backbone()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
