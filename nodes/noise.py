"""The node that turns a clip back into noise, for editing and for videos that keep a clip's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..motion_lora.core.errors import ClipError
from .comfy import memory, server
from .comfy.sockets import CATEGORY, Base, Clips, Noise, io

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline
    from ..motion_lora.core.clip import Clip


class InvertClip(io.ComfyNode):
    """The noise from which the base comes back to a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_InvertClip",
            display_name="Invert Clip",
            category=f"{CATEGORY}/sample",
            description="Runs DDIM sampling backwards from a clip to the noise that the base model would make it from. "
            "Start Sample Video from that noise to edit the clip, or with a share of it to keep its layout.",
            search_aliases=["DDIM inversion", "noise prior", "inverse", "edit video", "unsample"],
            inputs=[
                Base.Input("base_model", tooltip="The base model that will sample; noise belongs to its base."),
                Clips.Input("clips", tooltip="One clip."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="Text under which it is inverted. Empty is fine for a noise prior; to edit, give the "
                    "clip's own caption.",
                ),
                io.Int.Input(
                    "num_inference_steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps. To come back to the clip exactly, sample with as many ddim steps, the same prompt "
                    "and guidance 1; more steps come closer.",
                ),
            ],
            outputs=[Noise.Output("noise", display_name="noise", tooltip="For Sample Video.")],
        )

    @classmethod
    def execute(
        cls, base_model: VideoPipeline, clips: tuple[Clip, ...], prompt: str, num_inference_steps: int
    ) -> io.NodeOutput:
        from ..motion_lora.sampling.ddim import InvertedClip, invert

        if len(clips) != 1:
            raise ClipError(f"Invert Clip takes one clip and got {len(clips)}; connect it before Combine Clips.")
        base_model.check_size(clips[0].height, clips[0].width)
        clip = clips[0]
        with memory.at_work(base_model, memory.sampling_room(base_model, clip.num_frames, clip.height, clip.width)):
            noise = invert(
                base_model,
                base_model.encode_frames(clip.frames),
                prompt=prompt,
                num_inference_steps=num_inference_steps,
                callback=server.progress(),
            )
        return io.NodeOutput(InvertedClip(noise, base_model.identity, prompt, num_inference_steps))
