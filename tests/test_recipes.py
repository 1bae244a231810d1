"""The recipes of docs/CONTRIBUTING.md, each followed with a toy: no more is touched than the recipe names."""

from __future__ import annotations

import sys
from pathlib import Path

import make_texts
import pytest
import torch
from comfy_double import PACK, hosted
from lora_samples import motion_sample
from tiny import tiny_unet

import motion_lora.files
from motion_lora.core.errors import SettingsError
from motion_lora.files.formats import FORMATS, Format, format_named, words, written
from motion_lora.files.reader import load_any
from motion_lora.files.writers import convert, export_peft

# A format: one module in motion_lora/files/ and one row in FORMATS

TOY_FORMAT = '''
"""Factors as `<module>|down` and `<module>|up`."""

from ..core.lora import LoRA, LoRALayer
from .formats import ImportReport
from .writers import write_proved


def recognise(source):
    return bool(source.shapes) and all(key.endswith(("|down", "|up")) for key in source.shapes)


def read(source, read_for):
    tensors = source.read()
    modules = sorted({key.split("|")[0] for key in tensors})
    lora = LoRA({name: LoRALayer(tensors[f"{name}|down"], tensors[f"{name}|up"]) for name in modules}, {})
    return ImportReport(lora, "toy", len(lora), len(lora))


def write(path, lora, *, dtype=None, metadata=True, overwrite=True):
    factors = {}
    for name, layer in lora.layers.items():
        factors |= {f"{name}|down": layer.down.clone(), f"{name}|up": layer.up.clone()}
    return write_proved(path, lora, factors, {}, metadata, overwrite)
'''
TOY_ROW = Format("toy", "toys", "bars in its keys", "toy:recognise", "toy:read", "toy:write", extension=".safetensors")


@pytest.fixture
def toy_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY_FORMAT)
    monkeypatch.setattr(motion_lora.files, "__path__", [*motion_lora.files.__path__, str(folder)])
    monkeypatch.setitem(FORMATS, "toy", TOY_ROW)
    yield
    sys.modules.pop("motion_lora.files.toy", None)


@pytest.mark.usefixtures("toy_format")
def test_a_format_is_a_module_and_a_row(tmp_path: Path) -> None:
    unet = tiny_unet(0)
    lora = motion_sample(unet, scale=1.0)
    peft = export_peft(tmp_path / "peft.safetensors", lora)
    convert(peft, tmp_path / "toy.safetensors", "toy", unet)
    report = load_any(tmp_path / "toy.safetensors", unet)
    assert report.format == "toy"
    assert all(torch.equal(report.lora.layers[m].delta(), layer.delta()) for m, layer in lora.layers.items())
    assert load_any(peft, unet).format == "peft", "the other rows still have their files"


@pytest.mark.usefixtures("toy_format")
def test_a_format_is_offered_everywhere() -> None:
    assert list(written())[-1] == "toy" and "toy: toys" in words()
    with pytest.raises(SettingsError, match="motion-lora, kohya, comfyui, peft, animatediff, diffusers, toy"):
        format_named("gguf")


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_names_functions_that_exist(name: str) -> None:
    row = FORMATS[name]
    assert callable(row.reader()) and row.help and row.recognised_by and row.name == name
    if row.write:
        assert callable(row.writer())
    else:
        with pytest.raises(SettingsError, match=f"{name}.*is read and not written"):
            format_named(name)


# A node: one file in nodes/, the list in nodes/__init__.py, its words in nodes/texts/

TOY_NODE = '''
"""A node that counts the layers of a LoRA."""

from __future__ import annotations

from ..motion_lora.core.lora import LoRA
from .comfy.sockets import CATEGORY, MotionLoRA, io


class CountLayers(io.ComfyNode):
    """How many layers a LoRA has."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_CountLayers",
            display_name="Count Layers",
            category=f"{CATEGORY}/load",
            description="Counts the layers of a LoRA.",
            inputs=[MotionLoRA.Input("motion_lora", tooltip="The LoRA.")],
            outputs=[io.Int.Output("count", display_name="count", tooltip="How many layers it has.")],
        )

    @classmethod
    def execute(cls, motion_lora: LoRA) -> io.NodeOutput:
        return io.NodeOutput(len(motion_lora))
'''


def test_a_node_is_a_file_a_line_of_the_list_and_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("nodes", "texts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nodes" / "toy.py").write_text(TOY_NODE)
    (tmp_path / "texts" / "MotionLoRA_CountLayers.md").write_text("For a look at its size.\n")
    with hosted(tmp_path / "comfyui") as host:
        package = sys.modules[f"{PACK}.nodes"]
        package.__path__ = [*package.__path__, str(tmp_path / "nodes")]
        package.NODES.append(host.module("toy").CountLayers)
        host.refresh()
        lora = motion_sample(tiny_unet(0))
        assert host.run("MotionLoRA_CountLayers", motion_lora=lora).args == (len(lora),)
        monkeypatch.setattr(make_texts, "INTRODUCTIONS", tmp_path / "texts")
        toy = {"MotionLoRA_CountLayers": host.nodes["MotionLoRA_CountLayers"]}
        pages = make_texts.texts(toy)
        page = pages[make_texts.ROOT / "web" / "docs" / "MotionLoRA_CountLayers.md"]
        assert "For a look at its size." in page and "How many layers it has." in page
        assert "Count Layers" in pages[make_texts.ROOT / "locales" / "en" / "nodeDefs.json"]
        assert make_texts.snapshot(toy)["MotionLoRA_CountLayers"]["output"] == [["count", "INT"]]
