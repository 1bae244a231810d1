"""The own format: what goes in comes out bit for bit, what does not fit is refused, what is private stays out."""

from __future__ import annotations

import getpass
import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lora_samples import (
    appearance_sample,
    everything_sample,
    full_size_unet,
    modules_like,
    motion_sample,
    random_lora,
    state_bytes,
)
from PIL import Image
from tiny import tiny_unet

from motion_lora.adapters.fit import check_fits
from motion_lora.backbones.lora import layers_text
from motion_lora.core.absorber import Absorber, PlaceholderTokens
from motion_lora.core.errors import LoRAFileError, OutputError
from motion_lora.core.identity import BaseIdentity
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.metadata import Provenance, build_metadata, without_paths
from motion_lora.files import own as files
from motion_lora.files.absorber_file import load_absorber, save_absorber
from motion_lora.files.container import read_header, serialize
from motion_lora.files.inspection import inspect
from motion_lora.files.own import load_lora, save_lora
from motion_lora.files.preview import write_preview
from motion_lora.files.reader import load_any

BASE = BaseIdentity("text-to-video-ms-1.7b", "c0ffee", "f00d")


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(0)


def trained(unet, seed: int = 0, **changes) -> LoRA:
    lora = motion_sample(unet, rank=2, seed=seed, scale=0.7)
    values = {
        "title": "circling",
        "method": "customize-a-video",
        "target_preset": "temporal-attention",
        "base": BASE,
        "alpha": 0.7,
        "captions": ("a cat circling over snow", "a dog circling"),
        "appearance_captions": ("a cat over snow", ""),
        "trigger_words": ("circling",),
        "num_frames": 16,
        "height": 256,
        "width": 384,
        "fps": 8.0,
        "steps": 500,
        "learning_rate": 5e-4,
        "seed": 3,
        "settings": {"method": "customize-a-video", "rank": 2, "output": "/home/jane/out"},
        "clips": ("ab" * 32,),
        "prediction_type": "epsilon",
    }
    return LoRA(lora.layers, build_metadata(Provenance(**{**values, **changes}), lora, layers_text(lora)))


def same_bits(a: LoRA, b: LoRA) -> bool:
    def equal(x: LoRALayer, y: LoRALayer) -> bool:
        tensors = torch.equal(x.down, y.down) and torch.equal(x.up, y.up) and x.down.dtype == y.down.dtype
        return tensors and x.scale == y.scale and torch.equal(x.delta(), y.delta())

    return set(a.layers) == set(b.layers) and all(equal(a.layers[name], b.layers[name]) for name in a.layers)


# Round trips


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1, 1 / 3, math.pi, -2.0])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_lora_comes_back_bit_for_bit(tmp_path, unet, scale, metadata):
    lora = motion_sample(unet, rank=3, scale=scale)
    found = load_lora(save_lora(tmp_path / "x.safetensors", lora, metadata=metadata))
    assert same_bits(found, lora)
    assert found.fingerprint() == lora.fingerprint()
    assert check_fits(found, unet).matched == len(lora)


def test_scales_and_ranks_may_differ_from_layer_to_layer(tmp_path, unet):
    names = modules_like(unet, "attn1.to_q", "conv1.2", path="temporal")
    layers = {}
    for i, name in enumerate(names):
        layers |= random_lora(unet, [name], rank=1 + i % 3, seed=i, scale=0.1 * (i + 1)).layers
    assert same_bits(load_lora(save_lora(tmp_path / "x.safetensors", LoRA(layers))), LoRA(layers))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_by_its_last_bit(tmp_path, unet, dtype):
    lora = everything_sample(unet)
    found = load_lora(save_lora(tmp_path / "x.safetensors", lora, dtype=dtype))
    bits = {torch.float16: 11, torch.bfloat16: 8}[dtype]
    for module, layer in lora.layers.items():
        assert found.layers[module].down.dtype == dtype
        # the second term is fp16's smallest step, for numbers near zero
        error = (found.layers[module].down.float() - layer.down).abs()
        assert (error <= layer.down.abs() * 2.0**-bits + 2.0**-25).all()
        norm = (found.layers[module].delta() - layer.delta()).norm() / layer.delta().norm()
        assert norm <= 2.0 ** -(bits - 1)


def test_saving_again_gives_the_same_file(tmp_path, unet):
    first = save_lora(tmp_path / "x.safetensors", trained(unet))
    again = save_lora(tmp_path / "y" / "x.safetensors", load_lora(first))
    other = save_lora(tmp_path / "z" / "x.safetensors", trained(unet))
    assert first.read_bytes() == again.read_bytes() == other.read_bytes()


def test_full_size_names(tmp_path):
    """All 136 modules of Customize-A-Video on ModelScope's network, rank 1."""
    unet = full_size_unet()
    lora = random_lora(
        unet,
        modules_like(
            unet,
            *(f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")),
            path="temporal",
        ),
        1,
    )
    assert len(lora) == 136
    found = load_lora(save_lora(tmp_path / "x.safetensors", lora, dtype=torch.float16))
    assert check_fits(found, unet).matched == 136


# What others read in it


def test_tensors_have_the_names_that_peft_gives_them(tmp_path, unet):
    lora = trained(unet)
    tensors = safetensors.torch.load_file(save_lora(tmp_path / "x.safetensors", lora))
    module = "transformer_in.transformer_blocks.0.attn1.to_q"
    assert torch.equal(tensors[f"unet.{module}.lora_A.weight"], lora.layers[module].down)
    assert torch.equal(tensors[f"unet.{module}.lora_B.weight"], lora.layers[module].up)
    assert len(tensors) == 2 * len(lora)


def test_a_reader_that_knows_only_peft_gets_the_strength_right(tmp_path, unet):
    lora = trained(unet)
    config = json.loads(read_header(save_lora(tmp_path / "x.safetensors", lora)).metadata["lora_adapter_metadata"])
    assert config["unet.lora_alpha"] / config["unet.r"] == pytest.approx(0.7)
    plain = motion_sample(unet)
    assert "lora_adapter_metadata" not in read_header(save_lora(tmp_path / "y.safetensors", plain)).metadata


def test_metadata_says_everything_that_determines_the_result(tmp_path, unet):
    found = read_header(save_lora(tmp_path / "walk v1.safetensors", trained(unet))).metadata
    own = {key.removeprefix("motion_lora."): value for key, value in found.items() if key.startswith("motion_lora.")}
    plain = {
        "format_version": "1", "kind": "lora", "scale": "0.7", "method": "customize-a-video", "layers": "temporal",
        "target_preset": "temporal-attention", "rank": "2", "alpha": "0.7", "base_name": BASE.name,
        "base_config_hash": BASE.config_hash, "base_weights_hash": BASE.weights_hash, "num_frames": "16",
        "height": "256", "width": "384", "fps": "8.0", "steps": "500", "learning_rate": "0.0005", "seed": "3",
    }  # fmt: skip
    assert {key: own[key] for key in plain} == plain
    assert json.loads(own["captions"]) == ["a cat circling over snow", "a dog circling"]
    assert json.loads(own["appearance_captions"]) == ["a cat over snow"]
    assert json.loads(own["trigger_words"]) == ["circling"]
    assert json.loads(own["clips"]) == ["ab" * 32]
    assert set(json.loads(own["versions"])) >= {"torch", "diffusers", "peft", "transformers"}


def test_lora_managers_find_what_they_read(tmp_path, unet):
    found = read_header(save_lora(tmp_path / "walk v1.safetensors", trained(unet))).metadata
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "text-to-video-ms-1.7b/lora"
    assert found["modelspec.implementation"] == "diffusers"
    assert found["modelspec.title"] == "circling"
    assert found["modelspec.resolution"] == "384x256"
    assert found["modelspec.trigger_phrase"] == "circling"
    assert found["ss_network_dim"] == "2"
    assert float(found["ss_network_alpha"]) == pytest.approx(0.7 * 2)
    assert found["ss_base_model_version"] == "text-to-video-ms-1.7b"
    assert found["ss_output_name"] == "walk v1"
    assert json.loads(found["ss_tag_frequency"])["motion_lora"]["circling"] == 1
    assert found["sshs_model_hash"] == found["modelspec.hash_sha256"].removeprefix("0x")


def test_model_hash_is_that_of_the_tensor_data(tmp_path, unet):
    import hashlib

    path = save_lora(tmp_path / "x.safetensors", trained(unet))
    start = read_header(path).data_start
    assert read_header(path).metadata["sshs_model_hash"] == hashlib.sha256(path.read_bytes()[start:]).hexdigest()


def test_without_metadata_the_file_says_only_how_to_read_it(tmp_path, unet):
    path = save_lora(tmp_path / "x.safetensors", trained(unet), metadata=False)
    allowed = {
        "format",
        "motion_lora.format_version",
        "motion_lora.kind",
        "motion_lora.scale",
        "motion_lora.fingerprint",
        "motion_lora.acts_in",
        "motion_lora.backbone",
        "lora_adapter_metadata",
    }
    assert set(read_header(path).metadata) == allowed


def test_no_paths_and_no_user_names(tmp_path, unet):
    home = str(Path.home())
    workflow = json.dumps({"nodes": [{"widgets_values": [f"{home}/clips/cat.mp4", "C:\\Users\\jane doe\\x.mp4", 7]}]})
    lora = trained(
        unet,
        description=f"see {home}/notes/walk.txt",
        workflow=workflow,
        settings={"output": "/home/jane doe/out/walk.safetensors", "cache": "\\\\server\\jane\\share"},
    )
    raw = save_lora(tmp_path / "x.safetensors", lora).read_bytes()
    text = raw[8 : read_header(tmp_path / "x.safetensors").data_start].decode()
    for private in (home + "/", "jane", "/home/", "Users", f"/{getpass.getuser()}/", str(tmp_path)):
        assert private not in text, private
    assert "cat.mp4" in text
    assert "walk.safetensors" in text


@pytest.mark.parametrize(
    "text",
    ["a cat and/or a dog at 24/7", "https://example.org/a/b/c", "1/2/3", "w/ a hat", "text-to-video/lora",
     '{"a": "b/c", "n": 1.5}', "[1, 2]", "{curly but no json", "\u732b/\u72ac"],
)  # fmt: skip
def test_what_is_no_path_is_left_alone(text):
    assert without_paths(text) == text


def test_a_workflow_too_large_for_a_header_is_left_out(tmp_path, unet, caplog):
    path = save_lora(tmp_path / "x.safetensors", trained(unet, workflow=json.dumps(["x" * 600_000])))
    assert "motion_lora.workflow" not in read_header(path).metadata
    assert "left out" in caplog.text
    small = save_lora(tmp_path / "y.safetensors", trained(unet, workflow='{"nodes": []}'))
    assert read_header(small).metadata["motion_lora.workflow"] == '{"nodes": []}'


# Writing


def test_saving_verifies_itself(tmp_path, unet, monkeypatch):
    lora = motion_sample(unet)
    save_lora(tmp_path / "x.safetensors", lora)
    before = (tmp_path / "x.safetensors").read_bytes()
    real = files.serialize

    def flip_one_bit(tensors, metadata):
        raw = bytearray(real(tensors, metadata))
        raw[-1] ^= 1
        return bytes(raw)

    monkeypatch.setattr(files, "serialize", flip_one_bit)
    with pytest.raises(LoRAFileError, match="reading it back"):
        save_lora(tmp_path / "x.safetensors", motion_sample(unet, seed=5))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == before


@pytest.mark.parametrize("fault", ["empty", "nan", "inf", "overflow", "scale"])
def test_what_must_not_be_written_is_not(tmp_path, unet, fault):
    lora = motion_sample(unet)
    module, layer = next(iter(lora.layers.items()))
    broken = layer.down.clone()
    broken[0, 0] = {"nan": math.nan, "inf": math.inf, "overflow": 1e6}.get(fault, 1.0)
    layers = {
        "empty": {},
        "scale": {module: LoRALayer(layer.down, layer.up, math.nan)},
    }.get(fault, {module: LoRALayer(broken, layer.up)})
    with pytest.raises(LoRAFileError, match="nothing to save" if fault == "empty" else "finite"):
        save_lora(tmp_path / "x.safetensors", LoRA(layers), dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_overwriting_can_be_refused(tmp_path, unet):
    save_lora(tmp_path / "x.safetensors", motion_sample(unet))
    with pytest.raises(OutputError, match="exists"):
        save_lora(tmp_path / "x.safetensors", motion_sample(unet), overwrite=False)


# Reading


def rewritten(path: Path, change) -> Path:
    """The file with its tensors and metadata changed, its container whole."""
    tensors, metadata = safetensors.torch.load_file(path), dict(read_header(path).metadata)
    change(tensors, metadata)
    path.write_bytes(serialize(tensors, metadata))
    return path


def _set(key, value):
    return lambda tensors, metadata: metadata.__setitem__(key, value)


FAULTS = {
    "newer version": (_set("motion_lora.format_version", "2"), "update"),
    "version 0": (_set("motion_lora.format_version", "0"), "version"),
    "version text": (_set("motion_lora.format_version", "one"), "version"),
    "absorber": (_set("motion_lora.kind", "absorber"), "absorber"),
    "kind": (_set("motion_lora.kind", "cake"), "cake"),
    "scale text": (_set("motion_lora.scale", "strong"), "scale"),
    "scale of one layer": (_set("motion_lora.scale", '{"a": 1.0}'), "scale"),
    "scale nan": (_set("motion_lora.scale", "NaN"), "finite"),
    "scale huge": (_set("motion_lora.scale", "1" + "0" * 400), "scale"),
    "foreign": (lambda t, m: m.pop("motion_lora.format_version"), "not in the Motion LoRA format"),
    "half": (lambda t, m: t.pop("unet.transformer_in.transformer_blocks.0.attn1.to_q.lora_A.weight"), "to_q"),
    "unknown key": (lambda t, m: t.__setitem__("unet.x.alpha", torch.ones(1)), "unet.x.alpha"),
    "nothing": (lambda t, m: t.clear(), "no LoRA layers"),
    "nan": (lambda t, m: next(iter(t.values())).fill_(math.nan), "finite"),
    "whole numbers": (lambda t, m: t.update({k: v.int() for k, v in t.items()}), "belong"),
    "no rank": (lambda t, m: t.update({k: v[:0] for k, v in t.items() if "lora_A" in k}), "belong"),
    "one dimension": (lambda t, m: t.update({k: v.flatten() for k, v in t.items()}), "shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_were_damaged_or_edited_are_refused(tmp_path, unet, fault):
    change, named = FAULTS[fault]
    path = rewritten(save_lora(tmp_path / "x.safetensors", motion_sample(unet)), change)
    with pytest.raises(LoRAFileError, match=named) as caught:
        load_lora(path)
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_file_is_refused(tmp_path, unet):
    module = modules_like(unet, "attn1.to_q", path="temporal")[0]
    whole = save_lora(tmp_path / "x.safetensors", random_lora(unet, [module], 1)).read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(LoRAFileError):
            load_lora(tmp_path / "x.safetensors")


def test_a_file_of_an_old_version_is_migrated(tmp_path, unet, monkeypatch):
    """Version 2 of a future day renames a key; files of version 1 still load."""
    lora = motion_sample(unet, scale=0.3)
    path = save_lora(tmp_path / "x.safetensors", lora)

    def to_version_2(tensors, metadata):
        return tensors, {**metadata, "motion_lora.method": "migrated"}

    monkeypatch.setattr(files, "FORMAT_VERSION", 2)
    monkeypatch.setitem(files.MIGRATIONS, 1, to_version_2)
    found = load_lora(path)
    assert same_bits(found, lora)
    assert found.metadata["motion_lora.method"] == "migrated"
    assert found.metadata["motion_lora.format_version"] == "2"


def test_every_old_version_has_its_migration():
    assert set(files.MIGRATIONS) == set(range(1, files.FORMAT_VERSION))


# Fitting


def test_what_does_not_fit_names_the_keys_and_leaves_the_base_alone(unet):
    before, full = state_bytes(unet), full_size_unet()
    lora = random_lora(full, modules_like(full, "attn1.to_q", path="temporal")[:2], 1)
    with pytest.raises(LoRAFileError, match=r"other sizes.*transformer_in.*another network"):
        check_fits(lora, unet)
    lora = random_lora(full, modules_like(full, "3.temp_attentions.0.transformer_blocks.0.attn1.to_q")[:1], 1)
    with pytest.raises(LoRAFileError, match=r"0 of 1 layers.*up_blocks\.3"):
        check_fits(lora, unet)
    assert state_bytes(unet) == before


def test_another_base_is_a_warning_or_a_refusal(unet):
    lora = trained(unet)
    other = BaseIdentity("zeroscope", BASE.config_hash, "beef")
    assert check_fits(lora, unet, BASE).warnings == ()
    assert check_fits(lora, unet).warnings == ()
    (warning,) = check_fits(lora, unet, other).warnings
    assert "text-to-video-ms-1.7b" in warning
    assert "zeroscope" in warning
    with pytest.raises(LoRAFileError, match="zeroscope"):
        check_fits(lora, unet, other, strict=True)
    assert check_fits(motion_sample(unet), unet, other, strict=True).warnings == ()


# Appearance absorbers


def absorber(unet, *, spatial: bool = True, tokens: bool = True) -> Absorber:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = PlaceholderTokens(("<look-1>", "<look-2>", "<look-3>"), rows, ("red circle", "red circle", "sand"))
    lora = appearance_sample(unet, rank=1, scale=0.5)
    said = build_metadata(Provenance(captions=("a red circle over sand",), base=BASE), lora, layers_text(lora))
    return Absorber(lora if spatial else None, found if tokens else None, said)


@pytest.mark.parametrize(("spatial", "tokens"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("metadata", [True, False])
def test_an_absorber_comes_back_bit_for_bit(tmp_path, unet, spatial, tokens, metadata):
    saved = absorber(unet, spatial=spatial, tokens=tokens)
    found = load_absorber(save_absorber(tmp_path / "x.safetensors", saved, metadata=metadata))
    assert found.fingerprint() == saved.fingerprint()
    assert (found.spatial is None, found.tokens is None) == (saved.spatial is None, saved.tokens is None)
    if found.spatial is not None and saved.spatial is not None:
        assert same_bits(found.spatial, saved.spatial)
    if found.tokens is not None and saved.tokens is not None:
        assert torch.equal(found.tokens.rows, saved.tokens.rows)
        assert (found.tokens.names, found.tokens.words) == (saved.tokens.names, saved.tokens.words)
    assert ("motion_lora.captions" in found.metadata) == metadata


def test_an_absorber_is_no_lora_and_a_lora_no_absorber(tmp_path, unet):
    """An absorber that were applied while sampling would put the old look into the new video."""
    path = save_absorber(tmp_path / "x.safetensors", absorber(unet))
    for read in (load_lora, lambda p: load_any(p, unet)):
        with pytest.raises(LoRAFileError, match="an appearance absorber"):
            read(path)
    with pytest.raises(LoRAFileError, match="a LoRA, not an appearance absorber"):
        load_absorber(save_lora(tmp_path / "y.safetensors", motion_sample(unet)))
    report = inspect(path)
    assert report["kind"] == "absorber"
    assert report["tokens"] == {"names": ["<look-1>", "<look-2>", "<look-3>"], "width": 32}


def test_absorbers_that_must_not_be_written_are_not(tmp_path, unet):
    for value in (Absorber(), Absorber(weights={"conv_in.weight": torch.ones(1)})):
        with pytest.raises(LoRAFileError):
            save_absorber(tmp_path / "x.safetensors", value)
    rows = torch.full((1, 32), math.nan)
    with pytest.raises(LoRAFileError, match="finite"):
        save_absorber(tmp_path / "x.safetensors", Absorber(tokens=PlaceholderTokens(("<a>",), rows)))
    assert not list(tmp_path.iterdir())


ABSORBER_FAULTS = {
    "no names": lambda t, m: m.pop("motion_lora.token_names"),
    "names damaged": _set("motion_lora.token_names", "{"),
    "names of another kind": _set("motion_lora.token_names", '{"a": 1}'),
    "fewer names": _set("motion_lora.token_names", '["<a>"]'),
    "one name twice": _set("motion_lora.token_names", '["<a>", "<a>", "<b>"]'),
    "fewer words": _set("motion_lora.token_words", '["sand"]'),
    "rows flat": lambda t, m: t.update({"tokens.rows": t["tokens.rows"].flatten()}),
    "nothing": lambda t, m: t.clear(),
    "more": lambda t, m: t.update({"tokens.other": torch.ones(2)}),
}


@pytest.mark.parametrize("fault", ABSORBER_FAULTS)
def test_absorbers_that_were_damaged_or_edited_are_refused(tmp_path, unet, fault):
    path = rewritten(save_absorber(tmp_path / "x.safetensors", absorber(unet)), ABSORBER_FAULTS[fault])
    with pytest.raises(LoRAFileError):
        load_absorber(path)


# Previews


def test_a_preview_lies_beside_the_file_where_managers_look(tmp_path):
    frames = torch.rand(5, 300, 520, 3, generator=torch.Generator().manual_seed(0))
    picture, video = write_preview(tmp_path / "walk v1.5.safetensors", frames, 8.0)
    assert (picture.name, video.name) == ("walk v1.5.preview.png", "walk v1.5.preview.mp4")
    with Image.open(picture) as image:
        assert image.size == (512, 2 * 148)
    assert video.stat().st_size > 1000
