"""The training loop, and `train` around it: stages in order, checkpoints, reports.

    train           the whole method: absorber stages, unless an absorber is given, and the motion stage
    train_absorber  the absorber stages alone
    fit             the loop of one stage

Mixed precision without autocast: the frozen network runs in the base's dtype as it does when sampling, the trained
parameters and the loss are fp32, and each adapter casts its factors where it uses them. Autocast would cast every
frozen weight again in each pass. In fp16 a GradScaler covers all that trains.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..base.pipeline import VideoPipeline
from ..base.placement import Arriving
from ..core.absorber import Absorber
from ..core.errors import SettingsError, TrainingError, is_out_of_memory
from ..core.lora import LoRA
from ..core.out_of_memory import TrainingMemoryError
from ..methods.stages import Stage
from ..methods.table import ABSORBERS
from .checkpoint import Keeper, OptimiserState, Progress, results_of
from .checks import check_run, run_fingerprint
from .legal import check_settings
from .parallel import Processes, processes
from .recipe import Recipe, make_recipe, setting_name
from .repeatable import repeatable_kernels
from .reports import (
    COMMANDS,
    Callback,
    Command,
    Ending,
    StepReport,
    TrainingAbortedError,
    TrainingPausedError,
    TrainResult,
)
from .results import absorber_from, kept_lora, spatial_loras
from .settings import TrainSettings
from .stage import StageRun
from .stops import View, Visitor, undisturbed

if TYPE_CHECKING:
    from ..core.clip import Clip

# Steps between two readings of the loss when nobody listens: each reading waits for the device.
_READ_EVERY = 20
# So many reports a device of its own may be behind, before somebody waits for it.
_MOST_UNREAD = 4
_BETAS = (0.9, 0.999)


def train(
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    *,
    absorber: Absorber | None = None,
    callback: Callback | None = None,
    visitor: Visitor | None = None,
    checkpoint: str | Path | None = None,
) -> TrainResult:
    """Learn the motion of `clips` with the method of `settings`; `pipeline` stays as it is, bit for bit.

    `absorber` is used, frozen, in place of the absorber stages. `checkpoint` is a folder: a run of the same clips,
    settings, base and absorber goes on from what is in it and ends with the same bits as one without a break.
    Without a folder, what is paused cannot be resumed. `callback` hears of every `report_every`th step and answers
    what to do; `visitor` sees the LoRA as it is after those of these steps that it asks for, and at the end (see
    stops.py). May be called in inference mode.

    Raises SettingsError, ClipError, LoRAFileError before work starts; TrainingError when the loss is not finite or
    memory runs out (the checkpoint stays); TrainingAbortedError when the callback asked for it (nothing stays).
    """
    check_settings(settings)
    recipe = make_recipe(clips, settings, absorber)
    with _session(pipeline, settings):
        run = _Run(pipeline, recipe, callback, checkpoint, visitor)
        ending = run.through_all_stages()
        result = run.result(ending)
        if visitor is not None and ending == "completed" and result.losses:
            with undisturbed(pipeline.device):
                visitor.visit(View(_copied(result.lora), result.losses[-1].total))
        return result


def train_absorber(
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    *,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Absorber:
    """Only the absorber stages of `settings`: what holds the clips' look, to be reused with `train(absorber=...)`.

    As `train`, but for the pause: it raises TrainingPausedError, since there is no absorber to return yet. After
    "stop" the absorber is what was trained so far.
    """
    check_settings(settings)
    recipe = make_recipe(clips, settings, absorber_only=True)
    if not recipe.absorbing:
        raise SettingsError(f"absorber is 'none', so none is trained; use {_either()}.")
    with _session(pipeline, settings):
        run = _Run(pipeline, recipe, callback, checkpoint)
        if run.through_all_stages() == "paused":
            raise TrainingPausedError(f"Paused; call again with the checkpoint {checkpoint} to go on.")
        absorber = run.absorber()
        assert absorber is not None
        return absorber


def fit(
    run: StageRun, keeper: Keeper, progress: Progress, callback: Callback | None, look: Callback | None = None
) -> Ending:
    """Train one stage, from where `progress` stands to its end or until the callback says otherwise.

    `look` is asked after the callback, where that lets training go on and there is a next step.
    """
    settings = run.settings
    together = processes()
    micros = tuple(together.share(settings.gradient_accumulation))
    optimiser = torch.optim.AdamW(run.groups(), betas=_BETAS, weight_decay=settings.weight_decay, **_kernels(run))
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype is torch.float16)
    state = OptimiserState(run.parameters, optimiser, scaler)
    keeper.restore(state)
    journal = _Journal(run, keeper, progress, state, callback, look, together)

    def backward(loss: Tensor) -> None:
        scaler.scale(loss / settings.gradient_accumulation).backward()

    while progress.step < run.steps:
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=run.device)
        for micro in micros:
            draw = run.draw(progress.step * settings.gradient_accumulation + micro)
            for a_pass in run.passes(draw):
                total += run.step(a_pass, draw, run.savings.images, backward) / settings.gradient_accumulation

        total = together.summed(total)
        together.sum_gradients(run.parameters.values())
        scaler.unscale_(optimiser)
        run.limit_gradients()
        norm = nn.utils.clip_grad_norm_(run.parameters.values(), settings.max_grad_norm)
        if not scaler.is_enabled():
            # A gradient that is not finite spoils the parameters; in fp16 the scaler skips such a step.
            total = torch.where(norm.isfinite(), total, torch.nan)
        factor = learning_rate_factor(settings, progress.step, run.steps)
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * factor
        scaler.step(optimiser)
        scaler.update()
        run.constrain()
        progress.step += 1

        command = journal.step_done(total, optimiser.param_groups[0]["lr"], time.perf_counter() - began)
        if command != "continue":
            return journal.end_early(command)
    return "completed"


def learning_rate_factor(settings: TrainSettings, step: int, steps: int) -> float:
    """What the learning rate is multiplied by in `step`, from 0: linear warm-up, then constant or half a cosine."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_scheduler == "constant":
        return 1.0
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


class _Run:
    """One call of `train` or `train_absorber`: its stages, and what they have made so far."""

    def __init__(
        self,
        pipeline: VideoPipeline,
        recipe: Recipe,
        callback: Callback | None,
        checkpoint: str | Path | None,
        visitor: Visitor | None = None,
    ) -> None:
        check_run(pipeline, recipe)
        self._pipeline, self._recipe, self._callback = pipeline, recipe.with_new_tokens(pipeline), callback
        self._visitor, settings = visitor, recipe.settings
        self._mark = run_fingerprint(pipeline, recipe.clips, settings, recipe.given)
        names = [stage.name for stage in recipe.stages]
        folder = Path(checkpoint) if checkpoint is not None else None
        writes = processes().is_first
        self._keeper = Keeper(folder, self._mark, settings.with_effect(), names, pipeline.dtype, writes=writes)
        self._progress = self._keeper.open()

    def through_all_stages(self) -> Ending:
        """Run what is not done yet; the results are in the progress."""
        for stage in self._recipe.stages:
            if stage.name in self._progress.results:
                continue
            if self._progress.stage != stage.name:
                self._progress.stage, self._progress.step = stage.name, 0
            ending = self._through(stage)
            if ending != "completed":
                return ending
        return "completed"

    def _through(self, stage: Stage) -> Ending:
        # The parts of a dual absorber are trained apart, each on the bare network.
        held = None if stage in self._recipe.absorbing else self.absorber()
        run = StageRun(self._pipeline, stage, self._recipe, held, self._keeper.remember)
        waiting = self._pipeline.offload_encoders() if run.savings.encoders else nullcontext()
        with run.prepared(), waiting, closing(self._keeper):
            ending = fit(run, self._keeper, self._progress, self._callback, self._look_of(run))
        if ending == "stopped" and stage is self._recipe.stages[-1] and self._progress.step == run.steps:
            # Stopped when there was nothing left to do.
            ending = "completed"
        if ending == "completed" or self._progress.step > 0:
            self._progress.results[stage.name] = results_of(run.parameters)
        if ending == "completed":
            self._keeper.save(self._progress, None)
        return ending

    def _look_of(self, run: StageRun) -> Callback | None:
        """What shows a stage of the method to the visitor."""
        visitor = self._visitor
        if visitor is None or run.stage not in self._recipe.main:
            return None

        def look(report: StepReport) -> str:
            if not visitor.due(report):
                return "continue"
            with undisturbed(run.device):
                lora = self._lora({**self._progress.results, run.stage.name: results_of(run.parameters)})
                return visitor.visit(View(lora, report.step))

        return look

    def _lora(self, results: Mapping[str, Mapping[str, Tensor]]) -> LoRA:
        return kept_lora(results, self._recipe, self._pipeline, self._progress.step, self._mark)

    def absorber(self) -> Absorber | None:
        """The one that was given, or what the absorber stages have made so far."""
        return self._recipe.given or absorber_from(self._progress.results, self._pipeline, self._recipe)

    def result(self, ending: Ending) -> TrainResult:
        results = self._progress.results
        about = (self._recipe, self._pipeline, self._progress.step, self._mark)
        return TrainResult(
            lora=self._lora(results),
            absorber=self.absorber(),
            spatial=spatial_loras(results, *about),
            losses=tuple(self._progress.reports),
            ending=ending,
            settings=self._recipe.settings.with_effect(),
        )


class _Journal:
    """Reads losses when they are due, tells the callback, lets the visitor look, and saves checkpoints."""

    def __init__(
        self,
        run: StageRun,
        keeper: Keeper,
        progress: Progress,
        state: OptimiserState,
        callback: Callback | None,
        look: Callback | None,
        together: Processes,
    ) -> None:
        self._run, self._keeper, self._progress, self._state = run, keeper, progress, state
        self._callback, self._look, self._together = callback, look, together
        heard = callback is not None or look is not None
        self._every = run.settings.report_every if heard else _READ_EVERY
        self._unread: list[tuple[Arriving, int, float, float]] = []
        self._told = 0

    def step_done(self, loss: Tensor, rate: float, seconds: float) -> Command:
        """Take note of a step. Its loss is read when it is due and has arrived: nobody waits for the device.

        On a device of its own, reports so come a step or two late; the last of a stage, and those before a checkpoint
        or a look, do not.
        """
        step = self._progress.step
        self._unread.append((Arriving(loss), step, rate, seconds))
        last = step == self._run.steps
        saves = step % self._run.settings.checkpoint_every == 0 and not last
        due = last or step % self._every == 0
        if due or saves:
            self._read(wait=last or saves or self._look is not None)
        if saves:
            self._save(wait=False)
        answer = self._asked() if due and len(self._progress.reports) > self._told else "continue"
        return COMMANDS[self._together.agreed(COMMANDS.index(answer))]

    def _asked(self) -> Command:
        report = self._progress.reports[-1]
        self._told = len(self._progress.reports)
        command = _known(self._callback(report)) if self._callback is not None else "continue"
        if command == "continue" and self._look is not None and report.step < report.total:
            return _known(self._looked(self._look, report))
        return command

    def _looked(self, look: Callback, report: StepReport) -> str:
        """A visit; the training goes on from this step even if it raises."""
        made = False
        try:
            answer = look(report)
            made = True
        finally:
            if not made:
                self._save()
        return answer

    def end_early(self, command: Command) -> Ending:
        """Do what the callback asked for; raises TrainingAbortedError for "abort"."""
        if command == "abort":
            self._keeper.delete()
            raise TrainingAbortedError(
                f"Aborted in step {self._progress.step} of {self._run.stage.name}; nothing was kept."
            )
        self._read(wait=True)
        self._save()
        return "paused" if command == "pause" else "stopped"

    def _read(self, *, wait: bool) -> None:
        stage, total = self._run.stage.name, self._run.steps
        while self._unread and (wait or len(self._unread) > _MOST_UNREAD * self._every or self._unread[0][0].is_here):
            arriving, step, rate, seconds = self._unread.pop(0)
            if not math.isfinite(loss := arriving.value()):
                raise TrainingError(self._diverged(step))
            self._progress.reports.append(StepReport(stage, step, total, loss, rate, seconds))

    def _save(self, *, wait: bool = True) -> None:
        if not self._state.is_finite():
            raise TrainingError(self._diverged(self._progress.step))
        self._keeper.save(self._progress, self._state, wait=wait)

    def _diverged(self, step: int) -> str:
        kept = ""
        if self._keeper.exists:
            kept = (
                f" The last good checkpoint is in {self._keeper.folder}; it goes with the settings as they are, so "
                "delete it or take another folder for others."
            )
        precision = " or train in bf16 or fp32" if self._run.dtype is torch.float16 else ""
        names = dict.fromkeys(setting_name(part, "learning_rate") for part in self._run.stage.parts)
        rates = " or ".join(f"{name} (here {getattr(self._run.settings, name):g})" for name in names)
        return f"The loss of step {step} in {self._run.stage.name} is not finite; lower {rates}{precision}.{kept}"


def _copied(lora: LoRA) -> LoRA:
    """The same in tensors of its own."""
    layers = {name: dataclasses.replace(x, down=x.down.clone(), up=x.up.clone()) for name, x in lora.layers.items()}
    return dataclasses.replace(lora, layers=layers)


def _known(answer: str) -> Command:
    for command in COMMANDS:
        if answer == command:
            return command
    raise SettingsError(f"The callback answered {answer!r}; it must be one of: {', '.join(COMMANDS)}.")


@contextmanager
def _session(pipeline: VideoPipeline, settings: TrainSettings) -> Iterator[None]:
    """Gradients on whatever mode the host is in, repeatable kernels, and memory errors that say what to do."""
    _require_scaler(pipeline)
    repeatable = settings.deterministic and pipeline.device.type != "cpu"
    with torch.inference_mode(False), torch.enable_grad(), repeatable_kernels() if repeatable else nullcontext():
        try:
            with pipeline.at_work():
                yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Whoever keeps the error, as a notebook does, must not keep the activations of its frames.
            traceback.clear_frames(error.__traceback__)
            raise TrainingMemoryError(
                f"{pipeline.device} ran out of memory; {memory_advice(pipeline, settings)}."
            ) from None


def _require_scaler(pipeline: VideoPipeline) -> None:
    """fp16 needs its losses scaled. Raises SettingsError where this torch cannot do that: on Macs before 2.8."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if pipeline.dtype is torch.float16 and pipeline.device.type == "mps" and version < (2, 8):
        raise SettingsError(
            f"dtype is fp16, in which torch {torch.__version__} cannot train on mps; load the base in bf16 or fp32, or "
            "update torch to 2.8."
        )


def memory_advice(pipeline: VideoPipeline, settings: TrainSettings) -> str:
    """What to lower, as the end of a sentence."""
    ways = [] if settings.gradient_checkpointing else ["switch gradient_checkpointing on"]
    ways += ["use fewer frames", "use a smaller height and width", "lower frames_per_step"]
    ways += ["load the base in bf16"] if pipeline.dtype is torch.float32 else []
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


def _either() -> str:
    kinds = [repr(name) for name, kind in ABSORBERS.items() if kind.stages]
    return f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _kernels(run: StageRun) -> dict[str, bool]:
    """One call for all parameters: an adapter has hundreds of small ones, and CPUs do not do so by themselves.

    On an accelerator with streams one kernel, which also skips a step that overflowed in fp16 by itself.
    """
    if run.device.type == "cpu":
        return {"foreach": True}
    return {} if run.device.type in ("mps", "meta") else {"fused": True}
