"""The node that compares: several stacks, one prompt list, a labelled grid and a table of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..motion_lora.core.errors import SettingsError
from .comfy import memory, server
from .comfy.sockets import CATEGORY, MAX_SEED, Base, Clips, Stack, io
from .widgets import metrics, own, previews

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline
    from ..motion_lora.core.clip import Clip
    from ..motion_lora.core.stack import AdapterStack

PLACES = (1, 2, 3, 4)


class CompareLoRAs(io.ComfyNode):
    """Up to four stacks side by side with the base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_CompareLoRAs",
            display_name="Compare LoRAs",
            category=f"{CATEGORY}/sample",
            description="Samples the same prompts and start noise with the base model and with up to four stacks, and "
            "puts the videos into a labelled grid with a table of scores.",
            search_aliases=["compare loras", "XY plot", "grid", "motion fidelity", "metrics", "checkpoints"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Base.Input("base_model", tooltip="From Load T2V Model."),
                io.String.Input(
                    "prompts", multiline=True, default="", tooltip="What to show, one prompt per line: the columns."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED - 64,
                    control_after_generate=True,
                    tooltip="Seed of the first prompt's start noise, the same for every stack; each further prompt "
                    "has the next.",
                ),
                own.steps(30),
                own.guidance(),
                *(
                    io.String.Input(
                        f"label_{place}",
                        default=f"LoRA {place}",
                        advanced=True,
                        tooltip=f"Label of stack {place}.",
                    )
                    for place in PLACES
                ),
                *(
                    Stack.Input(f"stack_{place}", optional=True, tooltip=f"Row {place} below the base model.")
                    for place in PLACES
                ),
                Clips.Input(
                    "reference",
                    optional=True,
                    tooltip="The clip whose motion was learned, for motion fidelity and leakage; the videos take its "
                    "size and length.",
                ),
                *metrics.model_inputs(),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid", tooltip="The frames of the labelled grid."),
                io.Video.Output("video", display_name="video", tooltip="The grid as a video, for Save Video."),
                io.String.Output("table", display_name="table", tooltip="The mean scores, as a markdown table."),
            ],
        )

    @classmethod
    def execute(
        cls,
        base_model: VideoPipeline,
        prompts: str,
        seed: int,
        num_inference_steps: int,
        guidance_scale: float,
        reference: tuple[Clip, ...] | None = None,
        clip_model: str = metrics.NONE,
        lpips_weights: str = metrics.NONE,
        **places: Any,
    ) -> io.NodeOutput:
        from ..motion_lora.evaluate.compare import Candidate, compare, grid_of, markdown_of, prompts_of
        from ..motion_lora.evaluate.judge import load_judge
        from ..motion_lora.sampling.settings import SampleSettings

        texts, clip = prompts_of(prompts), reference[0] if reference else None
        previews.remark(cls, base_model, *texts)
        settings = SampleSettings(
            texts[0],
            num_frames=clip.num_frames if clip else None,
            height=clip.height if clip else None,
            width=clip.width if clip else None,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale or None,
            seed=seed,
            fps=clip.fps if clip else None,
        )
        candidates = [Candidate(label, stack) for label, stack in _connected(places)]
        files = metrics.files_of(metrics.named(clip_model, lpips_weights))
        shape = (clip.num_frames, clip.height, clip.width) if clip else _default_shape(base_model)
        with memory.at_work(base_model, memory.sampling_room(base_model, *shape)), server.ordinary_tensors():
            frames = clip.frames.clone() if clip else None
            judge = load_judge(base_model, frames, **files)
            found = compare(
                base_model, candidates, texts, settings, judge, reference=frames, callback=server.progress()
            )
            grid = grid_of(found)
        # Most video encoders take even sides only.
        images = server.to_output(grid[:, : grid.shape[1] // 2 * 2, : grid.shape[2] // 2 * 2])
        return io.NodeOutput(
            images, previews.video(images, found.fps), markdown_of(found), ui=previews.playing(images, found.fps)
        )


def _default_shape(base: VideoPipeline) -> tuple[int, int, int]:
    return base.default_num_frames, base.default_height, base.default_width


def _connected(places: dict[str, Any]) -> list[tuple[str, AdapterStack]]:
    """Label and stack of every place that is in use; raises SettingsError for none."""
    found = [(places[f"label_{p}"], places[f"stack_{p}"]) for p in PLACES if places.get(f"stack_{p}") is not None]
    if not found:
        raise SettingsError("Compare LoRAs has no stack; connect one or more of stack_1 to stack_4.")
    return found
