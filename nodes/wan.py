"""Wan as a base: the network and the autoencoder from ComfyUI's files, the text from ComfyUI's own CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .comfy import folders, models
from .comfy.sockets import CATEGORY, Base, Clips, io
from .widgets.enums import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

    from ..motion_lora.core.clip import Clip


class LoadWanModel(io.ComfyNode):
    """A Wan text-to-video model to train on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_LoadWanModel",
            display_name="Load Wan Model (T2V)",
            category=f"{CATEGORY}/load",
            description="Wan 2.1 or 2.2 text-to-video from ComfyUI's own files, as a base model to train on. The texts "
            "come from CLIP Text Encode with Wan's text encoder, one for each caption of the clip.",
            search_aliases=["Wan 2.1", "Wan 2.2", "base model", "diffusion model"],
            inputs=[
                io.Combo.Input(
                    "network",
                    options=folders.choices(folders.listed(models.WAN_NETWORKS)),
                    tooltip="From models/diffusion_models: T2V 1.3B or 14B, or one expert of 2.2 A14B. Image-to-video, "
                    "VACE and Animate are refused.",
                ),
                io.Combo.Input(
                    "vae", options=folders.choices(folders.listed(models.WAN_VAES)), tooltip="wan_2.1_vae.safetensors."
                ),
                Clips.Input("clips", tooltip="The clip that will be learned: its captions name the texts."),
                io.Conditioning.Input("caption", tooltip="The clip's caption, encoded."),
                io.Conditioning.Input("appearance_caption", tooltip="Its appearance caption, encoded."),
                io.Conditioning.Input("empty_prompt", tooltip="An empty text, encoded."),
                io.Combo.Input(
                    "dtype", options=list(DTYPES), default="auto", tooltip="auto: bf16 where the device has it."
                ),
                io.Float.Input(
                    "flow_shift",
                    default=3.0,
                    min=0.1,
                    max=20.0,
                    step=0.5,
                    tooltip="How far timesteps are shifted towards noise: Wan has 3 for 480p, 5 for 720p.",
                ),
                io.String.Input(
                    "preview_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Another text for previews and Sample Video, the same as there, word for word.",
                ),
                io.Combo.Input(
                    "other_expert",
                    options=[models.NONE, *folders.listed(models.WAN_NETWORKS)],
                    default=models.NONE,
                    optional=True,
                    advanced=True,
                    tooltip="Of 2.2 A14B: the other one of its two files, so that previews and Sample Video go over to "
                    "it where it belongs. It waits in main memory and is not trained.",
                ),
                io.Conditioning.Input("preview", optional=True, tooltip="That text, encoded."),
            ],
            outputs=[
                Base.Output("base_model", display_name="base_model", tooltip="For Train Motion LoRA."),
            ],
        )

    @classmethod
    def execute(
        cls,
        network: str,
        vae: str,
        clips: tuple[Clip, ...],
        caption: Any,
        appearance_caption: Any,
        empty_prompt: Any,
        dtype: str,
        flow_shift: float,
        preview_prompt: str = "",
        other_expert: str = models.NONE,
        preview: Any = None,
    ) -> io.NodeOutput:
        from ..motion_lora.core.errors import SettingsError

        if preview_prompt.strip() and preview is None:
            raise SettingsError("preview_prompt has no embedding; connect its CLIP Text Encode to `preview`.")
        clip = clips[0]
        texts = {
            clip.caption: _embedding(caption),
            clip.appearance_caption: _embedding(appearance_caption),
            "": _embedding(empty_prompt),
        }
        if preview is not None:
            texts[preview_prompt] = _embedding(preview)
        return io.NodeOutput(models.load_wan(network, vae, dtype, flow_shift, texts, other_expert))


def _embedding(conditioning: Any) -> Tensor:
    """The first text of a CONDITIONING: (1, tokens, dim)."""
    embedding: Tensor = conditioning[0][0]
    return embedding
