"""What a node will do, told before Run: by the widgets as they stand in the browser, for the web extension."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...motion_lora.core.errors import MotionLoRAError
from . import folders, jobs, models, server

if TYPE_CHECKING:
    from ...motion_lora.base.pipeline import VideoPipeline
    from ...motion_lora.core.clip import Clip
    from ...motion_lora.jobs.inputs import TrainingInputs
    from ...motion_lora.training import Estimate, TrainSettings

TRAINING, ABSORBER, SAMPLING = "training", "absorber", "sampling"
KINDS = (TRAINING, ABSORBER, SAMPLING)
_NOT_LOADED = "sizes, memory and minutes are known once the base is loaded"
# Kept in memory once it was asked for: a few megabytes, and asked for at each change of a widget.
_playground: list[VideoPipeline] = []
# A page that gave up waiting finds the answer when it asks again; it holds until there may be a better one.
_answers: dict[str, tuple[float, dict[str, Any]]] = {}
_one_at_a_time = threading.Lock()
_HOLDS_FOR, _MOST_ANSWERS = 60.0, 64
# Any clip of these sizes takes as long; the playground's words are known to every tokenizer.
_WORDS = ("a red circle circling around over sand", "a red circle over sand", "red circle")
_MOST_CLIPS, _MOST_PIXELS = 64, 2**28


def require_memory(inputs: TrainingInputs, settings: TrainSettings, *, absorber_only: bool) -> None:
    """Raise TrainingMemoryError for a training that cannot fit, with what to lower."""
    from ...motion_lora.training import require_memory as require
    from ...motion_lora.training.preflight import estimate

    with inputs.pipeline.at_work():
        found = estimate(
            inputs.pipeline,
            inputs.clips,
            settings,
            absorber=inputs.absorber,
            absorber_only=absorber_only,
            clock=False,
        )
    require(found, inputs.pipeline, settings)


def plan(asked: Mapping[str, Any]) -> dict[str, Any]:
    """{"sentence", "details", "advice", "later"} of a node with these widgets; what is wrong with them is advice.

    `later` says that there may soon be more to tell: minutes, when nothing else runs.

    `asked` has the "kind", the loader's "model" and "dtype", the node's "widgets", and of a training its "clips" as
    [frames, height, width], whether an absorber is "given", and the "options" of Advanced Training Settings.
    """
    mark = json.dumps(asked, sort_keys=True)
    with _one_at_a_time:
        made, answer = _answers.get(mark, (0.0, {}))
        if time.monotonic() - made > _HOLDS_FOR or not answer:
            try:
                answer = _made(asked)
            except MotionLoRAError as error:
                answer = _answer("", "", str(error))
            if not answer["later"]:
                _answers[mark] = (time.monotonic(), answer)
            while len(_answers) > _MOST_ANSWERS:
                del _answers[next(iter(_answers))]
    return answer


def _made(asked: Mapping[str, Any]) -> dict[str, Any]:
    base = _base(str(asked.get("model", "")), str(asked.get("dtype", "auto")))
    if asked["kind"] == SAMPLING:
        return _answer(*_sampling(base, asked["widgets"]))
    # One that waits in main memory is not called back for a line of text.
    if base is None or (base.is_away and base not in _playground):
        return _answer(f"{asked['widgets'].get('method', 'auto')} on {asked.get('model')}", _NOT_LOADED)
    return _training(base, asked)


def _training(base: VideoPipeline, asked: Mapping[str, Any]) -> dict[str, Any]:
    from ...motion_lora.core.out_of_memory import TrainingMemoryError
    from ...motion_lora.training import require_memory as require
    from ..widgets.settings import Options, settings_from

    known = {"seed": 0, "gradient_checkpointing": False, **asked["widgets"]}
    settings = settings_from(base, {**known, "options": Options.of(asked.get("options") or {})})
    found = _estimate(base, _clips(base, asked.get("clips") or []), settings, asked)
    try:
        require(found, base, settings)
    except TrainingMemoryError as error:
        return _answer(found.sentence(), found.details(), str(error))
    return _answer(found.sentence(), found.details(), later=found.seconds is None and base in _playground)


def _estimate(
    base: VideoPipeline, clips: Sequence[Clip], settings: TrainSettings, asked: Mapping[str, Any]
) -> Estimate:
    from ...motion_lora.training.preflight import Speeds, estimate

    if asked.get("given"):
        settings = replace(settings, absorber="none")
    # A step of a small base is timed while nothing else runs, which it would hold up.
    idle = not server.is_generating() and not any(job.status.active for job in jobs.runner().jobs())
    with base.at_work():
        return estimate(
            base,
            clips,
            settings,
            absorber_only=asked["kind"] == ABSORBER,
            clock=idle and base in _playground,
            speeds=Speeds(folders.speeds_file()),
        )


def _clips(base: VideoPipeline, sizes: Sequence[Sequence[int]]) -> list[Clip]:
    """Blank clips of these sizes, 0 for the base's own; one number in memory stands for all of each."""
    from ...motion_lora.core.clip import Clip

    own = (base.default_num_frames, base.default_height, base.default_width)
    found = []
    for size in sizes or [own]:
        shape = tuple(int(given) or default for given, default in zip(size, own, strict=True))
        base.check_size(*shape[1:])
        found.append(Clip(torch.zeros(1, 1, 1, 1).expand(*shape, 3), base.default_fps, *_WORDS))
    return found


def _sampling(base: VideoPipeline | None, widgets: Mapping[str, Any]) -> tuple[str, str]:
    """What Sample Video's zeros stand for."""
    if base is None:
        return "0: as the base has it", _NOT_LOADED
    frames = widgets.get("num_frames") or base.default_num_frames
    width, height = widgets.get("width") or base.default_width, widgets.get("height") or base.default_height
    fps, guidance = widgets.get("fps") or base.default_fps, widgets.get("guidance_scale") or base.default_guidance_scale
    return f"{frames} frames of {width} x {height} at {fps:g} fps, guidance {guidance:g}", ""


def _base(name: str, dtype: str) -> VideoPipeline | None:
    """The base of that name where it is in memory; the playground in any case."""
    if name != models.PLAYGROUND:
        return models.in_memory(name, dtype)
    if not _playground or str(_playground[0].device) != str(server.device()):
        _playground[:] = [models.load(name, dtype)]
    return _playground[0]


def _answer(sentence: str, details: str, advice: str = "", *, later: bool = False) -> dict[str, Any]:
    return {"sentence": sentence, "details": details, "advice": advice, "later": later}


# What is refused ----------------------------------------------------------------------------------------------------


def is_plan(body: object) -> bool:
    """Whether a request's body has the known keys and types, and nothing of a size that would take long."""
    if not isinstance(body, dict) or set(body) - {"kind", "model", "dtype", "widgets", "options", "clips", "given"}:
        return False
    texts = all(isinstance(body.get(name, ""), str) for name in ("kind", "model", "dtype"))
    plain = all(_is_plain(body.get(name) or {}) for name in ("widgets", "options"))
    known = body.get("kind") in KINDS and isinstance(body.get("widgets"), dict)
    return (
        texts and plain and known and isinstance(body.get("given", False), bool) and _are_sizes(body.get("clips", []))
    )


def _is_plain(values: object) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str | int | float) for value in values.values())


def _are_sizes(clips: object) -> bool:
    if not isinstance(clips, list) or len(clips) > _MOST_CLIPS:
        return False
    whole = all(
        isinstance(size, list) and len(size) == 3 and all(type(side) is int and side >= 0 for side in size)
        for size in clips
    )
    return whole and all(math.prod(size) <= _MOST_PIXELS for size in clips)
