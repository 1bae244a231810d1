"""motion-lora train and sample on a tiny base: what they write, that they resume, and that they repeat."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from cli_helpers import APPEARANCE, CAPTION, CAPTIONS, FEW_STEPS, fails, run, succeeds, write_base, write_clip
from PIL import Image
from tiny import write_tiny_folder

from motion_lora.apps.cli import INTERRUPTED
from motion_lora.apps.cli.console import Progress
from motion_lora.files.absorber_file import load_absorber
from motion_lora.files.own import load_lora
from motion_lora.media.read import read_frames
from motion_lora.methods.table import METHODS

METADATA = "motion_lora."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), levels=2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def trained(base: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `train` has left everything that it can."""
    folder = tmp_path_factory.mktemp("trained")
    words = ("--output", folder / "lora.safetensors", "--plot", folder / "loss.png")
    succeeds(
        "train",
        "--base",
        base,
        "--clip",
        clip,
        *CAPTIONS,
        *FEW_STEPS,
        *words,
        "--save-absorber",
        folder / "a.safetensors",
    )
    return folder


def test_train_writes_lora_absorber_and_plot(trained: Path) -> None:
    lora = load_lora(trained / "lora.safetensors")
    assert lora.ranks == (4,) and any(bool(layer.up.any()) for layer in lora.layers.values())
    said = {key: lora.metadata[METADATA + key] for key in ("method", "target_preset", "steps", "captions")}
    assert said == {
        "method": "customize-a-video",
        "target_preset": "temporal-attention",
        "steps": "4",
        "captions": json.dumps([CAPTION]),
    }
    absorber = load_absorber(trained / "a.safetensors")
    assert absorber.spatial is not None and absorber.tokens is not None
    assert Image.open(trained / "loss.png").size[0] > 100
    assert sorted(path.name for path in trained.iterdir()) == ["a.safetensors", "lora.safetensors", "loss.png"]


def test_nothing_of_the_users_is_removed_with_the_checkpoint(base: Path, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    theirs = [folder / name for name in ("notes.txt", "state-of-the-art.safetensors", "validation/mine.csv")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"precious")
    output = folder / "lora.safetensors"
    words = ("--absorber", "none", "--steps", 4, "--validate-every", 2, "--validate-prompt", "x", "--validate-steps", 1)
    succeeds("train", "--base", base, "--clip", clip, *CAPTIONS, *words, "--checkpoint", folder, "--output", output)
    assert all(path.read_bytes() == b"precious" for path in theirs) and len(load_lora(output))
    best = {f"lora.{name}" for name in ("safetensors", "best.safetensors", "validation.csv", "validation.png")}
    assert {path.name for path in folder.rglob("*") if path.is_file()} == best | {path.name for path in theirs}


def test_every_output_is_checked_before_training(base: Path, clip: Path, tmp_path: Path, capsys) -> None:
    output, other = tmp_path / "lora.safetensors", tmp_path / "other.safetensors"
    start = ("train", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS, "--output", output)

    def refused(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = fails(capsys, *start, *words)
        assert sorted(tmp_path.rglob("*")) == before, "nothing was trained or written"
        return line

    assert "both name" in refused("--save-absorber", output, "--overwrite")
    assert "it must end in .png" in refused("--plot", tmp_path / "loss.txt")
    assert "it must end in .safetensors" in refused("--save-absorber", tmp_path / "a.pt")
    assert "trains none" in refused("--save-absorber", other, "--absorber", "none")
    other.write_bytes(b"theirs")
    assert "other.safetensors exists already" in refused("--save-absorber", other)
    (tmp_path / "loss.png").write_bytes(b"theirs")
    assert "loss.png exists already" in refused("--plot", tmp_path / "loss.png")
    (tmp_path / "lora.appearance-1.safetensors").write_bytes(b"theirs")
    assert "lora.appearance-1.safetensors exists already" in refused("--method", "motiondirector")


def test_a_settings_files_paths_are_its_own_folders(
    base: Path, clip: Path, trained: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "look.safetensors").write_bytes((trained / "a.safetensors").read_bytes())
    shutil.copytree(base, tmp_path / "base")
    settings = tmp_path / "run.toml"
    lines = ['base = "base"', 'absorber = "look.safetensors"', 'output = "out.safetensors"', "steps = 1"]
    table = f'[[clips]]\nclip = "{clip.as_posix()}"\ncaption = "{CAPTION}"\nappearance_caption = "{APPEARANCE}"\n'
    settings.write_text("\n".join([*lines, table]), encoding="utf-8")
    succeeds("train", "--config", settings)
    assert len(load_lora(tmp_path / "out.safetensors"))
    settings.write_text('output = "x.safetensors"\n' + table.replace("[[clips]]", "[clips]"), encoding="utf-8")
    assert "write [[clips]] above each" in fails(capsys, "train", "--config", settings)
    settings.write_text('output = "x.safetensors"\nclips = [1]\n', encoding="utf-8")
    assert "clips[0] must be a table of settings, got 1" in fails(capsys, "train", "--config", settings)


def test_absorber_is_reused(
    base: Path, clip: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "second.safetensors"
    words = ("--load-absorber", trained / "a.safetensors", "--output", output, "--json")
    succeeds("train", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS, *words)
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["stages"]) == ["motion"]
    before, after = load_lora(trained / "lora.safetensors"), load_lora(output)
    # The same seed and the same absorber, trained here or loaded: the same LoRA.
    assert all(torch.equal(before.layers[name].up, after.layers[name].up) for name in before)


@pytest.mark.parametrize("stage", ["absorber-tokens", "motion"])
def test_interrupted_and_resumed_equals_uninterrupted(
    stage: str,
    base: Path,
    clip: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "lora.safetensors"
    words = ("train", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS, "--output", output)
    update = Progress.update

    def press(self: Progress, at: str, step: int, total: int, loss: float | None = None) -> None:
        update(self, at, step, total, loss)
        if (at, step) == (stage, 1):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "update", press)
    before = signal.getsignal(signal.SIGINT)
    assert run(*words) == INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lora.checkpoint" in said and "same command" in said
    assert not output.exists()
    monkeypatch.undo()
    succeeds(*words)
    assert "Going on" in capsys.readouterr().err
    assert output.read_bytes() == (trained / "lora.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


def test_second_interrupt_stops_at_once(
    base: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*unused: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "update", press)
    output = tmp_path / "lora.safetensors"
    assert run("train", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS, "--output", output) == INTERRUPTED
    assert "Interrupted." in capsys.readouterr().err
    assert not output.exists()


def test_settings_file_with_two_clips(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path, name="one.mp4")
    write_clip(tmp_path, name="two.mp4")
    config = tmp_path / "run.toml"
    config.write_text(
        f'base = "{base.as_posix()}"\noutput = "out/turn.safetensors"\nmethod = "motiondirector"\nrank = 2\nsteps = 2\n'
        '[[clips]]\nclip = "one.mp4"\ncaption = "a red square moving right"\n'
        '[[clips]]\nclip = "two.mp4"\ncaption = "a blue square moving right"\n',
        encoding="utf-8",
    )
    succeeds("train", "--config", config, "--steps", "1", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["rank"] == 2 and facts["stages"]["motion"]["steps"] == 1
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["turn.appearance-1.safetensors", "turn.appearance-2.safetensors", "turn.safetensors"]


def test_folder_of_clips(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder, name="one.mp4")
    (folder / "one.txt").write_text(f"{CAPTION}\n{APPEARANCE}\nred square\n", encoding="utf-8")
    output = tmp_path / "lora.safetensors"
    succeeds("train", "--base", base, "--folder", folder, "--absorber", "none", "--steps", "1", "--output", output)
    assert load_lora(output).metadata[f"{METADATA}captions"] == json.dumps([CAPTION])


# sample -------------------------------------------------------------------------------------------------------------

QUICK = ("--num-inference-steps", "3", "--guidance-scale", "3")


def test_sample_repeats_and_the_lora_shows(base: Path, trained: Path, tmp_path: Path) -> None:
    words = ("sample", "--base", base, "--prompt", "a blue circle moving left", *QUICK, "--seed", "3")
    lora = ("--lora", trained / "lora.safetensors")
    made = {}
    for name, extra in {"plain": (), "again": (), "zero": (*lora, "0"), "strong": (*lora, "80")}.items():
        succeeds(*words, *extra, "--output", tmp_path / f"{name}.mp4")
        made[name] = (tmp_path / f"{name}.mp4").read_bytes()
    assert made["plain"] == made["again"] == made["zero"]
    assert made["plain"] != made["strong"]


def test_sample_writes_every_prompt_with_every_seed(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--prompt", "a red circle", "--prompt", "a blue square", "--seed", "1", "--seed", "2", *QUICK)
    succeeds("sample", "--base", base, *words, "--output", tmp_path / "made", "--num-frames", "2", "--json")
    facts = json.loads(capsys.readouterr().out)
    rows = [(row["prompt"], row["seed"], row["num_frames"]) for row in facts["videos"]]
    assert rows == [(p, s, 2) for p in ("a red circle", "a blue square") for s in (1, 2)]
    for row in facts["videos"]:
        frames, fps = read_frames(row["file"])
        assert tuple(frames.shape) == (2, 32, 32, 3) and fps == pytest.approx(8)


def test_sample_from_a_settings_file(
    base: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sample.toml"
    config.write_text(
        f'base = "{base.as_posix()}"\nprompt = ["a red circle"]\nnum_inference_steps = 2\noutput = "made.gif"\n'
        f'highway = "all"\n[[loras]]\nlora = "{(trained / "lora.safetensors").as_posix()}"\n'
        "strength = 0.5\nend = 0.6\n",
        encoding="utf-8",
    )
    succeeds("sample", "--config", config, "--json")
    stack = json.loads(capsys.readouterr().out)["stack"]
    (entry,) = stack["entries"]
    assert (entry["strength"], entry["steps"]["end"]) == (0.5, 0.6)
    assert stack["highway"]
    assert Image.open(tmp_path / "made.gif").n_frames == 4


def test_sample_edits_a_clip(base: Path, clip: Path, tmp_path: Path) -> None:
    words = ("sample", "--base", base, "--prompt", "a red circle", *QUICK, "--source", clip, "--edit-strength")
    for strength in ("0.4", "1"):
        succeeds(*words, strength, "--output", tmp_path / f"{strength}.mp4")
    near, far = (read_frames(tmp_path / f"{strength}.mp4")[0] for strength in ("0.4", "1"))
    assert not torch.equal(near, far)


def test_inverted_clip_is_a_noise_prior(base: Path, clip: Path, tmp_path: Path, capsys) -> None:
    noise = tmp_path / "clip.noise.safetensors"
    succeeds("invert", "--base", base, "--clip", clip, "--num-inference-steps", "3", "--output", noise, "--json")
    assert json.loads(capsys.readouterr().out)["shape"] == [1, 4, 4, 8, 8]
    words = ("sample", "--base", base, "--prompt", "a red circle", *QUICK)
    made = set()
    for name, extra in {
        "fresh": (),
        "none": ("--noise", noise, "--noise-prior", "0"),
        "half": ("--noise", noise),
        "whole": ("--noise", noise, "--noise-prior", "1"),
        "seed": ("--noise", noise, "--noise-prior", "1", "--seed", "9"),
    }.items():
        succeeds(*words, *extra, "--output", tmp_path / f"{name}.mp4")
        made.add((tmp_path / f"{name}.mp4").read_bytes())
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "seed.mp4").read_bytes()
    assert (tmp_path / "fresh.mp4").read_bytes() == (tmp_path / "none.mp4").read_bytes()
    assert len(made) == 3
    refused = (*words, "--output", tmp_path / "x.mp4")
    assert "noise prior p is 2" in fails(capsys, *refused, "--noise", noise, "--noise-prior", "2")
    assert "no --noise" in fails(capsys, *refused, "--noise-prior", "0.5")
    assert "clip.mp4" in fails(capsys, *refused, "--noise", clip)


def test_sample_refuses_before_it_works(
    base: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, output = trained / "lora.safetensors", tmp_path / "x.mp4"
    words = ("sample", "--base", base, "--output", output)
    assert "--prompt" in fails(capsys, *words)
    prompt = (*words, "--prompt", "a")
    assert "scheduler" in fails(capsys, *prompt, "--scheduler", "magic")
    assert "num_inference_steps" in fails(capsys, *prompt, "--num-inference-steps", "0")
    assert "multiples of 8" in fails(capsys, *prompt, "--height", "20")
    assert "no number" in fails(capsys, *prompt, "--lora", lora, "much")
    assert "repeat it" in fails(capsys, *prompt, "--lora", lora, "1", lora)
    assert "nowhere" in fails(capsys, *prompt, "--lora", tmp_path / "nowhere.safetensors")
    assert "highway" in fails(capsys, *prompt, "--highway-scale", "2")
    assert "give a folder" in fails(capsys, *prompt, "--prompt", "b")
    assert "absorber" in fails(capsys, *prompt, "--lora", trained / "a.safetensors")
    assert not list(tmp_path.iterdir())


# Looks of others, and of images


def test_an_absorber_may_be_a_file(base: Path, clip: Path, trained: Path, tmp_path: Path, capsys) -> None:
    words = ("train", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS, "--json")
    outcomes = {}
    for flag in ("--absorber", "--load-absorber"):
        output = tmp_path / f"{flag}.safetensors"
        succeeds(*words, flag, trained / "a.safetensors", "--output", output)
        assert list(json.loads(capsys.readouterr().out)["stages"]) == ["motion"]
        outcomes[flag] = load_lora(output).fingerprint()
    assert (
        outcomes["--absorber"] == outcomes["--load-absorber"] == load_lora(trained / "lora.safetensors").fingerprint()
    )
    refused = (*words, "--output", tmp_path / "no.safetensors")
    assert "holds a motion" in fails(capsys, *refused, "--absorber", trained / "lora.safetensors")
    assert "base's own spatial weights" in fails(capsys, *refused, "--absorber", base)
    assert "must be one of" in fails(capsys, *refused, "--absorber", "gone.safetensors")


def test_a_look_is_learned_from_one_image_a_folder_or_captioned_images(base: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 36), (200, 60 * number, 30)).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text("a red square\n")
    few = (
        "--method",
        "motiondirector-image",
        "--steps",
        "2",
        "--rank",
        "2",
        "--height",
        "32",
        "--width",
        "32",
        "--json",
    )
    sources = {
        "one": ("--clip", photos / "0.png", "--caption", "a red square"),
        "together": ("--clip", photos, "--caption", "a red square"),
        "each": ("--folder", photos),
    }
    for name, source in sources.items():
        output = tmp_path / f"{name}.safetensors"
        succeeds("train", "--base", base, *few, *source, "--output", output)
        lora = load_lora(output)
        assert lora.metadata[METADATA + "layers"] == "spatial" and any(bool(x.up.any()) for x in lora.layers.values())
        capsys.readouterr()
    motion = ("--method", "motiondirector", "--clip", photos / "0.png", "--caption", "a", "--num-frames", "1")
    refused = (
        "train",
        "--base",
        base,
        *motion,
        "--height",
        "32",
        "--width",
        "32",
        "--output",
        tmp_path / "x.safetensors",
    )
    assert "use 'motiondirector-image'" in fails(capsys, *refused)


def test_methods_are_listed(capsys) -> None:
    succeeds("methods")
    *table, nothing, default = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == list(METHODS) and not nothing
    assert default == "auto, the default: many-looks on the playground, customize-a-video on other base models"
    succeeds("methods", "motiondirector")
    text = capsys.readouterr().out
    assert "one spatial LoRA for each clip" in text and "appearance-debiased" in text and "steps 150" in text
    succeeds("methods", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert rows["customize-a-video"]["absorber"] == "dual"
    assert rows["separate-motion-appearance"]["stages"][0]["learns"]["temporal"] == "tap-k-out"
    assert rows["motiondirector-image"]["keeps"] == ["spatial"]
    assert "must be one of" in fails(capsys, "methods", "nothing")


def test_noise_of_another_base_is_refused(base: Path, clip: Path, tmp_path: Path, capsys) -> None:
    noise = tmp_path / "noise.safetensors"
    succeeds("invert", "--base", base, "--clip", clip, "--num-inference-steps", "2", "--output", noise)
    write_tiny_folder(tmp_path / "other", seed=9)
    asked = ("sample", "--base", tmp_path / "other", "--prompt", "a", "--noise", noise, "--output", tmp_path / "x.mp4")
    assert "invert the clip on the base that samples" in fails(capsys, *asked)
