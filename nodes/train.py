"""Nodes that learn: appearance absorbers and motion LoRAs. Their work is a job (see comfy/jobs.py)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..motion_lora.core.disk import safe_name
from ..motion_lora.jobs import APPEARANCE_ABSORBER, BEST, CLIP_MODEL, LAST, LPIPS_WEIGHTS, MOTION_LORA, Job, PreviewPlan
from ..motion_lora.methods.table import ABSORBERS, METHODS
from ..motion_lora.methods.tuning import AUTO
from ..motion_lora.training.settings import SETTINGS
from .comfy import jobs, memory, models, plans, server
from .comfy.sockets import CATEGORY, MAX_SEED, Absorber, Base, Clips, ExecutionBlocker, MotionLoRA, TrainOptions, io
from .widgets import metrics, previews
from .widgets.enums import TEMPORAL_TARGETS
from .widgets.settings import DEFAULT, Options, setting_input, settings_from

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline
    from ..motion_lora.core.absorber import Absorber as AbsorberValue
    from ..motion_lora.core.clip import Clip
    from ..motion_lora.evaluate.validation import ValidationPlan
    from ..motion_lora.jobs import JobSpec
    from ..motion_lora.jobs.inputs import TrainingInputs
    from ..motion_lora.training import TrainSettings

_ZERO = "0: the default of this method and base model."
_ABSORBING = [name for name in ABSORBERS if name != "none"]
HIDDEN = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]


class TrainMotionLoRA(io.ComfyNode):
    """The motion of clips as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_TrainMotionLoRA",
            display_name="Train Motion LoRA",
            category=f"{CATEGORY}/train",
            description="Learns the motion of reference clips. The same clips and settings are trained once: run it "
            "again and the finished file is loaded, a stopped training goes on. Progress is in the Motion LoRA panel.",
            search_aliases=["motion lora training", "Customize-A-Video", "MotionDirector", "learn motion"],
            is_output_node=True,
            not_idempotent=True,
            hidden=HIDDEN,
            inputs=[
                Base.Input("base_model", tooltip="The model that learns; the LoRA fits models of its kind."),
                Clips.Input("clips", tooltip="One or several reference clips of the same motion."),
                Absorber.Input(
                    "appearance_absorber",
                    optional=True,
                    tooltip="A trained absorber of these clips. Without one the method trains its own first.",
                ),
                io.Combo.Input(
                    "method",
                    options=[AUTO, *METHODS],
                    default=AUTO,
                    tooltip="The method; the README says when to use which. auto: the base's own, Many Looks on the "
                    "playground and Customize-A-Video on others.",
                ),
                io.Combo.Input(
                    "absorber",
                    options=[DEFAULT, *ABSORBERS],
                    default=DEFAULT,
                    advanced=True,
                    tooltip="Which absorber the method trains when none is connected. default: the method's own.",
                ),
                setting_input("steps", zero=_ZERO),
                setting_input("rank", zero=_ZERO, advanced=True),
                setting_input("alpha", zero=_ZERO, advanced=True),
                setting_input("learning_rate", 1e-5, zero=_ZERO, advanced=True),
                _seed(),
                *_running(),
                io.String.Input(
                    "preview_prompt",
                    default="",
                    multiline=True,
                    tooltip="A prompt that is sampled with the LoRA as it is while it trains; empty: no previews.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Steps between two previews. Each takes as long as sampling a short video.",
                ),
                setting_input("targets", options=TEMPORAL_TARGETS, advanced=True),
                setting_input("absorber_steps", zero=_ZERO, advanced=True),
                setting_input("token_steps", zero=_ZERO, advanced=True),
                _checkpointing(),
                _options(),
                io.String.Input(
                    "looks",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="Captions of other subjects and places, one per line, with {motion} where the words for "
                    "the motion belong: a robot {motion} in a desert. The clip is redrawn under each and the motion "
                    "learned from all. Method many-looks needs about ten; empty: the method's own.",
                ),
                *_validation(),
            ],
            outputs=[
                MotionLoRA.Output("motion_lora", display_name="motion_lora", tooltip="For a Motion LoRA Stack."),
                io.String.Output(
                    "lora_name", display_name="lora_name", tooltip="Its file, as Load Motion LoRA lists it."
                ),
                io.LossMap.Output("loss_map", display_name="loss_map", tooltip="Losses of the motion stage."),
                io.Image.Output("loss_plot", display_name="loss_plot", tooltip="The loss curves, drawn."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return jobs.cache_mark(cls.hidden.unique_id)

    @classmethod
    async def execute(
        cls,
        base_model: VideoPipeline,
        clips: tuple[Clip, ...],
        preview_prompt: str,
        preview_every: int,
        appearance_absorber: AbsorberValue | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        material = (base_model, clips, appearance_absorber)
        preview = PreviewPlan(preview_prompt, preview_every, seed=widgets["seed"])
        return await _train(cls, MOTION_LORA, material, widgets, preview, _plan(base_model, clips[0], widgets))


class TrainAppearanceAbsorber(io.ComfyNode):
    """The look of clips, to be held back while their motion is learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_TrainAppearanceAbsorber",
            display_name="Train Appearance Absorber",
            category=f"{CATEGORY}/train",
            description="Learns only what single frames of the clips look like, with every temporal layer bypassed. "
            "While the motion LoRA trains, the absorber is active and frozen, so the look need not go into the LoRA.",
            search_aliases=["absorber", "Customize-A-Video", "textual inversion"],
            is_output_node=True,
            not_idempotent=True,
            hidden=HIDDEN,
            inputs=[
                Base.Input("base_model", tooltip="The same base model that the motion LoRA is trained on."),
                Clips.Input("clips", tooltip="The clips whose look is to be absorbed."),
                io.Combo.Input(
                    "absorber",
                    options=_ABSORBING,
                    default="dual",
                    tooltip="spatial: a LoRA on the spatial layers. textual-inversion: learned tokens in place of the "
                    "clip's words to absorb. dual: both.",
                ),
                setting_input("absorber_steps", zero=_ZERO),
                setting_input("token_steps", zero=_ZERO),
                setting_input("absorber_rank", zero=_ZERO, advanced=True),
                setting_input("num_tokens", zero=_ZERO, advanced=True),
                setting_input("absorber_learning_rate", 1e-5, zero=_ZERO, advanced=True),
                setting_input("token_learning_rate", 1e-5, zero=_ZERO, advanced=True),
                setting_input("patch_crop", advanced=True),
                _seed(),
                *_running(),
                _checkpointing(),
                _options(),
            ],
            outputs=[
                Absorber.Output(
                    "appearance_absorber", display_name="appearance_absorber", tooltip="For Train Motion LoRA."
                ),
                io.String.Output(
                    "absorber_name",
                    display_name="absorber_name",
                    tooltip="Its file, as Load Appearance Absorber lists it.",
                ),
                io.LossMap.Output("loss_map", display_name="loss_map", tooltip="Losses of the last stage."),
                io.Image.Output("loss_plot", display_name="loss_plot", tooltip="The loss curves, drawn."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return jobs.cache_mark(cls.hidden.unique_id)

    @classmethod
    async def execute(cls, base_model: VideoPipeline, clips: tuple[Clip, ...], **widgets: Any) -> io.NodeOutput:
        return await _train(cls, APPEARANCE_ABSORBER, (base_model, clips, None), widgets, PreviewPlan())


async def _train(
    node: type[io.ComfyNode],
    kind: str,
    material: tuple[VideoPipeline, tuple[Clip, ...], AbsorberValue | None],
    widgets: dict[str, Any],
    preview: PreviewPlan,
    validation: ValidationPlan | None = None,
) -> io.NodeOutput:
    """Ask for the job that the widgets describe, and wait for it if they say so."""
    from ..motion_lora.evaluate.validation import check_validation
    from ..motion_lora.jobs.inputs import TrainingInputs
    from ..motion_lora.jobs.training import training_spec
    from ..motion_lora.playground.model import is_playground

    hidden, inputs, keep = node.hidden, TrainingInputs(*material), widgets.get("keep", BEST)
    measured_by = metrics.named(*(widgets.get(kind, metrics.NONE) for kind in (CLIP_MODEL, LPIPS_WEIGHTS)))
    settings = settings_from(inputs.pipeline, widgets)
    _check(kind, inputs, settings)
    previews.remark(node, inputs.pipeline, preview.prompt, *(validation.prompts if validation is not None else ()))
    if validation is not None:
        frames = inputs.clips[0].frames
        check_validation(validation, inputs.pipeline, frames, settings, keep_best=keep == BEST)
        if not is_playground(inputs.pipeline):
            metrics.check(measured_by)
    spec = training_spec(
        kind,
        # A caption is no path, though it may hold a slash.
        widgets["name"].strip() or safe_name(inputs.clips[0].caption),
        inputs,
        settings,
        base=models.recipe_of(inputs.pipeline),
        preview=preview,
        validation=validation,
        keep=keep,
        measured_by=measured_by,
        yields=widgets["pause_while_generating"],
    )
    if widgets["retrain"] or not jobs.is_made(spec.fingerprint):
        device = (widgets.get("options") or Options()).device
        spec, inputs = await asyncio.to_thread(_placed, spec, inputs, device)
        memory.make_room_for_training(inputs.pipeline)
        await asyncio.to_thread(plans.require_memory, inputs, settings, absorber_only=kind == APPEARANCE_ABSORBER)
    again = jobs.continuation_of(hidden.prompt, hidden.extra_pnginfo, hidden.unique_id)
    job = await jobs.run_job(
        spec,
        inputs,
        node_id=hidden.unique_id,
        workflow_id=str((again["workflow"] or {}).get("id", "")),
        run=widgets["run"],
        retrain=widgets["retrain"],
        continuation=again if widgets["continue_when_done"] else None,
        made_by=again if server.metadata_allowed() else None,
    )
    return _outputs(job)


def _placed(spec: JobSpec, inputs: TrainingInputs, wanted: str) -> tuple[JobSpec, TrainingInputs]:
    """The training on the device that is wanted, or on the next free one."""
    device = jobs.device_for(wanted, spec.device, spec.fingerprint)
    if device == spec.device:
        return spec, inputs
    base = models.on_device(inputs.pipeline, device)
    return replace(spec, device=device, base=models.recipe_of(base)), replace(inputs, pipeline=base)


def _check(kind: str, inputs: TrainingInputs, settings: TrainSettings) -> None:
    """Whatever does not fit is said at once, and leaves no failed job behind."""
    from ..motion_lora.training import check_run, check_settings, make_recipe

    check_settings(settings)
    recipe = make_recipe(inputs.clips, settings, inputs.absorber, absorber_only=kind == APPEARANCE_ABSORBER)
    check_run(inputs.pipeline, recipe)


def _plan(base: VideoPipeline, clip: Clip, widgets: dict[str, Any]) -> ValidationPlan | None:
    """How the checkpoints are validated; None where they are not."""
    every = widgets.get("validate_every", 0)
    if not every:
        return None
    from ..motion_lora.evaluate.validation import validation_plan

    prompts = [line.strip() for line in widgets.get("validate_prompts", "").splitlines() if line.strip()]
    return validation_plan(base, clip, every, prompts, early_stop=widgets.get("early_stop", False))


def _outputs(job: Job | None) -> io.NodeOutput:
    """What a finished job made, with its curve; what depends on a job in the background is left out without a word."""
    if job is None:
        nothing = ExecutionBlocker(None)
        return io.NodeOutput(nothing, nothing, nothing, nothing)
    from ..motion_lora.jobs.training import load_result

    points = jobs.runner().losses(job.id, limit=100_000)
    result = load_result(job.folder, job.spec.kind)
    return io.NodeOutput(result, job.status.published, previews.loss_map(points), previews.loss_plot(points))


# Inputs that both nodes have ------------------------------------------------------------------------------------------


def _seed() -> io.Int.Input:
    # Without control_after_generate=False the front end would change it after every run, and train anew each time.
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=False,
        tooltip=SETTINGS["seed"].help,
    )


def _checkpointing() -> io.Boolean.Input:
    return io.Boolean.Input(
        "gradient_checkpointing",
        default=False,
        advanced=True,
        tooltip=SETTINGS["gradient_checkpointing"].help,
    )


def _validation() -> list[Any]:
    """Which checkpoint is kept, by measurement."""
    return [
        io.Int.Input(
            "validate_every",
            default=0,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between two validations: a few small videos are sampled and scored, and the curves drawn in "
            "the panel. 0: none.",
        ),
        io.String.Input(
            "validate_prompts",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="Prompts of those videos, one per line, with the clip's motion and a look that is not the clip's. "
            "Empty, for a clip of the playground: other looks than its own.",
        ),
        io.Combo.Input(
            "keep",
            options=[BEST, LAST],
            default=BEST,
            optional=True,
            advanced=True,
            tooltip="With validations: the checkpoint of the most faithful motion among those whose leakage and text "
            "alignment stay near the base's, or the last one. Both files stay in the job's folder.",
        ),
        io.Boolean.Input(
            "early_stop",
            default=False,
            optional=True,
            advanced=True,
            tooltip="With validations: end the training when four in a row have brought nothing more.",
        ),
        *metrics.model_inputs(),
    ]


def _options() -> io.Input:
    return TrainOptions.Input(
        "options", optional=True, tooltip="From Advanced Training Settings; nothing: all of them are the method's own."
    )


def _running() -> list[Any]:
    """How the job is run."""
    return [
        io.Combo.Input(
            "run",
            options=[jobs.WAIT, jobs.BACKGROUND],
            default=jobs.WAIT,
            tooltip="wait: what depends on the result follows in the same run. background: the queue is free at once, "
            "the training goes on beside whatever else you do.",
        ),
        io.Boolean.Input(
            "continue_when_done",
            default=True,
            advanced=True,
            tooltip="After a training in the background, queue this workflow again, so that what depends on it runs.",
        ),
        io.Boolean.Input(
            "pause_while_generating",
            default=False,
            advanced=True,
            tooltip="For small GPUs: give the memory back while another workflow runs, then go on.",
        ),
        io.Boolean.Input(
            "retrain",
            default=False,
            advanced=True,
            tooltip="Train again although the same training has finished before.",
        ),
        io.String.Input("name", default="", tooltip="Name of the job and its file; empty: the clip's caption."),
    ]
