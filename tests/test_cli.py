"""The command line: help, flags and TOML, results as text and JSON, exit status."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, run, write_base
from tiny import tiny_unet

from motion_lora.apps.cli import COMMANDS, INTERRUPTED, OK, USER_ERROR, build_parser
from motion_lora.apps.cli.options import Option, gather
from motion_lora.apps.cli.settings import SAMPLE_OPTIONS, TRAIN_OPTIONS
from motion_lora.core.errors import SettingsError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.files.own import load_lora, save_lora
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import TrainSettings

MODELSCOPE_COUNTS = {
    "temporal-attention": (136, 831_488),
    "temporal-all": (170, 1_559_040),
    "spatial-attention": (128, 829_952),
    "spatial-self-ff": (96, 1_098_240),
}


def every_parser(parser: argparse.ArgumentParser, name: str = "motion-lora"):
    """All parsers with their full names, sub-commands included."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for key, child in action.choices.items():
                yield from every_parser(child, f"{name} {key}")


def random_lora(seed: int = 0, rank: int = 2) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    names = [f"transformer_in.transformer_blocks.0.attn{i}.{p}" for i in (1, 2) for p in ("to_q", "to_k")]
    unet = tiny_unet()
    layers = {}
    for name in names:
        out, into = unet.get_submodule(name).weight.shape
        down, up = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
        layers[name] = LoRALayer(down, up)
    return LoRA(layers, {"motion_lora.captions": '["a red circle circling"]', "motion_lora.method": "temporal-only"})


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


# Help ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parser"), list(every_parser(build_parser())), ids=lambda value: str(value)[:40])
def test_everything_has_help(name: str, parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    assert parser.description, name
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), f"{name}: {action.dest} has no help"
    leaf = not any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    assert not leaf or "examples:" in text, f"{name} has no examples"


def test_every_example_in_the_help_parses() -> None:
    root = build_parser()
    for name, parser in every_parser(root):
        lines = (parser.epilog or "").replace("\\\n", " ").splitlines()
        for line in lines:
            if line.strip().startswith("motion-lora "):
                command = line.strip().split("   ")[0].removesuffix(" &")
                words = shlex.split(command)[1:]
                assert root.parse_args(words).command, f"{name}: {command}"


@pytest.mark.parametrize(("options", "kind"), [(TRAIN_OPTIONS, TrainSettings), (SAMPLE_OPTIONS, SampleSettings)])
def test_options_are_the_fields_of_the_library(options: tuple[Option, ...], kind: type) -> None:
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    fields.pop("edit_strength", None)  # goes with the source clip
    assert {option.name for option in options} == set(fields)
    for option in options:
        scalar = [part for part in typing.get_args(fields[option.name]) if part is not type(None)]
        assert option.kind in (scalar or [fields[option.name]]), option.name


def test_help_needs_no_torch() -> None:
    code = "import sys; from motion_lora.apps.cli import build_parser as b; b(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Status and messages ------------------------------------------------------------------------------------------------


def test_script_is_installed_and_reports_in_one_line() -> None:
    script = Path(sys.executable).with_name("motion-lora")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "motion_lora.apps.cli"]
    # A command that imports nothing heavy.
    done = subprocess.run([*command, "methods", "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (USER_ERROR, "")
    assert done.stderr.count("\n") == 1 and "nowhere" in done.stderr


def test_unknown_flag_and_command_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--colour" in fails(capsys, "targets", "--colour", "red")
    assert "dance" in fails(capsys, "dance")
    assert "rank" in fails(capsys, "targets", "--rank", "many")


def test_help_and_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == OK
    assert "motion-lora demo" in capsys.readouterr().out
    assert "COMMAND" in fails(capsys)


def test_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEAVE_EARLY], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (OK, "")


_LEAVE_EARLY = """
import sys
from motion_lora.apps.cli import main

class Closed:
    def write(self, text): raise BrokenPipeError(32, "Broken pipe")
    def flush(self): raise BrokenPipeError(32, "Broken pipe")

sys.stdout = Closed()
sys.exit(main(["methods"]))
"""


def test_interrupt_has_its_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*unused: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("motion_lora.apps.cli.targets.empty_network", press)
    assert run("targets") == INTERRUPTED
    assert capsys.readouterr().err.count("\n") == 1


# TOML ---------------------------------------------------------------------------------------------------------------

OPTIONS = (
    Option("steps", int, "steps"),
    Option("rate", float, "rate"),
    Option("sharp", bool, "sharp"),
    Option("output", Path, "output"),
    Option("mode", str, "mode", choices=("fast", "slow")),
    Option("prompt", str, "prompt", many=True),
)


def gathered(tmp_path: Path, text: str, **flags: object) -> dict[str, object]:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return gather(argparse.Namespace(config=path, **flags), OPTIONS, tables=("clips",))


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    values = gathered(tmp_path, 'steps = 3\nrate = 1\nsharp = true\noutput = "a.mp4"\nprompt = ["x"]', steps=5)
    assert values == {"steps": 5, "rate": 1.0, "sharp": True, "output": tmp_path / "a.mp4", "prompt": ["x"]}
    assert isinstance(values["rate"], float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "Did you mean 'steps'"),
        ("colour = 3", "no setting 'colour'"),
        ("steps = 3.5", "steps must be of type int"),
        ("steps = true", "steps must be of type int"),
        ("sharp = 1", "sharp must be of type bool"),
        ("rate = '1'", "rate must be of type float"),
        ("mode = 'medium'", "fast, slow"),
        ("prompt = 'x'", "list"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        gathered(tmp_path, text)


def test_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        gather(argparse.Namespace(config=tmp_path / "none.toml"), OPTIONS)


# targets ------------------------------------------------------------------------------------------------------------


def test_targets_on_modelscope_have_the_papers_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("targets", "--json") == OK
    found = json.loads(capsys.readouterr().out)
    assert (found["base"], found["rank"]) == ("modelscope", 4)
    counts = {row["preset"]: (len(row["modules"]), row["parameters"]) for row in found["presets"]}
    assert counts.items() >= MODELSCOPE_COUNTS.items()


def test_targets_on_a_folder_and_on_its_config_agree(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for base in (base_folder, base_folder / "unet", base_folder / "unet" / "config.json"):
        assert run("targets", "--base", base, "--preset", "tap-qk", "--rank", "1", "--modules") == OK
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]
    assert "transformer_in.transformer_blocks.0.attn1.to_q" in outputs[0]
    assert "to_v" not in outputs[0]


def test_targets_reads_no_weights(base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_bytes((base_folder / "unet" / "config.json").read_bytes())
    assert run("targets", "--base", config) == OK


def test_targets_refuses_what_it_must(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tap-x" in fails(capsys, "targets", "--preset", "tap-x")
    assert "rank is 0" in fails(capsys, "targets", "--rank", "0")
    config = tmp_path / "config.json"
    config.write_text('{"_class_name": "UNet2DConditionModel"}', encoding="utf-8")
    assert "image network" in fails(capsys, "targets", "--base", config)
    config.write_text("{", encoding="utf-8")
    assert "config.json" in fails(capsys, "targets", "--base", config)


# inspect, verify, convert, merge, resize ----------------------------------------------------------------------------


@pytest.fixture
def lora_file(tmp_path: Path) -> Path:
    return save_lora(tmp_path / "orbit.safetensors", random_lora())


def test_inspect_tells_what_a_file_is(lora_file: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", lora_file, "--keys", "--base", base_folder) == OK
    text = capsys.readouterr().out
    for said in ("temporal-only", "a red circle circling", "4 temporal", "transformer_in", "attn2.to_k", "4 of 4"):
        assert said in text


def test_inspect_as_json(lora_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", lora_file, "--keys", "--json") == OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layers"], facts["ranks"], facts["metadata"]["method"]) == (4, [2], "temporal-only")
    layer = load_lora(lora_file).layers[facts["keys"][0]["module"]]
    assert facts["keys"][0]["norm"] == pytest.approx(float(layer.delta().norm()), rel=1e-5)


def test_verify_sees_a_changed_byte(lora_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", lora_file) == OK
    assert "ok:" in capsys.readouterr().out
    content = bytearray(lora_file.read_bytes())
    content[-1] ^= 1
    lora_file.write_bytes(bytes(content))
    assert "orbit.safetensors" in fails(capsys, "verify", lora_file)


@pytest.mark.parametrize("kind", ["kohya", "peft", "motion-lora"])
def test_convert_keeps_every_change(lora_file: Path, kind: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    assert run("convert", lora_file, "--format", kind, "--output", there) == OK
    assert run("convert", there, "--output", back) == OK
    before, after = load_lora(lora_file), load_lora(back)
    assert set(before) == set(after)
    assert all(torch.equal(before.layers[n].delta(), after.layers[n].delta()) for n in before)


def test_merge_adds_changes(tmp_path: Path) -> None:
    first, second = random_lora(0), random_lora(1)
    save_lora(tmp_path / "a.safetensors", first)
    save_lora(tmp_path / "b.safetensors", second)
    output = tmp_path / "ab.safetensors"
    words = ("merge", tmp_path / "a.safetensors", "0.5", "--with", tmp_path / "b.safetensors", "-2", "--output", output)
    assert run(*words) == OK
    merged = load_lora(output)
    for name in first:
        expected = 0.5 * first.layers[name].delta() - 2 * second.layers[name].delta()
        torch.testing.assert_close(merged.layers[name].delta(), expected, rtol=1e-5, atol=1e-5)


def test_resize_brings_the_rank_down(lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("resize", lora_file, "--rank", "1", "--output", tmp_path / "small.safetensors", "--json") == OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["ranks"] == [1] and 0 < facts["energy_kept"] < 1
    assert load_lora(tmp_path / "small.safetensors").ranks == (1,)


def test_outputs_are_not_replaced_unasked(lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lora_file.read_bytes()
    assert "exists already" in fails(capsys, "convert", lora_file, "--output", lora_file, "--format", "kohya")
    assert lora_file.read_bytes() == before
    other = tmp_path / "other.safetensors"
    words = ("convert", lora_file, "--output", other)
    assert run(*words) == run(*words, "--overwrite") == OK


# playground render --------------------------------------------------------------------------------------------------


def test_render_writes_the_scene_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "orbit.mp4"
    words = ("--motion", "orbit", "--shape", "ring", "--colour", "pink", "--background", "night", "--fill", "plain")
    assert run("playground", "render", *words, "--output", output, "--json") == OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["caption"] == "a pink ring circling around over night"
    assert facts["appearance_caption"] == "a pink ring over night"
    assert output.stat().st_size > 500
    first = output.read_bytes()
    assert run("playground", "render", *words, "--output", output) == OK
    assert output.read_bytes() == first
    assert run("playground", "render", *words, "--output", output, "--seed", "1") == OK
    assert output.read_bytes() != first


def test_render_refuses_words_the_world_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.mp4"
    for words, said in (
        (("--motion", "dance"), "dance"),
        (("--motion", "orbit", "--shape", "horse"), "horse"),
        (("--motion", "orbit", "--radius", "2"), "radius"),
        (("--motion", "orbit", "--num-frames", "0"), "num_frames"),
        (("--motion", "orbit", "--fps", "-1"), "fps"),
        (("--motion", "orbit", "--fps", "nan"), "fps is nan; it must be from 0.1 to 240"),
        (("--motion", "orbit", "--size", "99999"), "size is 99999; it must be from 16 to 512"),
        (("--motion", "orbit", "--seed", "-1"), "seed is -1; it must be from 0"),
        (("--motion", "orbit", "--scale", "3"), "scale"),
        (("--motion", "orbit", "--scale", "nan"), "scale"),
        (("--motion", "orbit", "--phase", "1.5"), "phase"),
    ):
        assert said in fails(capsys, "playground", "render", *words, "--output", output)
    assert "x.txt" in fails(capsys, "playground", "render", "--motion", "orbit", "--output", tmp_path / "x.txt")
    assert not list(tmp_path.iterdir())


def test_commands_are_complete() -> None:
    root = build_parser()
    (commands,) = (action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    wanted = {"demo", "train", "sample", "inspect", "verify", "convert", "merge", "resize", "targets", "playground"}
    assert wanted <= set(commands.choices)
    assert len(COMMANDS) == len(set(COMMANDS))
