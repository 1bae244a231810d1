"""Training settings: every fault at once, what None stands for, and what has an effect."""

from __future__ import annotations

import dataclasses
import json

import pytest
from training_samples import small_pipeline

from motion_lora.apps.cli.train import train_settings
from motion_lora.core.errors import SettingsError
from motion_lora.methods.tuning import AUTO
from motion_lora.playground.defaults import PLAYGROUND_DEFAULTS
from motion_lora.playground.model import load_playground, playground_hash
from motion_lora.training import RANGES, SETTINGS, TrainSettings, check_settings, step_plan
from motion_lora.training import settings as settings_module
from motion_lora.training.settings import SETTINGS_VERSION


def test_every_fault_is_named_at_once():
    wrong = TrainSettings(
        method="dreambooth",
        absorber="both",
        targets="spatial-attention",
        rank=0,
        alpha=float("nan"),
        num_tokens=7,
        steps=True,
        learning_rate="1e-4",
        seed=-1,
        patch_crop="yes",
    )
    with pytest.raises(SettingsError) as caught:
        check_settings(wrong)
    text = str(caught.value)
    assert "method is 'dreambooth', it must be one of: customize-a-video," in text
    assert "absorber is 'both', it must be one of: dual, spatial, textual-inversion, none" in text
    assert "targets is 'spatial-attention', it must be one of: temporal-attention," in text
    assert "rank is 0, it must be a whole number from 1 to 1024" in text
    assert "alpha is nan, it must be a number from 1e-08 to 1024" in text
    assert "num_tokens is 7, it must be a whole number from 1 to 6" in text
    assert "steps is True" in text and "learning_rate is '1e-4'" in text and "seed is -1" in text
    assert "patch_crop is 'yes', it must be true or false" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", RANGES)
def test_every_range_holds_at_both_ends(name):
    low, high = RANGES[name]
    whole = str(next(f.type for f in dataclasses.fields(TrainSettings) if f.name == name)).startswith("int")
    pair = {"timestep_low": {"timestep_high": 1.0}, "timestep_high": {"timestep_low": 0.0}}.get(name, {})
    for value in (low, high):
        check_settings(TrainSettings(**{name: int(value) if whole else float(value), **pair}))
    beyond = (low - 1, int(high) + 1) if whole else (low - 1e-3 - abs(low), high * 1.01)
    for value in beyond:
        with pytest.raises(SettingsError, match=f"{name} is"):
            check_settings(TrainSettings(**{name: value, **pair}))


def test_a_range_of_timesteps_has_to_be_one():
    with pytest.raises(SettingsError, match=r"timestep_low is 0.5, it must be below timestep_high, 0.5"):
        check_settings(TrainSettings(timestep_low=0.5, timestep_high=0.5))


def test_every_number_has_a_range():
    kinds = {field.name: str(field.type) for field in dataclasses.fields(TrainSettings)}
    numbers = {name for name, kind in kinds.items() if kind.startswith(("int", "float"))}
    assert numbers == set(RANGES)


def test_none_stands_for_the_row_or_the_plain_field():
    plain = TrainSettings(rank=8, alpha=0.5).resolved()
    assert (plain.absorber, plain.targets, plain.debiased_loss) == ("dual", "temporal-attention", False)
    assert (plain.spatial_rank, plain.spatial_alpha, plain.spatial_learning_rate) == (8, 0.5, 5e-4)
    other = TrainSettings(method="motiondirector", absorber="spatial", debiased_loss=False, targets="tap-k").resolved()
    assert (other.absorber, other.targets, other.debiased_loss) == ("spatial", "tap-k", False)
    assert TrainSettings(method="motiondirector").resolved().debiased_loss is True
    assert other.resolved() == other


def test_steps_of_the_stages():
    counts = {"steps": 7, "absorber_steps": 3, "token_steps": 2}
    assert step_plan(TrainSettings(**counts)) == {"absorber-spatial": 3, "absorber-tokens": 2, "motion": 7}
    assert step_plan(TrainSettings(**counts), absorber_given=True) == {"motion": 7}
    assert step_plan(TrainSettings(**counts, absorber="textual-inversion")) == {"absorber-tokens": 2, "motion": 7}
    assert step_plan(TrainSettings(**counts, method="motiondirector")) == {"motion": 7}
    with_absorber = TrainSettings(**counts, method="motiondirector", absorber="spatial")
    assert step_plan(with_absorber) == {"absorber-spatial": 3, "motion": 7}
    assert step_plan(TrainSettings(**counts, method="motiondirector-image")) == {"appearance": 7}


def test_only_what_has_an_effect_counts():
    plain = TrainSettings()
    same = TrainSettings(absorber="dual", gradient_checkpointing=True, compile=True, checkpoint_every=3, report_every=9)
    assert same.fingerprint() == plain.fingerprint()
    changes = {"seed": 1, "rank": 5, "absorber": "none", "targets": "tap-k", "dropout": 0.1, "highway": "all"}
    marks = {dataclasses.replace(plain, **{name: value}).fingerprint() for name, value in changes.items()}
    assert len(marks | {plain.fingerprint()}) == len(changes) + 1


def test_settings_go_through_json():
    settings = TrainSettings(method="motiondirector", seed=2**64 - 1, min_snr_gamma=5.0)
    assert TrainSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


# A version and a way up -----------------------------------------------------------------------------------------------


def test_settings_of_an_older_version_are_read(monkeypatch):
    monkeypatch.setattr(settings_module, "RENAMED", {1: {"depth": "rank"}})
    older = TrainSettings(rank=8).to_json()
    del older["version"], older["loss"]
    older["depth"] = older.pop("rank")
    assert TrainSettings.from_json(older) == TrainSettings(rank=8)
    assert "depth" in TrainSettings(rank=8).hashed() and "rank" not in TrainSettings(rank=8).hashed()
    assert "rank" in TrainSettings().with_effect()


def test_a_renamed_field_keeps_its_hash(monkeypatch):
    names = {"depth" if name == "rank" else name: value for name, value in TrainSettings(rank=8).hashed().items()}
    monkeypatch.setattr(settings_module, "RENAMED", {1: {"depth": "rank"}})
    assert TrainSettings(rank=8).hashed() == names


def test_a_new_setting_makes_nothing_foreign():
    first = {name for name, about in SETTINGS.items() if about.since == 1 and about.has_effect}
    assert set(TrainSettings().hashed()) == first
    assert set(TrainSettings(loss="denoising").hashed()) == first, "says what debiased_loss says"
    assert TrainSettings(loss="debiased").hashed() == TrainSettings(debiased_loss=True).hashed()
    assert all(about.since <= SETTINGS_VERSION for about in SETTINGS.values())


def test_settings_that_are_not_known_are_named():
    with pytest.raises(SettingsError, match=r"version 9 and hold whirl, which this MotionLoRA \(settings version"):
        TrainSettings.from_json({"version": 9, "rank": 4, "whirl": 1})
    with pytest.raises(SettingsError, match="version 'new'"):
        TrainSettings.from_json({"version": "new"})


def test_losses_that_contradict_each_other_are_refused():
    with pytest.raises(SettingsError, match="say different things"):
        check_settings(TrainSettings(loss="denoising", debiased_loss=True))
    check_settings(TrainSettings(loss="debiased", debiased_loss=True))


def test_a_name_is_no_playground():
    """B18: a model that is called so has the methods as their authors have them."""
    base = small_pipeline()
    named = dataclasses.replace(base, identity=dataclasses.replace(base.identity, name="playground-of-mine"))
    assert TrainSettings.for_base(named) == TrainSettings.for_method("customize-a-video")
    assert load_playground("cpu").identity.weights_hash == playground_hash()


def test_every_setting_is_described():
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(TrainSettings)]
    assert all(about.help.endswith(".") and about.group for about in SETTINGS.values())


def test_the_playground_has_defaults_of_its_own():
    base = small_pipeline()
    assert TrainSettings.for_base(base, "motiondirector") == TrainSettings.for_method("motiondirector")
    identity = dataclasses.replace(base.identity, weights_hash=playground_hash())
    play = TrainSettings.for_base(dataclasses.replace(base, identity=identity), "motiondirector")
    for name, value in PLAYGROUND_DEFAULTS["motiondirector"].items():
        assert getattr(play, name) == value
    assert play.spatial_path_probability == 0.8
    with pytest.raises(SettingsError, match="method is 'nothing'"):
        TrainSettings.for_base(base, "nothing")


def test_where_no_method_is_named_the_base_decides():
    """The recipe where it was measured, a published method where it was not."""
    base = small_pipeline()
    assert TrainSettings.for_base(base) == TrainSettings.for_method("customize-a-video")
    play = dataclasses.replace(base, identity=dataclasses.replace(base.identity, weights_hash=playground_hash()))
    assert TrainSettings.for_base(play) == TrainSettings.for_base(play, "many-looks")
    chosen = TrainSettings.for_base(play)
    assert chosen.resolved().absorber == "none" and chosen.looks, "it can be trained as it is"
    assert train_settings(base, {"method": AUTO}) == TrainSettings.for_base(base), "on the command line too"
