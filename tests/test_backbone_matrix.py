"""The same properties on every backbone, each with a tiny real network: only backbones/ knows which it is."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from lora_samples import predict, random_lora, replica_of, run, state_bytes
from tiny import BACKBONE_UNETS, TEXT_WIDTH, tiny_latents, tiny_motion_unet, tiny_pipeline
from torch import nn
from training_samples import Listener, largest_change, quick, same_weights, sample_clip, weights_of

from motion_lora.adapters.apply import applied
from motion_lora.adapters.arithmetic import merge
from motion_lora.adapters.highway import appearance_highway, plan_highway
from motion_lora.adapters.targets import TARGETS, parameter_count, target_modules
from motion_lora.backbones.bypass import temporal_bypass, temporal_layers
from motion_lora.backbones.checkpointing import gradient_checkpointing
from motion_lora.backbones.classes import NETWORK_CLASSES, is_video_network
from motion_lora.backbones.lora import layer_of, layers_text, part
from motion_lora.backbones.motion_unet import ANIMATEDIFF_CONFIG, FrameNorm, normalise_per_frame
from motion_lora.backbones.registry import BACKBONES, describe, empty_network, named, of_keys, of_network
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.axes import fold_frames, unfold_frames
from motion_lora.core.clip import Clip
from motion_lora.core.curves import FrameCurve, Schedule
from motion_lora.core.errors import ClipError, LoRAFileError, ModelError, SettingsError
from motion_lora.core.highway import Highway
from motion_lora.core.lora import JOINT, SPATIAL, TEMPORAL, LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.absorber_file import load_absorber, save_absorber
from motion_lora.files.container import read_header, read_tensors, serialize
from motion_lora.files.inspection import inspect
from motion_lora.files.own import BACKBONE_KEY, load_lora, save_lora
from motion_lora.files.reader import load_any
from motion_lora.files.writers import export_kohya, export_native, export_peft, native_tensors
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import train

FRAMES = 3
# Wan has neither temporal nor spatial layers: what is told of those is told of the others.
UNETS = [name for name, backbone in BACKBONES.items() if describe(BACKBONE_UNETS[name](0)).temporal_transformers]
MOTION_OF = dict.fromkeys(BACKBONES, "temporal-attention") | {"wan": "joint-qk"}
LOOK_OF = dict.fromkeys(BACKBONES, "spatial-attention") | {"wan": "joint-attention"}
FULL_OF = dict.fromkeys(BACKBONES, "temporal-full") | {"wan": "joint-all"}
METHODS_OF = dict.fromkeys(BACKBONES, ("customize-a-video", "motiondirector", "separate-motion-appearance")) | {
    "wan": ("joint-customize-a-video", "joint-motiondirector", "joint-lora")
}
TRAINED = [(name, method) for name in BACKBONES for method in METHODS_OF[name]] + [("unet3d", "spatial-temporal")]


# Built once each; the fixtures themselves are of every test, since some tests choose their backbones.
made_base = functools.cache(lambda backbone: BACKBONE_UNETS[backbone](0))
made_pipeline = functools.cache(lambda backbone: tiny_pipeline(levels=2, backbone=backbone))


@pytest.fixture(params=list(BACKBONES))
def backbone(request) -> str:
    return request.param


@pytest.fixture
def base(backbone):
    return made_base(backbone)


@pytest.fixture
def unet(base):
    return replica_of(base)


@pytest.fixture
def pipeline(backbone) -> VideoPipeline:
    return made_pipeline(backbone)


def presets_of(unet: nn.Module) -> list[str]:
    """Those of its layers; convolutions over frames alone need some."""
    layout = describe(unet)
    some, joint = bool(layout.temporal_convolutions), bool(layout.joint_transformers)
    own = {name: row for name, row in TARGETS.items() if (row.layer == JOINT) == joint}
    return [name for name, row in own.items() if row.attentions or row.layer == SPATIAL or some]


def clip_for(pipeline: VideoPipeline, **changes: Any) -> Clip:
    """As many frames as it takes."""
    return sample_clip(num_frames=5 if pipeline.frames_fault(3) else 3, **changes)


def lora_on(unet: nn.Module, preset: str, seed: int = 0) -> LoRA:
    lora = random_lora(unet, list(target_modules(unet, preset)), 2, seed)
    return LoRA(lora.layers, lora.metadata, backbone=of_network(unet).name)


def image_network(unet: nn.Module) -> UNet2DConditionModel:
    """diffusers' own image network with the spatial weights of `unet`."""
    config = dict(unet.config)
    three = "attention_head_dim" in config
    heads = [width // config["attention_head_dim"] for width in config["block_out_channels"]] if three else 4
    kinds = {key: [name.replace("3D", "2D").replace("Motion", "2D") for name in config[key]] for key in _BLOCK_TYPES}
    image = UNet2DConditionModel(
        sample_size=config["sample_size"],
        block_out_channels=config["block_out_channels"],
        layers_per_block=config["layers_per_block"],
        cross_attention_dim=config["cross_attention_dim"],
        # In this class the entry is the number of heads.
        attention_head_dim=heads,
        norm_num_groups=config["norm_num_groups"],
        use_linear_projection=three,
        **kinds,
    )
    own = of_network(unet)
    image.load_state_dict({n: w for n, w in unet.state_dict().items() if own.layer_of(n) == SPATIAL})
    return image.eval()


_BLOCK_TYPES = ("down_block_types", "up_block_types")


# Recognising


def test_every_backbone_has_a_tiny_network_and_a_known_class(backbone, base):
    own = of_network(base)
    assert (own.name, named(backbone)) == (backbone, own)
    assert tuple(each.network_class.__name__ for each in BACKBONES.values()) == NETWORK_CLASSES
    assert is_video_network(json.dumps({"_class_name": own.network_class.__name__}))
    assert of_network(empty_network(own.reference_config)) is own
    temporal = [name for name, _ in base.named_parameters() if own.layer_of(name) != SPATIAL]
    assert of_keys(temporal) is own
    assert not any(other.recognises_keys(temporal) for other in BACKBONES.values() if other is not own)


def test_unknown_ones_are_refused_by_name():
    with pytest.raises(LoRAFileError, match="backbone 'ltx', which is not one of unet3d, animatediff, wan"):
        named("ltx")
    with pytest.raises(ModelError, match="Linear: not a network that is known"):
        of_network(nn.Linear(2, 2))


# Bypass


@torch.no_grad()
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("backbone", UNETS)
def test_without_time_it_is_diffusers_image_network(backbone, levels):
    unet = BACKBONE_UNETS[backbone](0, levels=levels)
    latents = tiny_latents(num_frames=FRAMES)
    text = torch.randn(1, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(9))
    with temporal_bypass(unet):
        video = predict(unet, latents, 321, text)
    images = image_network(unet)(fold_frames(latents), 321, text.expand(FRAMES, -1, -1)).sample
    torch.testing.assert_close(video, unfold_frames(images, 1), rtol=0, atol=1e-5)
    assert not torch.allclose(predict(unet, latents, 321, text), video, atol=1e-2)


@torch.no_grad()
def test_frames_are_apart_inside_the_bypass_alone(unet):
    before = run(unet, FRAMES)
    with pytest.raises(ZeroDivisionError), temporal_bypass(unet):
        assert not torch.allclose(run(unet, FRAMES), before, atol=1e-2)
        raise ZeroDivisionError
    assert torch.equal(run(unet, FRAMES), before)
    named_layers = {name for name, _ in temporal_layers(unet)}
    layout = describe(unet)
    assert named_layers == {*layout.temporal_transformers, *layout.temporal_convolutions}
    own = of_network(unet)
    assert all(own.layer_of(name) == TEMPORAL for name in named_layers)


# Targets


def test_presets_stay_on_their_layer_and_count_right(base):
    own, places = of_network(base), {name: place for place, (name, _) in enumerate(base.named_modules())}
    for preset in presets_of(base):
        names = target_modules(base, preset)
        assert {own.layer_of(name) for name in names} == {TARGETS[preset].layer}
        assert [places[name] for name in names] == sorted(places[name] for name in names)
        sizes = [base.get_submodule(name).weight for name in names]
        assert parameter_count(base, preset, 3) == 3 * sum(len(weight) + weight[0].numel() for weight in sizes)


ANIMATEDIFF_COUNTS = [
    # (middle block, preset, modules, parameters per rank): shared facts of v3 (20 modules) and v2 (21)
    (False, "temporal-attention", 160, 281_600),
    (False, "tap-qk", 80, 140_800),
    (False, "tap-k", 40, 70_400),
    (False, "temporal-all", 200, 281_600 + 246_400),
    (True, "temporal-attention", 168, 302_080),
    (True, "tap-qk", 84, 151_040),
    (True, "tap-k", 42, 75_520),
    (True, "temporal-all", 210, 302_080 + 264_320),
]


@pytest.mark.parametrize(("mid", "preset", "modules", "parameters"), ANIMATEDIFF_COUNTS)
def test_counts_of_animatediff_at_full_size(mid, preset, modules, parameters):
    network = empty_network({**ANIMATEDIFF_CONFIG, "use_motion_mid_block": mid})
    assert len(target_modules(network, preset)) == modules
    assert parameter_count(network, preset, 1) == parameters
    assert len(temporal_layers(network)) == (21 if mid else 20)


# Stack


def test_merged_and_varying_agree_and_leave_the_base_alone(base, unet):
    before = state_bytes(base)
    for preset in presets_of(base):
        stack = AdapterStack((StackEntry(lora_on(base, preset), 0.5),))
        outputs = []
        for merging in (True, False):
            with applied(unet, stack, FRAMES, merge=merging):
                outputs.append(run(unet, FRAMES))
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
        assert not torch.equal(outputs[0], run(unet, FRAMES))
    assert state_bytes(unet) == before


@pytest.mark.parametrize("backbone", UNETS)
def test_strengths_of_paths(base, unet):
    motion, look = lora_on(base, "temporal-attention"), lora_on(base, "spatial-attention", 1)
    both = LoRA({**motion.layers, **look.layers}, backbone=motion.backbone)
    with applied(unet, AdapterStack((StackEntry(both, temporal_strength=0.0),)), FRAMES):
        without_motion = run(unet, FRAMES)
    with applied(unet, AdapterStack((StackEntry(look),)), FRAMES):
        assert torch.equal(run(unet, FRAMES), without_motion)


def test_strengths_of_blocks(base, unet, backbone):
    motion = lora_on(base, MOTION_OF[backbone])
    own = of_network(base)
    blocks = {own.block_of(module): 0.0 for module in motion}
    with applied(unet, AdapterStack((StackEntry(motion, block_strengths=blocks),)), FRAMES):
        assert torch.equal(run(unet, FRAMES), run(base, FRAMES))
    with (
        pytest.raises(SettingsError, match="no such block: nowhere"),
        applied(unet, AdapterStack((StackEntry(motion, block_strengths={"nowhere": 1.0}),)), FRAMES),
    ):
        pass


def test_strength_over_steps(base, unet, backbone):
    lora = lora_on(base, FULL_OF[backbone])
    with applied(unet, AdapterStack((StackEntry(lora, steps=Schedule(end=0.5)),)), FRAMES) as work:
        work.at(1.0)
        assert torch.equal(run(unet, FRAMES), run(base, FRAMES))


@pytest.mark.parametrize("backbone", UNETS)
def test_strength_over_frames(base, unet):
    lora = lora_on(base, "temporal-full")
    flat, zero = FrameCurve(curve=((0.0, 0.7), (1.0, 0.7))), FrameCurve(curve=((0.0, 0.0), (0.9, 0.0), (1.0, 1.0)))
    outputs = []
    for entry in (StackEntry(lora, 0.7), StackEntry(lora, frames=flat), StackEntry(lora, frames=zero)):
        with applied(unet, AdapterStack((entry,)), FRAMES, merge=False):
            outputs.append(run(unet, FRAMES))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)
    look = StackEntry(lora_on(base, "spatial-attention"), frames=zero)
    with pytest.raises(SettingsError, match="no temporal layers"), applied(unet, AdapterStack((look,)), FRAMES):
        pass


def test_merge_keeps_the_backbone_and_mixes_none(base, backbone):
    lora = lora_on(base, MOTION_OF[backbone])
    path = TARGETS[MOTION_OF[backbone]].layer
    assert merge([lora, lora]).backbone == backbone
    assert {layer_of(lora, module) for module in part(lora, path)} == {path}
    assert layers_text(lora) == path
    with pytest.raises(LoRAFileError, match="not belong to one network: they are for"):
        merge([lora, LoRA(lora.layers, backbone=next(name for name in BACKBONES if name != backbone))])


# Highway


@pytest.mark.parametrize("backbone", UNETS)
def test_the_highway_is_the_network_with_the_skips_moved(unet):
    """Known answer: with the highway's skip already the same (temporal layers bypassed), nothing changes."""
    plain = run(unet, FRAMES)
    for preset in ("code", "all"):
        with appearance_highway(unet, Highway(preset, 1.0)):
            assert not torch.allclose(run(unet, FRAMES), plain, atol=1e-3)
            with temporal_bypass(unet):
                inside = run(unet, FRAMES)
        with temporal_bypass(unet):
            assert torch.equal(run(unet, FRAMES), inside)
        routes = plan_highway(unet, Highway(preset, 1.1))
        assert any(route.spatial for route in routes)
    assert torch.equal(run(unet, FRAMES), plain)


# Checkpointing


def test_checkpointed_gradients_are_the_same(base, backbone):
    gradients = []
    for enabled in (False, True):
        unet = replica_of(base)
        weights = [unet.get_submodule(name).weight for name in target_modules(base, MOTION_OF[backbone])]
        for weight in weights:
            weight.requires_grad_(True)
        with gradient_checkpointing(unet, enabled):
            predict(unet, tiny_latents(), 500, torch.ones(1, 5, TEXT_WIDTH)).square().mean().backward()
        gradients.append([weight.grad.clone() for weight in weights])
        for weight in weights:
            weight.grad = None
            weight.requires_grad_(False)
    assert of_network(base).checkpointed(base)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# Training and resume


@pytest.mark.parametrize(("backbone", "method"), TRAINED)
def test_every_kind_of_method_trains(pipeline, backbone, method):
    before = weights_of(pipeline)
    result = train(pipeline, [clip_for(pipeline)], quick(method=method, steps=2, patch_crop=True))
    assert result.lora.backbone == backbone
    assert largest_change(result.lora) > 0
    assert same_weights(pipeline, before)
    if result.absorber is not None:
        assert result.absorber.spatial.backbone == backbone


def test_a_paused_training_goes_on_to_the_same_end(pipeline, backbone, tmp_path):
    settings, clips = quick(method=METHODS_OF[backbone][1], steps=3), [clip_for(pipeline)]
    whole = train(pipeline, clips, settings)
    paused = train(pipeline, clips, settings, callback=Listener(("motion", 2), "pause"), checkpoint=tmp_path / "c")
    assert paused.ending == "paused"
    resumed = train(pipeline, clips, settings, checkpoint=tmp_path / "c")
    assert resumed.lora.fingerprint() == whole.lora.fingerprint()


# Files


def test_files_say_the_backbone(tmp_path, base, backbone):
    lora = lora_on(base, MOTION_OF[backbone])
    path = save_lora(tmp_path / "own.safetensors", lora, metadata=False)
    assert load_lora(path).backbone == backbone
    assert load_lora(path).metadata[BACKBONE_KEY] == backbone
    for write in (save_lora, export_kohya, export_peft):
        for network in (None, base):
            report = load_any(write(tmp_path / "x.safetensors", lora), network)
            assert report.lora.backbone == backbone
            assert all(torch.equal(report.lora.layers[m].delta(), lora.layers[m].delta()) for m in lora)
    facts = inspect(path, base)
    assert (facts["temporal"], facts["spatial"]) == ((0, 0) if backbone == "wan" else (len(lora), 0))
    places = [named(backbone).block_place(row["block"]) for row in facts["blocks"]]
    assert places == sorted(places)


def test_files_of_the_other_backbone_are_refused(tmp_path, base, backbone):
    other = next(name for name in BACKBONES if name != backbone)
    lora = lora_on(BACKBONE_UNETS[other](0), MOTION_OF[other])
    with pytest.raises(LoRAFileError, match="motion LoRA"):
        load_any(export_kohya(tmp_path / "x.safetensors", lora), base)


def test_a_file_of_a_later_backbone_is_refused(tmp_path, base, backbone):
    path = save_lora(tmp_path / "x.safetensors", lora_on(base, MOTION_OF[backbone]))
    header = read_header(path)
    path.write_bytes(serialize(read_tensors(path), {**header.metadata, BACKBONE_KEY: "ltx"}))
    with pytest.raises(LoRAFileError, match=r"x\.safetensors cannot be used: a LoRA is for the backbone 'ltx'"):
        load_lora(path)


def test_a_file_without_the_key_is_unet3d(tmp_path):
    path = save_lora(tmp_path / "x.safetensors", lora_on(BACKBONE_UNETS["unet3d"](0), "tap-k"))
    header = read_header(path)
    path.write_bytes(serialize(read_tensors(path), {k: v for k, v in header.metadata.items() if k != BACKBONE_KEY}))
    assert load_lora(path).backbone == "unet3d"


def test_absorbers_carry_it_too(tmp_path, pipeline, backbone):
    absorber = "joint" if backbone == "wan" else "spatial"
    result = train(pipeline, [clip_for(pipeline)], quick(method=METHODS_OF[backbone][0], absorber=absorber, steps=1))
    assert load_absorber(save_absorber(tmp_path / "a.safetensors", result.absorber)).spatial.backbone == backbone


# Sampling


def test_sampling_with_everything_on(pipeline, backbone):
    lora = lora_on(pipeline.unet, FULL_OF[backbone])
    settings = SampleSettings("a red circle", num_inference_steps=3, guidance_scale=2.0)
    plain = sample(pipeline, settings)[0].frames
    highway = Highway("all", 1.1) if backbone in UNETS else None
    stack = AdapterStack((StackEntry(lora, 3.0, steps=Schedule(end=0.7)),), highway)
    changed = sample(pipeline, settings, stack=stack)[0].frames
    assert plain.shape == changed.shape
    assert not torch.allclose(plain, changed, atol=1e-3)
    assert torch.equal(sample(pipeline, settings)[0].frames, plain)


# What is particular to AnimateDiff


def test_more_frames_than_positions_are_refused():
    pipeline = tiny_pipeline(levels=2, backbone="animatediff")
    with pytest.raises(SettingsError, match="positions for 8 frames, not for 9; take at most 8"):
        sample(pipeline, SampleSettings("a red circle", num_frames=9))
    with pytest.raises(ClipError, match="positions for 8 frames, not for 9"):
        train(pipeline, [sample_clip(num_frames=9)], quick(method="temporal-only"))


@torch.no_grad()
def test_frames_normalised_one_by_one_as_animatediff_does():
    """A re-computation of its order: frames into the batch, group norm, then tokens over frames."""
    unet = tiny_motion_unet(levels=2)
    module = unet.get_submodule("down_blocks.0.motion_modules.0")
    hidden = torch.randn(2 * FRAMES, 32, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    hidden[::FRAMES] += 2  # frames that differ in their statistics
    stock = module(hidden, num_frames=FRAMES)
    normalise_per_frame(unet)
    assert isinstance(module.norm, FrameNorm)
    ours = module(hidden, num_frames=FRAMES)

    norm = nn.functional.group_norm(hidden, module.norm.num_groups, module.norm.weight, module.norm.bias, 1e-6)
    tokens = norm.unflatten(0, (2, FRAMES)).permute(0, 3, 4, 1, 2).flatten(0, 2)
    tokens = module.proj_in(tokens)
    for block in module.transformer_blocks:
        tokens = block(tokens)
    maps = module.proj_out(tokens).unflatten(0, (2, 4, 4)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    torch.testing.assert_close(ours, maps + hidden, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, stock, atol=1e-2)
    assert torch.equal(
        replica_of(unet).get_submodule("down_blocks.0.motion_modules.0")(hidden, num_frames=FRAMES), ours
    )
    normalise_per_frame(unet, enabled=False)
    assert torch.equal(module(hidden, num_frames=FRAMES), stock)


# Files of AnimateDiff's own tools


def test_native_files_hold_what_their_loader_takes(tmp_path):
    unet = tiny_motion_unet()
    sample_lora = lora_on(unet, "temporal-all")
    lora = LoRA({m: replace(layer, scale=0.3) for m, layer in sample_lora.layers.items()}, backbone="animatediff")
    path = export_native(tmp_path / "x.safetensors", lora)
    shapes = read_header(path).shapes
    assert len(shapes) == 2 * len(lora)
    assert all("temporal" in key and "alpha" not in key for key in shapes)
    stem = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
    for key in ("attention_blocks.0.processor.to_q_lora.", "attention_blocks.1.processor.to_out_lora."):
        assert {f"{stem}{key}down.weight", f"{stem}{key}up.weight"} <= set(shapes)
    assert {f"{stem}ff.net.0.processor.proj_lora.down.weight", f"{stem}ff.net.processor.2_lora.up.weight"} <= set(
        shapes
    )
    for network in (None, unet):
        found = load_any(path, network).lora
        assert found.backbone == "animatediff"
        for module, layer in lora.layers.items():
            torch.testing.assert_close(found.layers[module].delta(), layer.delta())


def test_files_of_admotiondirector_are_read(tmp_path):
    unet = tiny_motion_unet()
    lora = lora_on(unet, "temporal-all")
    tensors = {}
    for key, tensor in native_tensors(lora).items():
        tensors[key.replace("processor.to_out_lora", "to_out.processor.0_lora")] = tensor
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}}, tmp_path / "x.ckpt")
    found = load_any(tmp_path / "x.ckpt", unet).lora
    assert all(torch.equal(found.layers[m].delta(), layer.delta()) for m, layer in lora.layers.items())


@pytest.mark.parametrize(("mid", "tensors", "parameters"), [(True, 336, 19_333_120), (False, 320, 18_022_400)])
def test_official_counts(mid, tensors, parameters):
    """The official MotionLoRAs have rank 64: 77 MB on v2; v3 has no module in the middle block."""
    network = empty_network({**ANIMATEDIFF_CONFIG, "use_motion_mid_block": mid})
    weights = {name: network.get_submodule(name).weight for name in target_modules(network, "temporal-attention")}
    layers = {n: LoRALayer(w.new_empty(64, w.shape[1]), w.new_empty(w.shape[0], 64)) for n, w in weights.items()}
    found = native_tensors(LoRA(layers, backbone="animatediff"))
    assert len(found) == tensors
    assert sum(tensor.numel() for tensor in found.values()) == parameters
    assert any("mid_block" in key for key in found) is mid


@pytest.mark.parametrize("backbone", UNETS)
def test_what_native_files_cannot_hold_is_said(tmp_path, base, backbone):
    look = lora_on(base, "spatial-attention")
    with pytest.raises(LoRAFileError, match=f"no place in a file for the tools of {backbone}"):
        export_native(tmp_path / "x.safetensors", look)
    assert not list(tmp_path.iterdir())
