"""Nodes that hand a base with its stack to ComfyUI's own samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..motion_lora.core.stack import AdapterStack
from .comfy.sockets import CATEGORY, Base, Stack, io
from .widgets import own

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline

# Those of the schedulers that are a list of sigmas.
_WITH_SIGMAS = ("euler", "dpmpp-2m-karras", "unipc", "euler-ancestral")


class ForKSampler(io.ComfyNode):
    """A base and a stack as MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_ForKSampler",
            display_name="For KSampler",
            category=f"{CATEGORY}/sample",
            description="Turns a base model with its stack into ComfyUI's MODEL, CLIP and VAE, for KSampler, custom "
            "samplers, guiders and latent tools. Strengths, schedules and the highway act in every step.",
            search_aliases=["KSampler", "native model", "bridge", "SamplerCustom"],
            inputs=[
                Base.Input("base_model", tooltip="From Load T2V Model."),
                Stack.Input("stack", optional=True, tooltip="LoRAs and highway; nothing: the base model as it is."),
                *own.sizes(),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Videos that are sampled together."),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="For KSampler or SamplerCustom."),
                io.Clip.Output("clip", display_name="clip", tooltip="For CLIP Text Encode."),
                io.Vae.Output("vae", display_name="vae", tooltip="For VAE Decode and VAE Encode."),
                io.Latent.Output("latents", display_name="latents", tooltip="Empty latents (b, c, f, h, w)."),
            ],
        )

    @classmethod
    def execute(
        cls,
        base_model: VideoPipeline,
        num_frames: int,
        width: int,
        height: int,
        batch_size: int,
        stack: AdapterStack | None = None,
    ) -> io.NodeOutput:
        height, width = height or base_model.default_height, width or base_model.default_width
        base_model.check_size(height, width)
        from .comfy import native

        stack, factor = stack or AdapterStack(), base_model.vae_factor
        channels, frames = int(base_model.unet.config["in_channels"]), num_frames or base_model.default_num_frames
        empty = torch.zeros(batch_size, channels, frames, height // factor, width // factor)
        return io.NodeOutput(
            native.model_of(base_model, stack),
            native.Clip(base_model, stack),
            native.Vae(base_model),
            {"samples": empty},
        )


class BaseSigmas(io.ComfyNode):
    """The steps of Sample Video as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_BaseSigmas",
            display_name="Base Sigmas",
            category=f"{CATEGORY}/sample",
            description="The noise levels that Sample Video goes through, for SamplerCustom: with the same seed, "
            "guidance and sampler it then makes the same video. KSampler's own schedulers take others.",
            search_aliases=["scheduler", "sigmas", "SamplerCustom"],
            inputs=[
                Base.Input("base_model", tooltip="From Load T2V Model."),
                io.Combo.Input(
                    "scheduler",
                    options=list(_WITH_SIGMAS),
                    default="euler",
                    tooltip="As in Sample Video. Take the sampler of that name: euler, dpmpp_2m, uni_pc_bh2 or "
                    "euler_ancestral.",
                ),
                io.Int.Input(
                    "num_inference_steps",
                    default=30,
                    min=1,
                    max=1000,
                    tooltip="Denoising steps: more is slower and finer.",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="For SamplerCustom.")],
        )

    @classmethod
    def execute(cls, base_model: VideoPipeline, scheduler: str, num_inference_steps: int) -> io.NodeOutput:
        from .comfy import native

        return io.NodeOutput(native.sigmas_of(base_model, scheduler, num_inference_steps))
