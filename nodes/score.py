"""The node that measures a video which exists already."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..motion_lora.core.errors import ClipError
from .clips import frames_of
from .comfy import server
from .comfy.sockets import CATEGORY, Clips, io
from .widgets import metrics

if TYPE_CHECKING:
    from ..motion_lora.core.clip import Clip

_MISSING = "NaN where it cannot be had; the table says why."


class ScoreVideo(io.ComfyNode):
    """Motion fidelity, leakage, text alignment and consistency of any video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_ScoreVideo",
            display_name="Score Video",
            category=f"{CATEGORY}/sample",
            description="Measures a video, from wherever it comes: motion fidelity to a reference clip, leakage of its "
            "look, text alignment and consistency.",
            search_aliases=["metrics", "motion fidelity", "CLIP score", "LPIPS", "evaluate video"],
            inputs=[
                io.Video.Input("video", optional=True, tooltip="The video to measure. Connect this or images."),
                io.Image.Input("images", optional=True, tooltip="Its frames in order. Connect this or a video."),
                io.String.Input(
                    "prompt", multiline=True, default="", tooltip="What the video was asked for, for text alignment."
                ),
                io.Boolean.Input(
                    "playground",
                    default=False,
                    tooltip="On for videos of the built-in playground model: its probe reads every score exactly. Off: "
                    "measured as natural video.",
                ),
                Clips.Input(
                    "reference",
                    optional=True,
                    tooltip="The clip whose motion was learned, for motion fidelity and leakage; of as many frames as "
                    "the video.",
                ),
                io.Image.Input(
                    "neutral",
                    optional=True,
                    tooltip="The base model's own video of the same prompt, without a LoRA, for leakage on natural "
                    "video: what the prompt explains is no leakage.",
                ),
                *metrics.model_inputs(),
            ],
            outputs=[
                io.String.Output(
                    "table", display_name="table", tooltip="Every score, what it is, and why one is missing: markdown."
                ),
                io.Float.Output(
                    "motion_fidelity",
                    display_name="motion_fidelity",
                    tooltip=f"To the reference, -1 to 1; higher is better. {_MISSING}",
                ),
                io.Float.Output(
                    "appearance_leakage",
                    display_name="appearance_leakage",
                    tooltip=f"Of the reference's look, 0 to 1; lower is better. {_MISSING}",
                ),
                io.Float.Output(
                    "text_alignment",
                    display_name="text_alignment",
                    tooltip=f"With the prompt: CLIPScore, 0 to 100, or the probe's, 0 to 1; higher is better. "
                    f"{_MISSING}",
                ),
                io.Float.Output(
                    "consistency",
                    display_name="consistency",
                    tooltip="Of neighbouring frames. LPIPS: lower is better; CLIP and the probe: higher is better. "
                    f"{_MISSING}",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        playground: bool,
        video: Any = None,
        images: torch.Tensor | None = None,
        reference: tuple[Clip, ...] | None = None,
        neutral: torch.Tensor | None = None,
        clip_model: str = metrics.NONE,
        lpips_weights: str = metrics.NONE,
    ) -> io.NodeOutput:
        from ..motion_lora.evaluate.metrics import MetricModels
        from ..motion_lora.evaluate.playground_judge import playground_judge
        from ..motion_lora.evaluate.scores import SCORES
        from ..motion_lora.evaluate.sheet import Video, markdown_of, score_videos
        from ..motion_lora.evaluate.video_judge import video_judge

        if (video is None) == (images is None):
            raise ClipError("Score Video needs either a video or images: connect one of the two.")
        names = metrics.named(clip_model, lpips_weights)
        with server.ordinary_tensors():
            frames = _frames(images) if images is not None else frames_of(video)
            target = reference[0].frames.clone() if reference else None
            if playground:
                judge: Any = playground_judge(target, unused_models=bool(names))
            else:
                files = metrics.files_of(names)
                models = MetricModels.load(
                    files.get("clip_model"), files.get("lpips_weights"), device=str(server.device())
                )
                judge = video_judge(target, clip_scorer=models.clip_scorer, perceptual=models.perceptual)
            beside = None if neutral is None else _frames(neutral)
            sheet = score_videos(judge, [Video("video", frames, prompt.strip(), beside)])
        scores = sheet.videos[0].scores
        return io.NodeOutput(markdown_of(sheet), *(scores.get(name, math.nan) for name in SCORES))


def _frames(images: torch.Tensor) -> torch.Tensor:
    return images[..., :3].float().cpu().clone()
