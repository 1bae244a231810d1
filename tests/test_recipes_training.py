"""A loss is one function and one entry, a method one row, an absorber kind one row: toys are added and trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from training_samples import largest_change, quick, sample_clip, small_pipeline

from motion_lora.core.errors import SettingsError
from motion_lora.methods.losses import LOSSES, LossContext
from motion_lora.methods.stages import AbsorberKind, Method, Part, Pass, Stage
from motion_lora.methods.table import ABSORBERS, METHODS
from motion_lora.training import TrainSettings, check_settings, make_recipe, train
from motion_lora.training.settings import main_stages

TINY = {"absorber": "none", "steps": 2}


@pytest.fixture
def losses_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The toy loss, which notes the anchor that it was given."""
    anchors: list[int] = []

    def absolute(prediction: Tensor, target: Tensor, context: LossContext) -> Tensor:
        anchors.append(context.anchor)
        return (prediction - target).abs().mean()

    monkeypatch.setitem(LOSSES, "absolute", absolute)
    yield anchors


def toy_row(*passes: Pass, **row: object) -> Method:
    stage = Stage("motion", parts=(Part("motion", targets="tap-k"),), passes=passes, source="toy")
    return Method(name="toy", title="Toy", source="here", stages=(stage,), keeps=("motion",), **row)  # type: ignore[arg-type]


def test_a_loss_is_a_function_and_an_entry(losses_seen: list[int]) -> None:
    plain = train(small_pipeline(), [sample_clip()], quick(**TINY))
    other = train(small_pipeline(), [sample_clip()], quick(**TINY, loss="absolute"))
    assert len(losses_seen) == 2
    assert other.lora.fingerprint() != plain.lora.fingerprint() and largest_change(other.lora) > 0
    assert other.settings["loss"] == "absolute" and "loss" not in plain.settings
    with pytest.raises(SettingsError, match="one of: denoising, debiased, frame-difference, absolute"):
        check_settings(quick(loss="squared"))


def test_a_method_is_a_row(monkeypatch: pytest.MonkeyPatch, losses_seen: list[int]) -> None:
    """A part of any name, by a loss of its own; it takes the settings without a prefix where it has none."""
    monkeypatch.setitem(METHODS, "toy", toy_row(Pass(("motion",), loss="absolute"), defaults={"rank": 1}))
    settings = replace(TrainSettings.for_method("toy"), steps=2, learning_rate=1e-2)
    check_settings(settings)
    result = train(small_pipeline(), [sample_clip()], settings)
    assert result.finished and result.lora.ranks == (1,) and largest_change(result.lora) > 0
    assert len(losses_seen) == 2 and {name.rsplit(".", 1)[1] for name in result.lora} == {"to_k"}


def test_each_pass_has_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """B9: one debiased pass does not make the others so; a setting does."""
    monkeypatch.setitem(METHODS, "toy", toy_row(Pass(("motion",)), Pass(("motion",), loss="debiased")))

    def losses(**changes: object) -> list[str]:
        (stage,) = make_recipe([sample_clip()], quick(method="toy", **changes)).main
        return [a_pass.loss for a_pass in stage.passes]

    assert losses() == ["denoising", "debiased"]
    assert losses(debiased_loss=True) == losses(loss="debiased") == ["debiased", "debiased"]
    assert losses(debiased_loss=False) == ["denoising", "denoising"]
    resolved = quick(method="toy").resolved()
    assert resolved.debiased_loss is None and main_stages(resolved) == main_stages(quick(method="toy"))


def test_an_absorber_kind_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(
        name="absorber-self",
        batch="frames",
        steps="absorber_steps",
        parts=(Part("look", targets="spatial-self-ff", prefix="absorber_"),),
        passes=(Pass(("look",), bypass=True, caption="appearance"),),
        source="toy",
    )
    monkeypatch.setitem(ABSORBERS, "self", AbsorberKind("toy", (stage,)))
    result = train(small_pipeline(), [sample_clip()], quick(absorber="self", steps=2))
    assert result.absorber is not None and result.absorber.spatial is not None and result.absorber.tokens is None
    assert {report.stage for report in result.losses} == {"absorber-self", "motion"}
    assert all(layer.scale == 0.5 and layer.rank == 1 for layer in result.absorber.spatial.layers.values())
    assert any(torch.count_nonzero(layer.up) for layer in result.absorber.spatial.layers.values())
