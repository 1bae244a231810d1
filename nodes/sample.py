"""Nodes that make videos: sampling, decoding, comparing side by side, and a look at what an absorber holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..motion_lora.core.errors import SettingsError
from ..motion_lora.core.stack import AdapterStack
from ..motion_lora.media.sheets import grid_frames
from ..motion_lora.sampling.settings import SAMPLING
from .comfy import memory, server
from .comfy.sockets import CATEGORY, MAX_SEED, Absorber, Base, ExecutionBlocker, Noise, Stack, io
from .widgets import own, previews
from .widgets.enums import SCHEDULERS

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline
    from ..motion_lora.core.absorber import Absorber as AbsorberValue
    from ..motion_lora.sampling.ddim import InvertedClip
    from ..motion_lora.sampling.settings import SampleSettings


class SampleVideo(io.ComfyNode):
    """A video from a prompt, with a stack of LoRAs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_SampleVideo",
            display_name="Sample Video",
            category=f"{CATEGORY}/sample",
            description="Samples a video with the base model and, where one is connected, a stack of motion and "
            "appearance LoRAs. The same seed gives the same start noise with and without a stack.",
            search_aliases=["generate video", "text to video", "KSampler video"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Base.Input("base_model", tooltip="From Load T2V Model."),
                Stack.Input("stack", optional=True, tooltip="LoRAs and highway; nothing: the base model as it is."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, default="", tooltip="What to show."),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    advanced=True,
                    tooltip="What not to show.",
                ),
                *own.sizes(advanced=True),
                own.steps(30),
                own.guidance(),
                io.Combo.Input(
                    "scheduler",
                    options=list(SCHEDULERS),
                    default="ddim",
                    advanced=True,
                    tooltip=SAMPLING["scheduler"].help,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip=SAMPLING["seed"].help,
                ),
                own.fps(advanced=True),
                io.Boolean.Input(
                    "decode",
                    default=True,
                    advanced=True,
                    tooltip="Off: only latents, for Decode Video; the other outputs are left out.",
                ),
                Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="From Invert Clip: noise that remembers a clip. Frames and size at 0 are then its own.",
                ),
                io.Float.Input(
                    "noise_prior",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the connected noise, the rest is the seed's: 1 comes back to the clip, 0 forgets "
                    "it. MotionDirector advises 0.1 to 0.5 for a LoRA of one clip, 0 for one of several.",
                ),
                io.Image.Input(
                    "source",
                    optional=True,
                    tooltip="Frames of a video to edit: denoising starts from them. Frames at 0 are then their number.",
                ),
                io.Float.Input(
                    "edit_strength",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=SAMPLING["edit_strength"].help,
                ),
                io.Int.Input(
                    "context_frames",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip=SAMPLING["context_frames"].help,
                ),
                io.Int.Input(
                    "context_overlap",
                    default=4,
                    min=0,
                    max=1023,
                    optional=True,
                    advanced=True,
                    tooltip=SAMPLING["context_overlap"].help,
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=SAMPLING["loop"].help,
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames."),
                io.Video.Output("video", display_name="video", tooltip="The frames as a video, for Save Video."),
                io.Latent.Output("latents", display_name="latents", tooltip="(1, c, f, h, w), for Decode Video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        base_model: VideoPipeline,
        decode: bool,
        stack: AdapterStack | None = None,
        noise: InvertedClip | None = None,
        noise_prior: float = 0.5,
        source: torch.Tensor | None = None,
        edit_strength: float = 0.6,
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..motion_lora.sampling.loop import prior_noise, sample
        from ..motion_lora.sampling.settings import SampleSettings, resolve

        previews.remark(cls, base_model, widgets["prompt"], widgets["negative_prompt"])
        edit = {} if source is None else {"edit_strength": edit_strength}
        wanted = SampleSettings(**_own_values(widgets, _given_sizes(base_model, noise, source)), **edit)
        settings = resolve(base_model, wanted, editing=source is not None)
        with memory.at_work(base_model, _room(base_model, settings)):
            made = sample(
                base_model,
                settings,
                stack=stack,
                latents=None if noise is None else prior_noise(base_model, settings, noise, noise_prior),
                source=None if source is None else _encoded(base_model, source, settings),
                callback=server.progress(),
                decode=decode,
            )[0]
        latents = {"samples": base_model.unscaled(made.latents)}
        if not decode:
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None), latents)
        images, fps = server.to_output(made.frames), float(settings.fps or base_model.default_fps)
        return io.NodeOutput(images, previews.video(images, fps), latents, ui=previews.playing(made.frames, fps))


class DecodeVideo(io.ComfyNode):
    """Frames from the latents of Sample Video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_DecodeVideo",
            display_name="Decode Video",
            category=f"{CATEGORY}/sample",
            description="Decodes latents of Sample Video, a few frames at a time.",
            search_aliases=["VAE decode", "latents to video"],
            inputs=[
                Base.Input("base_model", tooltip="The base model that made the latents."),
                io.Latent.Input("latents", tooltip="(b, c, f, h, w) from Sample Video; the first video is decoded."),
                own.fps(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames."),
                io.Video.Output("video", display_name="video", tooltip="The frames as a video, for Save Video."),
            ],
        )

    @classmethod
    def execute(cls, base_model: VideoPipeline, latents: dict[str, Any], fps: float) -> io.NodeOutput:
        with server.ordinary_tensors():
            scaled = base_model.scaled(latents["samples"].clone())
        with memory.at_work(base_model, memory.decoding_room(base_model, *base_model.clip_shape(scaled))):
            images = server.to_output(base_model.decode_latents(scaled)[0])
        return io.NodeOutput(images, previews.video(images, fps or base_model.default_fps))


class SideBySide(io.ComfyNode):
    """Two videos in one, to be looked at together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_SideBySide",
            display_name="Videos Side by Side",
            category=f"{CATEGORY}/sample",
            description="Puts two or three videos beside each other, with labels; small ones are enlarged.",
            search_aliases=["compare videos", "stitch videos"],
            inputs=[
                io.Image.Input("left", tooltip="Frames of the first video."),
                io.Image.Input("right", tooltip="Frames of the second video."),
                io.Image.Input("reference", optional=True, tooltip="Frames that are shown first, such as the clip's."),
                io.String.Input("left_label", default="base", tooltip="Label of the first video."),
                io.String.Input("right_label", default="with motion LoRA", tooltip="Label of the second video."),
                io.Float.Input("fps", default=8.0, min=0.1, max=240.0, step=0.5, tooltip="Frames per second."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames."),
                io.Video.Output("video", display_name="video", tooltip="The frames as a video, for Save Video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        left: torch.Tensor,
        right: torch.Tensor,
        left_label: str,
        right_label: str,
        fps: float,
        reference: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        videos = {left_label: left, right_label: right}
        if reference is not None:
            videos = {"reference": reference, **videos}
        with server.ordinary_tensors():
            frames = [frames[..., :3].float().cpu().clone() for frames in videos.values()]
        grid = grid_frames([("", frames)], list(videos))
        # Most video encoders take even sides only.
        even = grid[:, : grid.shape[1] // 2 * 2, : grid.shape[2] // 2 * 2]
        images = server.to_output(even)
        return io.NodeOutput(images, previews.video(images, fps), ui=previews.playing(images, fps))


class PreviewAbsorber(io.ComfyNode):
    """What an absorber has learned, as single pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_PreviewAbsorber",
            display_name="Preview Absorber",
            category=f"{CATEGORY}/sample",
            description="Draws pictures with the absorber active and every temporal layer bypassed: they should look "
            "like frames of the clip. If they do not, train the absorber longer.",
            search_aliases=["absorber preview"],
            inputs=[
                Base.Input("base_model", tooltip="The base model of the absorber."),
                Absorber.Input("appearance_absorber", tooltip="What to look at."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The clip's appearance caption; the words that were absorbed are replaced by the learned "
                    "tokens. Empty: the caption it was trained with.",
                ),
                io.Int.Input("num_images", default=4, min=1, max=64, tooltip="How many pictures."),
                own.steps(25),
                own.guidance(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=False,
                    tooltip=SAMPLING["seed"].help,
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="The pictures.")],
        )

    @classmethod
    def execute(
        cls, base_model: VideoPipeline, appearance_absorber: AbsorberValue, prompt: str, **widgets: Any
    ) -> io.NodeOutput:
        from ..motion_lora.sampling.settings import SampleSettings

        num_images = widgets.pop("num_images")
        widgets["guidance_scale"] = widgets["guidance_scale"] or None
        settings = SampleSettings(prompt or previews.caption_of(appearance_absorber.metadata, "appearance"), **widgets)
        settings = replace(settings, num_frames=num_images)
        with memory.at_work(base_model, _room(base_model, settings)):
            images = server.to_output(_drawn(base_model, appearance_absorber, settings))
        return io.NodeOutput(images, ui=previews.in_node(images, cls))


def _drawn(base: VideoPipeline, absorber: AbsorberValue, settings: SampleSettings) -> torch.Tensor:
    """Pictures (n, h, w, 3): the frames of a video whose temporal layers are bypassed, so none sees another."""
    from ..motion_lora.adapters.weights import install_weights
    from ..motion_lora.backbones.bypass import temporal_bypass
    from ..motion_lora.base.tokens import with_tokens
    from ..motion_lora.core.phrases import missing_phrases, substitute
    from ..motion_lora.core.stack import StackEntry
    from ..motion_lora.sampling.loop import sample

    draft = base.replica()
    install_weights(draft.unet, absorber.weights)
    if absorber.tokens is not None:
        draft, _ = with_tokens(draft, absorber.tokens)
        for words in dict.fromkeys(absorber.tokens.words):
            if not missing_phrases(settings.prompt, words):
                prompt = substitute(settings.prompt, absorber.tokens.names_for(words), words)
                settings = replace(settings, prompt=prompt)
    stack = AdapterStack()
    if absorber.spatial is not None:
        stack = stack.add(StackEntry(absorber.spatial, name="absorber"))
    # Sampling takes a replica of its own, which keeps the bypass of this one.
    with temporal_bypass(draft.unet):
        return sample(draft, settings, stack=stack, callback=server.progress())[0].frames


def _room(base: VideoPipeline, settings: SampleSettings) -> float:
    """Bytes to sample one video, before what is left open in the settings is checked."""
    height, width = settings.height or base.default_height, settings.width or base.default_width
    return memory.sampling_room(base, settings.num_frames or base.default_num_frames, height, width)


def _own_values(widgets: dict[str, Any], given: dict[str, int]) -> dict[str, Any]:
    """Zero stands for what connected noise or frames have, else for the base model's own: None in the library."""
    sizes = {name: widgets[name] or given.get(name) for name in ("num_frames", "height", "width")}
    return {**widgets, **sizes, "fps": widgets["fps"] or None, "guidance_scale": widgets["guidance_scale"] or None}


def _given_sizes(base: VideoPipeline, noise: InvertedClip | None, source: torch.Tensor | None) -> dict[str, int]:
    if noise is not None:
        return dict(zip(("num_frames", "height", "width"), base.clip_shape(noise.noise), strict=True))
    return {} if source is None else {"num_frames": len(source)}


def _encoded(base: VideoPipeline, source: torch.Tensor, settings: SampleSettings) -> torch.Tensor:
    """Frames of an IMAGE as latents (1, c, f, h, w) in the size that is sampled."""
    from ..motion_lora.media.sizes import fit

    count = settings.num_frames or len(source)
    if len(source) < count:
        raise SettingsError(f"the source has {len(source)} frames and num_frames is {count}: set it to 0 or lower")
    with server.ordinary_tensors():
        frames = source[:count, ..., :3].float().cpu().clone()
        return base.encode_frames(fit(frames, settings.height, settings.width, base.size_multiple, "The source"))
