"""Many looks: clips redrawn by the spatial layers, training on them, and files that know in which steps they act."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import Listener, quick, same_weights, sample_clip, small_pipeline, stage_on, weights_of

from motion_lora.adapters.peft import Adapter
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.absorber import Absorber
from motion_lora.core.clip import Clip
from motion_lora.core.curves import Schedule
from motion_lora.core.errors import ClipError, SettingsError, TrainingError
from motion_lora.core.lora import ALL_NOISE, LoRA
from motion_lora.core.metadata import acts_in_of
from motion_lora.core.stack import AdapterStack, StackEntry, trained_schedule
from motion_lora.methods.table import METHODS
from motion_lora.playground.defaults import PLAYGROUND_LOOKS
from motion_lora.playground.prompts import asked_scene
from motion_lora.training import TrainingAbortedError, TrainSettings, check_settings, looks, train
from motion_lora.training.looks import motion_similarity, motion_words, moving_caption, restyled_latents, still_caption
from motion_lora.training.settings import main_stages
from motion_lora.training.stage import HELD

LOOKS = ("a green square {motion} over snow", "a blue ring over night")


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return sample_clip()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def many(**changes: object) -> TrainSettings:
    few: dict[str, object] = {"looks": LOOKS, "look_guidance_scale": 2.0, "look_similarity": -1.0, "absorber": "none"}
    return quick(method="many-looks", **{**few, **changes})


# Redrawing ----------------------------------------------------------------------------------------------------------


def test_one_clip_per_look_by_seed(pipeline: VideoPipeline, clip: Clip) -> None:
    source, before = pipeline.encode_frames(clip.frames), weights_of(pipeline)
    made = restyled_latents(pipeline, source, LOOKS, seeds=(1, 2))
    assert made.shape == (2, *source.shape[1:]) and made.dtype == torch.float32 and not made.is_inference()
    assert torch.equal(made, restyled_latents(pipeline, source, LOOKS, seeds=(1, 2)))
    assert not torch.allclose(made[:1], restyled_latents(pipeline, source, LOOKS[:1], seeds=(9,)), atol=1e-3)
    assert same_weights(pipeline, before)


def test_the_caption_counts(pipeline: VideoPipeline, clip: Clip) -> None:
    source = pipeline.encode_frames(clip.frames)
    made = restyled_latents(pipeline, source, LOOKS, seeds=(1, 1))
    assert not torch.equal(made[0], made[1])


def test_frames_do_not_see_each_other(pipeline: VideoPipeline, clip: Clip) -> None:
    """No motion of the base gets in: another second frame leaves the first as it was."""
    source = pipeline.encode_frames(clip.frames)
    other = source.clone()
    other[:, :, 1] += 1
    one, two = (restyled_latents(pipeline, latents, LOOKS[:1], seeds=(1,)) for latents in (source, other))
    torch.testing.assert_close(one[:, :, [0, 2]], two[:, :, [0, 2]], rtol=0, atol=1e-5)
    assert (one[:, :, 1] - two[:, :, 1]).abs().max() > 1e-2


def test_less_strength_keeps_more_of_the_clip(pipeline: VideoPipeline, clip: Clip) -> None:
    source = pipeline.encode_frames(clip.frames)
    far = [
        float((restyled_latents(pipeline, source, LOOKS[:1], strength=s, seeds=(1,)) - source).abs().mean())
        for s in (0.1, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize(
    ("caption", "still", "words"),
    [
        ("a man is skating on a street", "a man on a street", "is skating"),
        ("a dog runs", "a dog", "runs"),
        ("slowly a dog", "a dog", "slowly"),
        ("a dog a dog jumps", "a dog", "a dog jumps"),
        ("a dog runs fast", "a cat", ""),
        ("a dog runs over red grass", "a dog over grass", ""),
        ("a dog", "a dog", ""),
        ("a dog runs", "", ""),
    ],
)
def test_motion_words_are_what_the_caption_says_more(caption: str, still: str, words: str) -> None:
    assert motion_words(caption, still) == words


# Training -----------------------------------------------------------------------------------------------------------


def test_captions_that_hide_the_motion_words_are_named(
    pipeline: VideoPipeline, clip: Clip, caplog: pytest.LogCaptureFixture
) -> None:
    (stage,) = main_stages(many())
    stage_on(pipeline, stage, many(), [clip, replace(clip, appearance_caption="")], None)
    (said,) = warnings_of(caplog)
    assert said.startswith("Clip 2: its captions do not say which words are the motion's")


def test_the_clip_and_its_looks_come_in_turn(
    pipeline: VideoPipeline, clip: Clip, caplog: pytest.LogCaptureFixture
) -> None:
    (stage,) = main_stages(many())
    run = stage_on(pipeline, stage, many(), [clip, sample_clip(1)], None)
    draws = [run.draw(step) for step in range(6)]
    assert [draw.restyled for draw in draws] == [False, False, True, True, True, True]
    assert [draw.clip for draw in draws] == [0, 1, 0, 0, 1, 1]
    assert not warnings_of(caplog)
    moving = ["a green square moving left over snow", "a blue ring over night moving left"]
    assert [draw.prompts["full"] for draw in draws] == [clip.caption, clip.caption, *moving, *moving]
    assert not torch.equal(draws[2].latents, draws[4].latents)


def test_what_holds_the_clips_look_is_off_for_other_looks(pipeline: VideoPipeline, clip: Clip) -> None:
    absorber = train(pipeline, [clip], quick(absorber="spatial")).absorber
    assert absorber is not None
    settings = many(absorber="spatial")
    run = stage_on(pipeline, main_stages(settings)[0], settings, [clip], absorber)
    held = Adapter(run.unet, HELD)
    for step, strength in ((0, 1.0), (1, 0.0), (0, 1.0)):
        draw = run.draw(step)
        with run.arranged(run.passes(draw)[0], draw):
            assert held.strength == strength


def test_a_spatial_path_is_left_out_for_other_looks(pipeline: VideoPipeline, clip: Clip) -> None:
    settings = quick(method="motiondirector", spatial_path_probability=1.0, looks=LOOKS, look_similarity=-1.0)
    run = stage_on(pipeline, main_stages(settings)[0], settings, [clip], None)
    assert [len(run.passes(run.draw(step))) for step in range(3)] == [2, 1, 1]
    draw = run.draw(1)
    (a_pass,) = run.passes(draw)
    with run.arranged(a_pass, draw):
        run.loss(a_pass, draw).backward()
    learned = {name.split("|")[0] for name, weight in run.parameters.items() if weight.grad is not None}
    assert learned == {"temporal"}


def test_a_pause_changes_nothing(pipeline: VideoPipeline, clip: Clip, tmp_path: Path) -> None:
    settings = many(steps=4)
    whole = train(pipeline, [clip], settings).lora
    paused = train(pipeline, [clip], settings, callback=Listener(("motion", 2), "pause"), checkpoint=tmp_path / "c")
    assert paused.ending == "paused"
    assert train(pipeline, [clip], settings, checkpoint=tmp_path / "c").lora.fingerprint() == whole.fingerprint()
    other = train(pipeline, [clip], replace(settings, looks=LOOKS[:1])).lora
    assert other.fingerprint() != whole.fingerprint()


def test_a_run_that_goes_on_draws_no_look_again(
    pipeline: VideoPipeline, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        drawn.append(options["seeds"])
        return restyled_latents(*arguments, **options)

    monkeypatch.setattr("motion_lora.training.batches.restyled_latents", counted)
    settings, folder = many(steps=3), tmp_path / "run"
    for step in (1, 2):
        train(pipeline, [clip], settings, callback=Listener(("motion", step), "pause"), checkpoint=folder)
    assert len(drawn) == 1 and [path.name for path in folder.glob("kept-*")] == ["kept-looks-0.safetensors"]
    (kept,) = folder.glob("kept-*")
    kept.write_bytes(kept.read_bytes()[:-9])
    whole = train(pipeline, [clip], settings, checkpoint=folder).lora
    assert len(drawn) == 2, "a damaged file is made again"
    assert whole.fingerprint() == train(pipeline, [clip], settings).lora.fingerprint()
    with pytest.raises(TrainingAbortedError):
        train(pipeline, [clip], settings, callback=Listener(("motion", 1), "abort"), checkpoint=tmp_path / "other")
    assert not (tmp_path / "other").exists(), "nothing stays of a run that was aborted"


def test_copies_that_lost_the_motion_are_left_out(pipeline: VideoPipeline, clip: Clip) -> None:
    source = pipeline.encode_frames(clip.frames)
    stage = main_stages(many())[0]
    alike = stage_on(pipeline, stage, many(look_strength=0.05, look_similarity=0.9), [clip], None)
    assert alike.draw(1).restyled and alike.draw(2).restyled
    assert float(motion_similarity(source, alike.draw(1).latents)) >= 0.9
    with pytest.raises(TrainingError, match=r"None of the 2 looks kept the motion of clip 1: lower look_strength"):
        stage_on(pipeline, stage, many(look_strength=1.0, look_similarity=0.9), [clip], None)


def test_similarity_of_motion_is_blind_to_looks() -> None:
    clip = torch.zeros(1, 4, 5, 6, 6)
    for frame in range(5):
        clip[:, :, frame, 2, frame] = 1
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    assert motion_similarity(clip, -3 * clip + 7) == pytest.approx(1)
    assert motion_similarity(clip, clip.flip(2)) < 0.5 and motion_similarity(clip, clip.flip(3)) < 0.1
    assert abs(float(motion_similarity(clip, noise))) < 0.2
    falling = [float(motion_similarity(clip, clip + s * noise)) for s in (0.0, 0.1, 0.3, 1.0)]
    assert falling == sorted(falling, reverse=True)
    assert motion_similarity(clip, torch.cat([clip, noise])).shape == (2,)
    assert motion_similarity(clip, torch.zeros_like(clip)) == 0


def test_lists_of_files_are_looks() -> None:
    assert TrainSettings(looks=list(LOOKS)) == TrainSettings(looks=LOOKS)  # type: ignore[arg-type]
    assert TrainSettings.from_json(TrainSettings(looks=LOOKS).to_json()) == TrainSettings(looks=LOOKS)


@pytest.mark.parametrize("looks", ["a robot", ("a robot", " "), (3,)])
def test_looks_that_are_none(looks: object) -> None:
    with pytest.raises(SettingsError, match=r"looks is .*, it must be a list of captions"):
        check_settings(TrainSettings(looks=looks))  # type: ignore[arg-type]


def test_what_is_refused_before_work_starts(pipeline: VideoPipeline, clip: Clip) -> None:
    with pytest.raises(SettingsError, match="'many-looks' learns a motion in many looks; give looks"):
        train(pipeline, [clip], many(looks=()))
    with pytest.raises(SettingsError, match="looks are for learning a motion, which 'motiondirector-image' does not"):
        train(pipeline, [clip], quick(method="motiondirector-image", looks=LOOKS))
    with pytest.raises(ClipError, match="tokens"):
        train(pipeline, [clip], many(looks=("snow " * 100,)))
    name, weight = next((n, w) for n, w in pipeline.unet.named_parameters() if "attentions.0" in n and "temp" not in n)
    with pytest.raises(SettingsError, match="not whole weights"):
        train(pipeline, [clip], many(), absorber=Absorber(weights={name: weight.detach().clone()}))


def test_the_playgrounds_looks_show_every_attribute() -> None:
    scenes = [asked_scene(still_caption(look)) for look in PLAYGROUND_LOOKS]
    assert all(asked_scene(moving_caption(look, "circling around")) for look in PLAYGROUND_LOOKS)
    assert all(scenes) and len(set(PLAYGROUND_LOOKS)) == len(PLAYGROUND_LOOKS)
    assert len({scene.shape for scene in scenes if scene}) == 5
    assert len({scene.colour for scene in scenes if scene}) == 8
    assert len({scene.background for scene in scenes if scene}) == 5


# When a LoRA acts ---------------------------------------------------------------------------------------------------


def test_a_lora_acts_in_the_steps_that_it_was_trained_for(pipeline: VideoPipeline, clip: Clip) -> None:
    lora = train(pipeline, [clip], many(timestep_low=0.75)).lora
    entry = StackEntry(lora)
    assert trained_schedule(lora) == entry.schedule == Schedule(end=0.25)
    assert StackEntry(lora, steps=Schedule()).schedule == Schedule(), "unless told otherwise"
    told = AdapterStack((StackEntry(lora, steps=Schedule(end=0.25)),))
    assert AdapterStack((entry,)).fingerprint() == told.fingerprint()
    everywhere = train(pipeline, [clip], quick(absorber="none")).lora
    assert StackEntry(everywhere).schedule is None


@pytest.mark.parametrize(
    "settings", ["", "{}", "[]", "null", "{", '{"timestep_low": "x"}', '{"timestep_low": 2}', '{"timestep_low": null}']
)
def test_strange_metadata_says_nothing(settings: str) -> None:
    assert acts_in_of({"motion_lora.settings": settings}) == ALL_NOISE
    assert acts_in_of({"motion_lora.acts_in": settings}) == ALL_NOISE


def test_the_upper_end_counts_too() -> None:
    acts_in = acts_in_of({"motion_lora.settings": '{"timestep_high": 0.5}'})
    assert trained_schedule(LoRA({}, acts_in=acts_in)) == Schedule(start=0.5)


def test_the_row_is_a_temporal_lora() -> None:
    row = METHODS["many-looks"]
    assert row.needs_looks and row.keeps == ("temporal",) and row.absorber == "dual"
    assert TrainSettings.for_method("many-looks").resolved().targets == "temporal-difference"


def test_all_frames_of_a_copy_are_redrawn_from_the_same_noise(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = []

    def spy(*arguments: Any, latents: torch.Tensor, **named: Any) -> Any:
        noises.append(latents)
        return sample(*arguments, latents=latents, **named)

    sample = looks.sample
    monkeypatch.setattr(looks, "sample", spy)
    clip = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    looks.restyled_latents(pipeline, clip, ("a square over snow", "a ring over sand"), seeds=(1, 2))
    (noise,) = noises
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))
    assert not torch.equal(noise[0], noise[1])
