"""The pictures of docs/METHODS.md: drawn by tools/draw_methods.py, shown, and true to the methods' rows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest

from motion_lora.adapters.highway import plan_highway
from motion_lora.adapters.targets import TARGETS
from motion_lora.backbones.registry import describe, empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.core.highway import Highway
from motion_lora.methods.table import METHODS
from motion_lora.training import TrainSettings

ROOT = Path(__file__).resolve().parents[1]

import draw_methods  # noqa: E402
import drawing  # noqa: E402

FOLDER = ROOT / "docs" / "images" / "methods"
NAMES = sorted(draw_methods.PICTURES)
DEFAULTS = {setting.name: setting.default for setting in fields(TrainSettings)}
SVG = "{http://www.w3.org/2000/svg}"


def training_rows() -> list[drawing.Row]:
    rows = [row for picture in draw_methods.PICTURES.values() for row in picture.rows]
    return [row for row in rows if isinstance(row, drawing.Row) and row.source]


def sections() -> dict[str, str]:
    """The subsections of "The methods" by their headings."""
    page = (ROOT / "docs" / "METHODS.md").read_text(encoding="utf-8")
    methods = page.split("\n## The methods\n")[1].split("\n## ")[0]
    return {part.split("\n", 1)[0]: part for part in methods.split("\n### ")[1:]}


@pytest.mark.parametrize("name", NAMES)
def test_committed_picture_is_what_the_script_draws(name: str) -> None:
    committed = (FOLDER / f"{name}.svg").read_text(encoding="ascii")
    assert committed == draw_methods.PICTURES[name].svg(), "run: python tools/draw_methods.py"


def test_no_picture_is_left_over() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_picture_is_readable_without_eyes_and_without_the_web(name: str) -> None:
    text = (FOLDER / f"{name}.svg").read_text(encoding="ascii")
    root = ElementTree.fromstring(text)
    title, description = (root.findtext(f"{SVG}{tag}") for tag in ("title", "desc"))
    assert title == draw_methods.PICTURES[name].title and description and len(description) > len(title)
    assert "href" not in text and "<script" not in text and "<style" not in text
    background = root.find(f"{SVG}rect")
    assert background is not None and background.get("fill") == "#ffffff", "it must read on a dark page too"
    # Below this it cannot be read at the README's width; subscripts are two smaller than their text.
    assert min(float(size) for size in re.findall(r'<text [^>]*font-size="([\d.]+)"', text)) >= 11


def test_every_section_shows_its_picture() -> None:
    shown = {
        heading: re.findall(r"!\[(.*?)\]\(images/methods/(.*?)\.svg\)", text) for heading, text in sections().items()
    }
    assert sorted(name for found in shown.values() for _, name in found) == NAMES
    for heading, found in shown.items():
        assert len(found) == 1, f"{heading} shows {len(found)} pictures"
        (alt, name), named = found[0], re.findall(r"`([a-z-]+)`", heading)
        assert alt == draw_methods.PICTURES[name].title
        assert heading.startswith(draw_methods.PICTURES[name].heading)
        assert name in named or name in ("ablations", "absorbers-and-editing")


def test_every_method_is_drawn() -> None:
    # Those on joint attention look like the ones that they are carried over from.
    assert {row.source[0] for row in training_rows() if row.source} == {n for n in METHODS if "joint-" not in n}
    for name in ("motiondirector", "separate-motion-appearance"):
        drawn = {row.source for row in training_rows() if row.source and row.source[0] == name}
        assert drawn == {(name, 0, 0), (name, 0, 1)}


@pytest.mark.parametrize("row", training_rows(), ids=lambda row: f"{row.source}-{row.title}")
def test_row_is_the_pass_of_its_method(row: drawing.Row) -> None:
    assert row.source
    method, stage_number, pass_number = row.source
    stage = METHODS[method].stages[stage_number]
    a_pass = stage.passes[pass_number]
    level = row.level
    assert level.bypass is a_pass.bypass and not level.uses
    assert level.trains == a_pass.trains
    # An absorber is active in every pass, where there is one.
    assert set(level.holds) - {"absorber"} == set(a_pass.holds)
    presets = {part.name: part.targets for part in stage.parts}
    for name in {*level.trains, *level.holds} & set(presets):
        assert level.targets[name] == presets[name]
    (strip, *_) = row.strips
    assert (len(strip.faded) == len(strip.order) - 1) is (a_pass.frames == "one")
    assert strip.patches is (stage.batch == "frames")
    assert any("L_{ad}" in line for line in row.result) is (a_pass.loss == "debiased")
    fates = " ".join(words for state, words in row.fate if state == "kept")
    keeps = set(METHODS[method].keeps) & set(level.trains)
    assert bool(fates) is bool(keeps), "what is kept is in the file"


def test_tokens_are_trained_beside_the_spatial_absorber() -> None:
    # Many Looks holds its absorber for the clip alone; its row shows a copy's caption, which has no tokens.
    for name, states in {"customize-a-video": ["trains", "holds"], "many-looks": ["trains"]}.items():
        rows = draw_methods.PICTURES[name].rows
        assert [row.tokens for row in rows if isinstance(row, drawing.Row) and row.tokens] == states
    stages = METHODS["customize-a-video"].stages
    assert [stages[index].parts[0].name for index in (0, 1)] == ["absorber", "tokens"]
    assert stages[0].passes[0].bypass and stages[1].passes[0].bypass


@pytest.mark.parametrize("preset", [preset for preset in drawing.ADAPTED if preset])
def test_projections_are_those_of_the_target_preset(preset: str) -> None:
    row = TARGETS[preset]
    said = set(re.findall(r"\w+", drawing.ADAPTED[preset]))
    assert ("FF" in said) is row.feed_forward
    assert ("Conv" in said) is row.convolutions
    if row.layer == "spatial":
        assert row.projections == TARGETS["spatial-attention"].projections
        assert said - {"FF"} == {{"first": "self", "second": "cross"}[name] for name in row.attentions}
    else:
        names = {"query": "Q", "key": "K", "value": "V", "output": "Out"}
        assert said - {"FF", "Conv"} == {names[name] for name in row.projections}
        assert row.attentions == ("first", "second")


def test_purification_shows_what_its_presets_adapt() -> None:
    for preset, _, adapted in draw_methods.PURIFIED:
        assert set(adapted.split()) == set(re.findall(r"\w+", drawing.ADAPTED[preset]))


@pytest.mark.parametrize("preset", sorted(draw_methods.HIGHWAYS))
def test_skips_are_those_of_the_highway(preset: str) -> None:
    unet = empty_network(MODELSCOPE_UNET_CONFIG)
    skips = {(skip.up_block, skip.position): skip.index for skip in describe(unet).skips}
    routes = plan_highway(unet, Highway(preset))
    moved = sorted(skips[route.up_block, route.position] for route in routes if route.spatial)
    scaled = sorted(skips[route.up_block, route.position] for route in routes if route.scale != 1.0)
    assert len(skips) == draw_methods.SKIPS
    assert (tuple(moved), tuple(scaled)) == draw_methods.HIGHWAYS[preset]


def test_numbers_are_the_defaults() -> None:
    many_looks = {**DEFAULTS, **METHODS["many-looks"].defaults}
    assert many_looks["look_strength"] == draw_methods.LOOK_STRENGTH
    assert many_looks["look_similarity"] == draw_methods.LOOK_SIMILARITY
    assert Highway().scale == draw_methods.HIGHWAY_SCALE
    for name in ("motiondirector", "separate-motion-appearance"):
        share = METHODS[name].defaults["spatial_path_probability"]
        assert share == draw_methods.SPATIAL_PATH_PROBABILITY
        assert METHODS[name].defaults["debias_beta"] == 1.0, "the picture says sqrt(2) x_f - x_a"
    assert METHODS["motiondirector-image"].defaults["horizontal_flip"] == 0.5
