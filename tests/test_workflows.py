"""The shipped workflows as files: sound links, values that fit the nodes, nothing of the machine they were made on.

`test_host.py` loads and runs them in the real front end.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_double import hosted
from make_gallery import thumbnail
from PIL import Image
from shipped_workflows import BLUEPRINTS, NEEDS, WORKFLOWS

from motion_lora.media.write import write_video
from motion_lora.playground.model import EXAMPLES

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
SUBGRAPHS = FOLDER.with_name("subgraphs")
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
CORE = {"MarkdownNote", "SaveVideo", "PreviewImage", "PreviewAny"}
CORE |= {"KSampler", "KSamplerSelect", "SamplerCustom", "CLIPTextEncode", "VAEDecode"}
# Combos whose values are files of a user's machine.
CORE |= {"CheckpointLoaderSimple", "EmptyLatentImage", "CreateVideo"}
EVOLVED = {"ADE_LoadAnimateDiffModel", "ADE_AnimateDiffLoRALoader", "ADE_ApplyAnimateDiffModelSimple"}
CORE |= {*EVOLVED, "ADE_UseEvolvedSampling"}
CORE |= {"CLIPLoader", "UNETLoader", "VAELoader", "LoraLoaderModelOnly", "ModelSamplingSD3", "EmptyHunyuanLatentVideo"}
FILES = {"model", "lora_name", "absorber_name", "file", "network", "vae"}


@pytest.fixture(scope="module")
def infos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        yield {node_id: node.info() for node_id, node in host.nodes.items()}


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def widgets(info: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of every widget in the order in which a workflow saves their values."""
    found = []
    for name, (kind, options) in {**info["input"]["required"], **info["input"].get("optional", {})}.items():
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            found.append((name, kind, options))
        if options.get("control_after_generate"):
            found.append(("control_after_generate", "CONTROL", {}))
    return found


def test_every_story_has_its_workflow_and_nothing_else_is_there() -> None:
    assert sorted(WORKFLOWS) == NAMES
    assert {path.suffix for path in FOLDER.iterdir()} == {".json", ".jpg"}


@pytest.mark.parametrize("name", NAMES)
def test_links_are_sound(name: str) -> None:
    graph = read(name)
    assert graph["version"] == 0.4
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and max(nodes) <= graph["last_node_id"]
    for link_id, source, out, target, into, kind in graph["links"]:
        output, slot = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert output["type"] == kind and slot["type"] in (kind, "*"), f"link {link_id}"
        assert link_id in output["links"] and slot["link"] == link_id


@pytest.mark.parametrize("name", NAMES)
def test_values_fit_the_nodes(name: str, infos: dict[str, Any]) -> None:
    for node in read(name)["nodes"]:
        if node["type"] not in CORE:
            assert_values_fit(node, infos[node["type"]])


def assert_values_fit(node: dict[str, Any], info: dict[str, Any]) -> None:
    expected = widgets(info)
    values = node.get("widgets_values", [])
    assert len(values) == len(expected), f"{node['type']}: {values}"
    for (widget, kind, options), value in zip(expected, values, strict=True):
        place = f"{node['type']}.{widget} = {value!r}"
        if kind == "COMBO" and widget not in FILES:
            assert value in options["options"], place
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= value <= options["max"], place
        if kind == "BOOLEAN":
            assert isinstance(value, bool), place
        if kind == "CONTROL":
            assert value == "fixed", "the same seed for all who press Run"


@pytest.mark.parametrize("name", NAMES)
def test_required_inputs_are_connected(name: str, infos: dict[str, Any]) -> None:
    for node in read(name)["nodes"]:
        if node["type"] in CORE:
            continue
        sockets = [n for n, (kind, _) in infos[node["type"]]["input"]["required"].items() if kind not in _WIDGET_TYPES]
        connected = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        assert set(sockets) <= connected, node["type"]


_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.mark.parametrize("name", NAMES)
def test_it_explains_itself_and_ends_in_a_video(name: str) -> None:
    nodes = read(name)["nodes"]
    notes = [node for node in nodes if node["type"] == "MarkdownNote"]
    assert len(notes) == 1 and "press Run" in notes[0]["widgets_values"][0].replace("Press", "press")
    assert any(node["type"] == "SaveVideo" for node in nodes)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_personal_is_in_it(name: str) -> None:
    text = json.dumps(read(name))
    assert not re.search(r"[A-Za-z]:\\\\|/home/|/root/|/Users/|/tmp/|localhost|127\.0\.0\.1", text)
    assert "undefined" not in text


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_thumbnail(name: str) -> None:
    """Of the graph, or of what it makes: then an animated WebP under the only ending that ComfyUI looks for."""
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format in ("JPEG", "WEBP") and abs(picture.width / picture.height - 16 / 9) < 0.02
        assert picture.format == "JPEG" or picture.is_animated
    assert path.stat().st_size < 400_000


def test_a_thumbnail_moves_and_is_small(tmp_path: Path) -> None:
    video = write_video(
        tmp_path / "made.mp4", torch.rand(8, 128, 400, 3, generator=torch.Generator().manual_seed(0)), 8
    )
    made = thumbnail(video)
    assert len(made) < 400_000
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.format == "WEBP" and picture.n_frames == 8 and picture.size == (480, 270)


@pytest.mark.parametrize("name", NEEDS)
def test_it_says_what_it_needs(name: str) -> None:
    """No file of anybody's machine is chosen; nodes of others are muted, so that Run does not stop at them."""
    nodes = read(name)["nodes"]
    (text,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert "**Needs**" in text and all(thing in text for thing in NEEDS[name])
    for base in [node for node in nodes if node["type"] == "MotionLoRA_LoadT2VModel"]:
        assert base["widgets_values"][2:] == [False, "none", "none"]
    foreign = [
        node for node in nodes if node["type"].startswith(("ADE_", "KSampler", "CheckpointLoader", "LoraLoader"))
    ]
    assert all(node["mode"] == 2 for node in foreign)
    assert ("AnimateDiff-Evolved" in NEEDS[name]) == bool(EVOLVED & {node["type"] for node in foreign})


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS])
def test_it_runs_as_shipped_without_a_download(name: str) -> None:
    """On the built-in model, with files that come with the pack."""
    nodes = read(name)["nodes"]
    (base,) = [node for node in nodes if node["type"] == "MotionLoRA_LoadT2VModel"]
    assert base["widgets_values"][0] == "playground (built-in)" and base["widgets_values"][2] is False
    texts = [value for node in nodes for value in node.get("widgets_values") or [] if isinstance(value, str)]
    for text in texts:
        if text.startswith("examples/"):
            assert (EXAMPLES / text.removeprefix("examples/")).is_file(), text
        elif "\n" not in text:
            assert not text.endswith((".safetensors", ".mp4")), f"{text} is on no new user's machine"


# Subgraph blueprints ------------------------------------------------------------------------------------------------


def blueprint(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one node of a blueprint, and what it stands for."""
    saved = json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    (outer,), (subgraph,) = saved["nodes"], saved["definitions"]["subgraphs"]
    assert outer["type"] == subgraph["id"] and saved["version"] == 0.4 and saved["extra"]["BlueprintDescription"]
    return outer, subgraph


def test_every_blueprint_is_there_and_nothing_else() -> None:
    assert sorted(path.name for path in SUBGRAPHS.iterdir()) == sorted(f"{name}.json" for name in BLUEPRINTS)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_sound(name: str, infos: dict[str, Any]) -> None:
    outer, subgraph = blueprint(name)
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    ends = {-10: subgraph["inputs"], -20: subgraph["outputs"]}
    for link in subgraph["links"]:
        source, target = link["origin_id"], link["target_id"]
        given = (ends[-10] if source == -10 else nodes[source]["outputs"])[link["origin_slot"]]
        taken = (ends[-20] if target == -20 else nodes[target]["inputs"])[link["target_slot"]]
        assert given["type"] == taken["type"] == link["type"]
    for kind in ("inputs", "outputs"):
        assert [slot["name"] for slot in outer[kind]] == [slot["name"] for slot in subgraph[kind]]
    assert {"base_model", "video"} == {slot["name"] for slot in outer["inputs"]}
    assert {"motion_lora", "stack"} == {slot["name"] for slot in outer["outputs"]}
    for node in nodes.values():
        assert_values_fit(node, infos[node["type"]])
    for node_id, widget in outer["properties"]["proxyWidgets"]:
        assert widget in {found for found, _, _ in widgets(infos[nodes[int(node_id)]["type"]])}
