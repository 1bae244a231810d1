"""Pre-training of the playground in its parts; an interrupted stage ends with the bits of an uninterrupted one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_playground.architecture import (
    SCHEDULER_CONFIG,
    FrozenParts,
    build_text_encoder,
    vocabulary,
    write_model,
    write_tokenizer,
)
from pretrain_playground.optimise import StagePlan, learning_rate_factor, run_stage
from pretrain_playground.pool import coverage_of, object_weight
from pretrain_playground.pretrain import (
    BALANCED,
    ONLY_WORDS,
    Diffusion,
    average,
    main,
    random_frames,
    scene_captions,
    weighted_loss,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import SettingsError
from motion_lora.playground import world
from motion_lora.playground.model import PLAYGROUND_FOLDER, load_playground

PLAN = StagePlan("toy", seed=5, steps=500, batch_size=4, learning_rate=1e-2, warmup=10)


def train_toy(work: Path, plan: StagePlan, stop_at: int | None = None, first: int = 0) -> Tensor:
    torch.manual_seed(first)
    model = nn.Linear(3, 1)
    steps = 0

    def loss(generator: torch.Generator, _: float) -> Tensor:
        nonlocal steps
        steps += 1
        if stop_at is not None and steps > stop_at:
            raise KeyboardInterrupt
        data = torch.randn(plan.batch_size, 3, generator=generator)
        return (model(data) - data.sum(dim=1, keepdim=True)).square().mean()

    run_stage(plan, {"model": model}, loss, work)
    return model.weight.detach().clone()


def test_a_killed_stage_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = train_toy(tmp_path / "whole", PLAN)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "broken", PLAN, stop_at=300)
    assert torch.equal(train_toy(tmp_path / "broken", PLAN), whole)
    assert torch.equal(train_toy(tmp_path / "broken", PLAN, stop_at=0), whole), "a finished stage is not run again"
    torch.testing.assert_close(whole, torch.ones(1, 3), rtol=0, atol=0.1)


def test_a_checkpoint_of_another_run_is_refused_not_taken_for_this_one(tmp_path: Path) -> None:
    short = replace(PLAN, steps=10)
    train_toy(tmp_path, short)
    for plan, first in ((short, 1), (replace(short, seed=6), 0), (replace(short, learning_rate=1e-3), 0)):
        with pytest.raises(SettingsError, match=r"toy\.safetensors belongs to another run"):
            train_toy(tmp_path, plan, first=first)
    assert train_toy(tmp_path, replace(short, steps=12)).shape == (1, 3), "more steps are the same run"


def test_the_rate_rises_stays_and_falls() -> None:
    plan = replace(PLAN, steps=100, warmup=10, cooldown=0.5)
    assert learning_rate_factor(plan, 0) == pytest.approx(0.1)
    assert learning_rate_factor(plan, 30) == 1.0
    assert learning_rate_factor(plan, 75) == pytest.approx(0.5)
    assert learning_rate_factor(plan, 99) == pytest.approx(0.02)


def test_the_target_is_v_and_gives_the_latents_back() -> None:
    diffusion, latents = Diffusion(), torch.randn(6, 4, 8, 2, 2)
    noisy, timesteps, v = diffusion.corrupt(latents, torch.Generator().manual_seed(0), BALANCED)
    signal, sigma = (table[timesteps].view(-1, 1, 1, 1, 1) for table in (diffusion.signal, diffusion.noise))
    torch.testing.assert_close(signal * noisy - sigma * v, latents, rtol=0, atol=1e-4)


def test_emphasis_is_on_very_noisy_clips() -> None:
    diffusion, latents = Diffusion(), torch.zeros(2000, 1, 1, 1, 1)
    total = SCHEDULER_CONFIG["num_train_timesteps"]
    for emphasis, share in ((ONLY_WORDS, 1.0), (BALANCED, 0.5 + 0.5 * 0.25)):
        _, timesteps, _ = diffusion.corrupt(latents, torch.Generator().manual_seed(0), emphasis)
        noisy = (timesteps >= emphasis.low * total).float().mean().item()
        assert noisy == pytest.approx(share, abs=0.04)


def test_object_cells_weigh_more() -> None:
    scenes = [world.Scene("circle", "red", "sand", "still")]
    weight = object_weight(coverage_of(scenes, torch.tensor([[0.5, 0.5]])))
    assert weight.shape == (1, 1, 8, 8) and weight[0, 0, 4, 4] == 3 and weight[0, 0, 0, 0] == 1
    off_centre, error = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    off_centre[..., 0, 0], error[..., 4, 4] = 1, 1
    assert weighted_loss(error, torch.zeros_like(error), weight) == pytest.approx(
        3 * float(weighted_loss(off_centre, torch.zeros_like(error), weight))
    )


def test_single_frames_name_the_motion_in_half_of_the_captions() -> None:
    scenes, pixels, coverage = random_frames(torch.Generator().manual_seed(0), 100)
    assert pixels.shape == (100, 3, 64, 64) and coverage.shape == (100, 1, 64, 64)
    captions = scene_captions(torch.Generator().manual_seed(0), scenes, motion=False)
    named = sum(text == world.caption(scene) for text, scene in zip(captions, scenes, strict=True))
    assert 30 < named < 70


def test_some_captions_leave_colour_or_background_unnamed() -> None:
    scenes = random_frames(torch.Generator().manual_seed(0), 400)[0]
    captions = scene_captions(torch.Generator().manual_seed(0), scenes, motion=True, unnamed=0.25)
    pairs = list(zip(captions, scenes, strict=True))
    assert 60 < sum(scene.colour not in text for text, scene in pairs) < 140
    assert 60 < sum("over" not in text for text, _ in pairs) < 140
    assert all(world.MOTIONS[scene.motion] in text and scene.shape in text for text, scene in pairs)


def test_a_model_written_anew_says_nothing_of_this_machine(tmp_path: Path) -> None:
    base = load_playground(device="cpu")
    parts = FrozenParts(base.vae, base.tokenizer, base.text_encoder, base.vae.config["scaling_factor"])
    write_model(tmp_path / "new", parts, base.unet)
    for config in tmp_path.rglob("*.json"):
        assert str(PLAYGROUND_FOLDER) not in config.read_text(encoding="utf-8"), config
    assert VideoPipeline.load(tmp_path / "new", device="cpu").identity == base.identity


def test_each_word_is_one_token_and_the_encoder_knows_them(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    for word in vocabulary():
        assert len(tokenizer.tokenize(word)) == 1, word
    assert build_text_encoder(tokenizer).get_input_embeddings().num_embeddings == len(tokenizer)


def test_two_models_of_one_path_are_averaged_weight_by_weight(tmp_path: Path) -> None:
    second, mixed = tmp_path / "second", tmp_path / "mixed"
    shutil.copytree(PLAYGROUND_FOLDER, second)
    file = second / "unet" / "diffusion_pytorch_model.safetensors"
    mine = load_file(PLAYGROUND_FOLDER / "unet" / file.name)
    save_file({name: tensor + 1 for name, tensor in mine.items()}, file)
    average(PLAYGROUND_FOLDER, second, 0.25, mixed)
    for name, tensor in load_file(mixed / "unet" / file.name).items():
        torch.testing.assert_close(tensor.float(), mine[name].float() + 0.25, rtol=0, atol=4e-3)
    assert VideoPipeline.load(mixed).default_num_frames == world.NUM_FRAMES


@pytest.mark.parametrize("wrong", (["--average-with", "x"], ["--start-from", "x", "--share", "2"]))
def test_a_wrong_average_is_refused_before_work_starts(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--work", str(tmp_path / "work"), *wrong])
    assert wrong[-2] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
