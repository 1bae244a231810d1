"""Loading a base in all its layouts, refusing what is no base, and the promise that a base never changes."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from safetensors.torch import load_file, save_file
from tiny import (
    NUM_FRAMES,
    SCHEDULER_CONFIG,
    SIZE,
    tiny_frames,
    tiny_latents,
    tiny_pipeline,
    tiny_unet,
    tiny_vae,
    write_tiny_folder,
)
from torch import Tensor, nn
from transformers import CLIPTextModel

from motion_lora.base import pickles, placement
from motion_lora.base.identity import identify
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.base.placement import pick_device, pick_dtype, share_parameters
from motion_lora.core.axes import frames_to_pixels
from motion_lora.core.errors import ClipError, ModelError, SettingsError

PROMPTS = ["a red circle moving left", "a blue square"]
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return tiny_pipeline()


def states(pipeline: VideoPipeline) -> list[Tensor]:
    return [tensor for part in PARTS for tensor in getattr(pipeline, part).state_dict().values()]


def same(a: VideoPipeline, b: VideoPipeline) -> bool:
    return all(torch.equal(x, y) for x, y in zip(states(a), states(b), strict=True))


# Loading ------------------------------------------------------------------------------------------------------------


def test_load_gives_the_stored_model(folder: Path, base: VideoPipeline) -> None:
    loaded = VideoPipeline.load(folder, device="cpu")
    assert same(loaded, base)
    assert loaded.identity == base.identity
    assert (loaded.device, loaded.dtype) == (torch.device("cpu"), torch.float32)
    assert (loaded.default_num_frames, loaded.default_fps) == (NUM_FRAMES, 8.0)
    assert (loaded.prediction_type, loaded.num_train_timesteps) == ("epsilon", 1000)
    assert torch.equal(loaded.encode_prompt(PROMPTS), base.encode_prompt(PROMPTS))
    for part in PARTS:
        module = getattr(loaded, part)
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_parts_are_as_their_own_libraries_load_them(folder: Path, name: str) -> None:
    loaded = VideoPipeline.load(folder, device="cpu", dtype=name)
    theirs = replace(
        loaded,
        unet=UNet3DConditionModel.from_pretrained(folder / "unet", torch_dtype=loaded.dtype),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=loaded.dtype),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder").to(loaded.dtype).eval(),
    )
    assert same(loaded, theirs)
    for part in PARTS:
        ours, other = getattr(loaded, part), getattr(theirs, part)
        assert {n: t.dtype for n, t in ours.named_buffers()} == {n: t.dtype for n, t in other.named_buffers()}
        assert not any(module.training for module in ours.modules())
    assert torch.equal(loaded.encode_prompt(PROMPTS), theirs.encode_prompt(PROMPTS))
    frames = tiny_frames()
    assert torch.equal(loaded.encode_frames(frames), theirs.encode_frames(frames))


def test_autoencoders_of_old_releases_are_read(tmp_path: Path, base: VideoPipeline) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    stored = load_file(path)
    for new, old in names.items():
        stored = {name.replace(new, old): tensor for name, tensor in stored.items()}
    assert any(".query." in name for name in stored)
    save_file(stored, path, metadata={"format": "pt"})
    assert same(VideoPipeline.load(folder, device="cpu"), base)


def test_a_model_file_may_be_replaced_while_it_is_in_use(tmp_path: Path, base: VideoPipeline) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    loaded = VideoPipeline.load(folder, device="cpu")
    for path in folder.glob("*/*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    assert same(loaded, base)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_layouts_of_weight_files(tmp_path: Path, base: VideoPipeline, variant: str | None, sharded: bool) -> None:
    """Plain or variant, whole or in shards, found without being told; only the fp16 files of a release are common."""
    dtype = torch.float16 if variant else torch.float32
    size = "1MB" if sharded else "5GB"
    folder = write_tiny_folder(tmp_path / "m", dtype=dtype, variant=variant, max_shard_size=size)
    assert any("-of-" in path.name for path in (folder / "unet").iterdir()) == sharded
    loaded = VideoPipeline.load(folder, device="cpu")
    assert loaded.identity == base.identity
    assert {p.dtype for p in loaded.unet.parameters()} == {torch.float32}
    error = max(float((x - y).abs().max()) for x, y in zip(states(loaded), states(base), strict=True))
    assert error <= (1e-3 if variant else 0.0)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_sixteen_bit_dtypes(folder: Path, base: VideoPipeline, name: str) -> None:
    loaded = VideoPipeline.load(folder, device="cpu", dtype=name)
    kinds = {p.dtype for part in PARTS for p in getattr(loaded, part).parameters()}
    assert kinds == {loaded.dtype} == {pick_dtype(name, loaded.device)}
    # Rounding keeps the signs, so a LoRA knows its base in any dtype.
    assert loaded.identity == base.identity
    latents = loaded.encode_frames(tiny_frames())
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, base.encode_frames(tiny_frames()), rtol=0, atol=0.1)
    assert loaded.decode_latents(latents).dtype == torch.float32


def test_both_files_present_fp16_takes_its_own(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    spoiled = {name: t.half() * 0 for name, t in load_file(folder / "unet" / WEIGHTS["unet"]).items()}
    save_file(spoiled, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    plain = VideoPipeline.load(folder, device="cpu")
    assert plain.unet.conv_in.weight.abs().max() > 0
    half = VideoPipeline.load(folder, device="cpu", dtype="fp16")
    assert half.unet.conv_in.weight.abs().max() == 0


def test_text_encoder_of_either_transformers(tmp_path: Path, folder: Path, base: VideoPipeline) -> None:
    """transformers 4 stores `text_model.*` and an index buffer, 5 stores neither."""
    stored = load_file(folder / "text_encoder" / WEIGHTS["text_encoder"])
    short = {name.removeprefix("text_model."): tensor for name, tensor in stored.items()}
    old = {f"text_model.{name}": tensor for name, tensor in short.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    for number, layout in enumerate((short, old)):
        copied = shutil.copytree(folder, tmp_path / str(number))
        save_file(layout, copied / "text_encoder" / WEIGHTS["text_encoder"], metadata={"format": "pt"})
        loaded = VideoPipeline.load(copied, device="cpu")
        assert torch.equal(loaded.encode_prompt(PROMPTS), base.encode_prompt(PROMPTS))


def test_loaded_in_inference_mode_it_can_still_be_trained_around(folder: Path) -> None:
    with torch.inference_mode():
        loaded = VideoPipeline.load(folder, device="cpu")
        replica = loaded.replica()
    latents = tiny_latents().requires_grad_(True)
    replica.unet(latents, 500, loaded.encode_prompt(PROMPTS[:1])).sample.sum().backward()
    assert latents.grad is not None


def test_name_of_a_hub_cache(tmp_path: Path, folder: Path) -> None:
    cached = tmp_path / "models--damo-vilab--text-to-video-ms-1.7b" / "snapshots" / "8227dddca75a"
    shutil.copytree(folder, cached)
    (cached / "motion_lora.json").unlink()
    loaded = VideoPipeline.load(cached, device="cpu")
    assert loaded.identity.name == "damo-vilab/text-to-video-ms-1.7b"
    assert (loaded.default_num_frames, loaded.default_fps) == (16, 8.0)


# Refusing -----------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def to_pickle(path: Path, name: str = "diffusion_pytorch_model.bin", extra: object = None) -> Path:
    """The tensors of a safetensors file as torch's own file, in its place."""
    content = load_file(path) if extra is None else {**load_file(path), "extra": extra}
    torch.save(content, path.with_name(name))
    path.unlink()
    return path.with_name(name)


def pickle_of_more_than_tensors(folder: Path) -> None:
    to_pickle(folder / "unet" / WEIGHTS["unet"], extra=Namespace(a=1))


def pickle_cut_off(folder: Path) -> None:
    path = to_pickle(folder / "unet" / WEIGHTS["unet"])
    path.write_bytes(path.read_bytes()[:-2000])


def cut_in_half(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS["vae"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_tensor(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / WEIGHTS[part]
        tensors = load_file(path)
        del tensors[sorted(tensors)[0]]
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def adapter_beside_an_image_network(folder: Path) -> None:
    (folder / "motion_adapter").mkdir()
    edit(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")


def add_variants(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS["unet"]
    shutil.copy(path, path.with_name("diffusion_pytorch_model.ema.safetensors"))
    path.rename(path.with_name("diffusion_pytorch_model.non_ema.safetensors"))


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name)

    return change


def config(part: str, **entries: object) -> Callable[[Path], None]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return lambda folder: edit(folder / part / name, **entries)


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("a missing part", remove("vae"), r"lacks vae/config\.json"),
    ("several", remove("tokenizer", "scheduler"), r"lacks tokenizer/vocab\.json, scheduler/scheduler_config\.json"),
    ("an image model", config("unet", _class_name="UNet2DConditionModel"), "UNet2DConditionModel: an image network"),
    ("another's class", config("unet", _class_name="UNetMotionModel"), "weights are those of a UNet3DConditionModel"),
    ("an adapter", adapter_beside_an_image_network, "AnimateDiff motion adapter"),
    (
        "a transformer",
        lambda folder: edit(folder / "model_index.json", transformer=["d", "t"]),
        "diffusion transformer",
    ),
    (
        "SD 1.5 text",
        config("text_encoder", hidden_size=768),
        "vectors of 768, the UNet takes 32 .*Stable Diffusion 1.5",
    ),
    ("another text encoder", config("text_encoder", model_type="t5"), "is a t5 model; .* CLIPTextModel"),
    ("a video VAE", config("vae", _class_name="AutoencoderKLWan"), "is a AutoencoderKLWan"),
    ("another VAE", config("vae", latent_channels=16), "VAE gives 16 channels, the UNet takes 4"),
    ("another target", config("scheduler", prediction_type="sample"), "'sample'; supported are: epsilon, v_prediction"),
    ("no JSON", lambda folder: (folder / "vae" / "config.json").write_text("{"), "cannot be read as JSON"),
    ("a list", lambda folder: (folder / "vae" / "config.json").write_text("[]"), "holds no JSON object"),
    ("a bad hint", lambda folder: edit(folder / "motion_lora.json", num_frames="many"), "num_frames is 'many'"),
    ("no weights", lambda folder: (folder / "unet" / WEIGHTS["unet"]).unlink(), "has no weights"),
    ("a pickle of more", pickle_of_more_than_tensors, "more than tensors, and reading the rest could run code"),
    ("a pickle cut off", pickle_cut_off, "is damaged or cut off. Download the file again"),
    ("a truncated file", cut_in_half, "safetensors cannot be loaded .* download them again"),
    (
        "a lost tensor",
        drop_tensor("unet"),
        "lack 1 of the network's tensors, conv_in.bias",
    ),
    ("another width", config("vae", block_out_channels=[16, 32, 32]), "vae does not fit together: "),
    ("another depth", config("vae", block_out_channels=[8, 16]), "vae cannot be loaded "),
    ("a lost word table", drop_tensor("text_encoder"), "text_encoder lack 1 of the network's tensors"),
    ("several variants", add_variants, "several variants \\('ema', 'non_ema'\\)"),
]


@pytest.mark.parametrize(("change", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_wrong_folders(tmp_path: Path, folder: Path, change: Callable[[Path], None], message: str) -> None:
    spoiled = shutil.copytree(folder, tmp_path / "m")
    change(spoiled)
    with pytest.raises(ModelError, match=message) as caught:
        VideoPipeline.load(spoiled, device="cpu")
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        VideoPipeline.load(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ModelError, match="is a file"):
        VideoPipeline.load(folder / "model_index.json", device="cpu")
    with pytest.raises(ModelError, match=r"neither unet/ nor model_index\.json"):
        VideoPipeline.load(tmp_path, device="cpu")
    with pytest.raises(ModelError, match=f"Choose a folder in it: {folder.name}"):
        VideoPipeline.load(folder.parent, device="cpu")


def test_a_variant_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights of variant 'fp16'; it has: none \(plain files\)"):
        VideoPipeline.load(folder, device="cpu", variant="fp16")


def test_devices_and_dtypes() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_device("cpu") == torch.device("cpu")
    torch.empty(1, device=pick_device())
    with pytest.raises(SettingsError, match="dtype is 'half'; it must be one of: auto, fp32"):
        pick_dtype("half", torch.device("cpu"))
    for name in ("abacus", "xla:7"):
        with pytest.raises(SettingsError, match=f"device is '{name}'"):
            pick_device(name)


# Identity -----------------------------------------------------------------------------------------------------------


def test_identity_tells_bases_apart(base: VideoPipeline) -> None:
    assert tiny_pipeline(seed=0).identity == base.identity
    other = tiny_pipeline(seed=1).identity
    assert other.config_hash == base.identity.config_hash
    assert other.weights_hash != base.identity.weights_hash
    assert identify(tiny_unet(levels=2), "x").config_hash != base.identity.config_hash


def test_identity_notices_fine_tuning(base: VideoPipeline) -> None:
    tuned = copy.deepcopy(base.unet)
    generator = torch.Generator().manual_seed(77)  # not the seed of the weights: noise along them keeps every sign
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.01 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    assert identify(tuned, "tiny").weights_hash != base.identity.weights_hash


# Replicas -----------------------------------------------------------------------------------------------------------


def test_a_copy_on_another_device_shares_no_byte_and_computes_the_same(base: VideoPipeline) -> None:
    made = base.copied_to("cpu")
    for part in ("unet", "vae", "text_encoder"):
        own, copied = dict(getattr(base, part).named_parameters()), dict(getattr(made, part).named_parameters())
        assert own.keys() == copied.keys()
        assert all(torch.equal(own[name], copied[name]) for name in own)
        assert {p.data_ptr() for p in own.values()}.isdisjoint({p.data_ptr() for p in copied.values()})
        assert not any(p.requires_grad for p in copied.values())
    assert torch.equal(made.encode_prompt(PROMPTS[:1]), base.encode_prompt(PROMPTS[:1]))
    made.send_away()
    assert made.is_away and not base.is_away
    with pytest.raises(SettingsError, match="'warp:1'"):
        base.copied_to("warp:1")


def test_replica_shares_every_byte(base: VideoPipeline) -> None:
    replica = base.replica(text_encoder=True)
    for part in ("unet", "text_encoder"):
        original, copied = getattr(base, part), getattr(replica, part)
        assert {id(m) for m in original.modules()}.isdisjoint({id(m) for m in copied.modules()})
        own, shared = dict(original.state_dict(keep_vars=True)), dict(copied.state_dict(keep_vars=True))
        assert list(own) == list(shared)
        for name, tensor in own.items():
            assert shared[name] is not tensor
            assert shared[name].data_ptr() == tensor.data_ptr()
        buffers = zip(original.buffers(), copied.buffers(), strict=True)
        assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in buffers)
    assert replica.vae is base.vae
    assert replica.tokenizer is not base.tokenizer
    assert replica.identity is base.identity


@torch.no_grad()
def test_replica_computes_the_same(base: VideoPipeline) -> None:
    replica = base.replica(text_encoder=True)
    text = base.encode_prompt(PROMPTS[:1])
    assert torch.equal(replica.encode_prompt(PROMPTS[:1]), text)
    own = base.unet(tiny_latents(), 5, text).sample
    torch.testing.assert_close(replica.unet(tiny_latents(), 5, text).sample, own, rtol=0, atol=2e-5)
    stock = replace(base, fast_layers=False).replica()
    assert torch.equal(stock.unet(tiny_latents(), 5, text).sample, own)


def test_whatever_a_replica_does_the_base_stays() -> None:
    base = tiny_pipeline()
    before = [tensor.clone() for tensor in states(base)]
    other = base.replica()
    replica = base.replica(text_encoder=True)
    replica.unet.requires_grad_(True).train()
    replica.unet.register_forward_hook(lambda *args: None)
    replica.unet.transformer_in.forward = lambda *args, **kwargs: None
    replica.unet.conv_in.weight = nn.Parameter(torch.zeros_like(replica.unet.conv_in.weight))
    replica.unet.down_blocks[0].attentions[0] = nn.Identity()
    replica.text_encoder.requires_grad_(True)
    replica.text_encoder.resize_token_embeddings(len(replica.tokenizer) + 2)
    replica.tokenizer.add_tokens(["<new-1>", "<new-2>"])
    replica.unet.to(torch.float16)
    for untouched in (base.unet, other.unet, base.text_encoder):
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in untouched.parameters())
        assert not any(module.training or module._forward_hooks for module in untouched.modules())
        assert not any("forward" in module.__dict__ for module in untouched.modules())
    assert all(torch.equal(x, y) for x, y in zip(before, states(base), strict=True))
    assert "<new-1>" not in base.tokenizer.get_vocab()
    base.unet(tiny_latents(), 5, base.encode_prompt(PROMPTS[:1]))


def test_training_a_replica_leaves_the_base_bit_identical() -> None:
    base = tiny_pipeline()
    before = [tensor.clone() for tensor in states(base)]
    replica = base.replica()
    weight = nn.Parameter(replica.unet.conv_in.weight.clone())
    replica.unet.conv_in.weight = weight
    optimizer = torch.optim.SGD([weight], lr=0.1)
    replica.unet(tiny_latents(), 5, base.encode_prompt(PROMPTS[:1])).sample.square().mean().backward()
    optimizer.step()
    assert not torch.equal(weight, base.unet.conv_in.weight)
    assert [name for name, p in replica.unet.named_parameters() if p.grad is not None] == ["conv_in.weight"]
    assert all(torch.equal(x, y) for x, y in zip(before, states(base), strict=True))


def test_replica_made_in_inference_mode_can_train(base: VideoPipeline) -> None:
    with torch.inference_mode():
        unet = share_parameters(base.unet)
    weight = unet.conv_out.weight.requires_grad_(True)
    unet(tiny_latents(), 5, base.encode_prompt(PROMPTS[:1])).sample.sum().backward()
    assert weight.grad is not None
    assert not base.unet.conv_out.weight.requires_grad


def test_a_base_is_frozen(base: VideoPipeline) -> None:
    with pytest.raises(FrozenInstanceError):
        base.unet = tiny_unet()  # type: ignore[misc]


# Text, frames and latents -------------------------------------------------------------------------------------------


def test_prompts(base: VideoPipeline, caplog: pytest.LogCaptureFixture) -> None:
    text = base.encode_prompt([*PROMPTS, ""])
    assert text.shape == (3, 16, 32)
    torch.testing.assert_close(text[1:2], base.encode_prompt(PROMPTS[1:]), rtol=0, atol=1e-5)
    assert not text.requires_grad and not text.is_inference()
    assert not caplog.records
    base.encode_prompt(["a red circle " * 10])
    assert "has 32 tokens; the last 16 are not read" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a (red:1.3) circle", "(red:1.3) in the prompt is read as plain text"),
        ("a (red circle: .5 )", "weights in brackets are not known"),
        ("a red circle " * 10, "has 32 tokens; the last 16 are not read"),
    ],
)
def test_what_a_prompt_does_not_do_is_said(base: VideoPipeline, prompt: str, said: str) -> None:
    assert said in " ".join(base.prompt_remarks([prompt]))


def test_an_honest_prompt_needs_no_remark(base: VideoPipeline) -> None:
    assert base.prompt_remarks(["red (on sand), 10:30", "", "a :) face"]) == []


def test_prompt_gradients_on_request(base: VideoPipeline) -> None:
    replica = base.replica(text_encoder=True)
    replica.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    assert not replica.encode_prompt(PROMPTS).requires_grad
    replica.encode_prompt(PROMPTS, gradients=True).sum().backward()
    assert replica.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0
    assert not base.text_encoder.get_input_embeddings().weight.requires_grad


def test_frames_become_latents(base: VideoPipeline) -> None:
    clips = torch.stack([tiny_frames(seed) for seed in range(2)])
    latents = base.encode_frames(clips)
    assert latents.shape == (2, 4, NUM_FRAMES, SIZE // 4, SIZE // 4)
    direct = base.vae.encode(frames_to_pixels(clips)[1, 2][None]).latent_dist.mode() * base.vae.config.scaling_factor
    torch.testing.assert_close(latents[1, :, 2][None], direct, rtol=0, atol=1e-5)
    torch.testing.assert_close(base.encode_frames(clips[0]), latents[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(base.encode_frames(clips, chunk=3), latents, rtol=0, atol=1e-5)


def test_posterior_sampling_is_seeded_and_does_not_depend_on_chunks(base: VideoPipeline) -> None:
    def draw(seed: int, chunk: int = 8) -> Tensor:
        return base.encode_frames(tiny_frames(), generator=torch.Generator().manual_seed(seed), chunk=chunk)

    torch.testing.assert_close(draw(1), draw(1, chunk=1), rtol=1e-5, atol=1e-5)
    assert (draw(1) - draw(2)).abs().mean() > 0.01
    assert (draw(1) - base.encode_frames(tiny_frames())).abs().mean() > 0.01


def test_latents_become_frames(base: VideoPipeline) -> None:
    latents = tiny_latents(batch=2)
    frames = base.decode_latents(latents)
    assert frames.shape == (2, NUM_FRAMES, SIZE, SIZE, 3)
    assert frames.dtype == torch.float32 and frames.device.type == "cpu"
    assert frames.min() >= 0 and frames.max() <= 1
    direct = base.vae.decode(latents[1, :, 3][None] / base.vae.config.scaling_factor).sample
    torch.testing.assert_close(frames[1, 3], ((direct[0] + 1) / 2).clamp(0, 1).movedim(0, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(base.decode_latents(latents, chunk=3), frames, rtol=0, atol=1e-5)


def test_inputs_from_inference_mode_give_ordinary_tensors(base: VideoPipeline) -> None:
    with torch.inference_mode():
        frames = tiny_frames() * 1.0
        latents = base.encode_frames(frames)
        decoded = base.decode_latents(latents)
        text = base.encode_prompt(PROMPTS)
    assert frames.is_inference()
    assert not any(tensor.is_inference() for tensor in (latents, decoded, text))


def test_sizes(base: VideoPipeline) -> None:
    assert base.size_multiple == 16
    assert (base.default_height, base.default_width, base.vae_factor) == (SIZE, SIZE, 4)
    base.check_size(48, 16)
    with pytest.raises(SettingsError, match="40 x 32; tiny takes multiples of 16 pixels, the nearest size is 32 x 32"):
        base.check_size(40, 32)
    with pytest.raises(SettingsError, match="nearest size is 16 x 32"):
        base.check_size(0, 32)
    with pytest.raises(SettingsError, match="multiples of 16"):
        base.encode_frames(torch.zeros(2, 24, 32, 3))
    for shape in ((2, 32, 32), (2, 3, 32, 32), (0, 32, 32, 3)):
        with pytest.raises(ClipError, match="frames have shape"):
            base.encode_frames(torch.zeros(shape))
    with pytest.raises(SettingsError, match="latents have shape"):
        base.decode_latents(torch.zeros(4, 8, 8))


def test_schedulers_follow_the_folder(folder: Path) -> None:
    loaded = VideoPipeline.load(folder, device="cpu")
    scheduler = loaded.make_scheduler("ddim")
    for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset", "set_alpha_to_one", "clip_sample"):
        assert scheduler.config[name] == SCHEDULER_CONFIG[name]
    with pytest.raises(SettingsError, match="scheduler is 'plms'; it must be one of: ddim"):
        loaded.make_scheduler("plms")


def test_rectangular_sample_size(base: VideoPipeline) -> None:
    unet = share_parameters(base.unet)
    unet.register_to_config(sample_size=[8, 12])
    wide = VideoPipeline(
        unet, tiny_vae(), base.text_encoder, base.tokenizer, {}, base.identity, base.device, base.dtype
    )
    assert (wide.default_height, wide.default_width, wide.default_num_frames) == (32, 48, 16)


# Pickles ------------------------------------------------------------------------------------------------------------


def test_a_base_of_pickles_is_written_anew_once(folder: Path, tmp_path: Path, base: VideoPipeline) -> None:
    """ZeroScope has no safetensors: after gigabytes of download it must work."""
    copy = tmp_path / "zeroscope"
    shutil.copytree(folder, copy)
    expected = VideoPipeline.load(copy, device="cpu")
    for part in ("unet", "vae"):
        to_pickle(copy / part / WEIGHTS[part])
    to_pickle(copy / "text_encoder" / WEIGHTS["text_encoder"], "pytorch_model.bin")
    loaded = VideoPipeline.load(copy, device="cpu")
    assert loaded.identity == expected.identity
    assert torch.equal(loaded.encode_prompt(PROMPTS), expected.encode_prompt(PROMPTS))
    made = copy / "unet" / WEIGHTS["unet"]
    stamp = made.stat().st_mtime_ns
    VideoPipeline.load(copy, device="cpu")
    assert made.stat().st_mtime_ns == stamp and not list(copy.rglob("*.tmp"))


def test_pickles_in_shards_and_of_half_a_download(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sharded"
    shutil.copytree(folder, copy)
    whole = copy / "unet" / WEIGHTS["unet"]
    tensors = load_file(whole)
    names = sorted(tensors)
    whole.unlink()
    for number, share in enumerate((names[:5], names[5:]), start=1):
        path = copy / "unet" / f"diffusion_pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in share}, path)
    found = VideoPipeline.load(copy, device="cpu").unet.state_dict()
    assert all(torch.equal(found[name], tensors[name]) for name in names)
    shutil.rmtree(copy / "unet")
    shutil.copytree(folder / "unet", copy / "unet")
    whole.unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model-00002-of-00002.bin")
    with pytest.raises(ModelError, match="has 1 of 2 weight files"):
        VideoPipeline.load(copy, device="cpu")


def test_a_folder_that_takes_no_copy_leaves_it_to_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "shared"
    shutil.copytree(folder, copy)
    to_pickle(copy / "unet" / WEIGHTS["unet"])
    before = sorted(path.name for path in (copy / "unet").iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save, calls = pickles.save_file, []

    def refuse(tensors: object, path: str, metadata: object) -> None:
        calls.append(path)
        if Path(path).is_relative_to(copy):
            raise OSError(errno.EROFS, "Read-only file system")
        save(tensors, path, metadata)

    monkeypatch.setattr(pickles, "save_file", refuse)
    for _ in range(2):
        VideoPipeline.load(copy, device="cpu")
    assert len(calls) == 2, "once refused, once written, then found"
    assert sorted(path.name for path in (copy / "unet").iterdir()) == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelError, match="free some space there"):
        VideoPipeline.load(copy, device="cpu")


@pytest.mark.parametrize(("knows", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_macs_do_not_use_what_their_torch_lacks(
    knows: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_knows_bf16", lambda device: knows)
    assert placement.pick_dtype("auto", torch.device("mps")) is wanted
    assert placement.pick_dtype("fp16", torch.device("mps")) is torch.float16


# Places -------------------------------------------------------------------------------------------------------------


def devices(pipeline: VideoPipeline) -> list[str]:
    return [next(getattr(pipeline, part).parameters()).device.type for part in PARTS]


def test_offloading_on_the_cpu_changes_nothing(base: VideoPipeline) -> None:
    expected = base.encode_prompt(PROMPTS)
    with base.offload_encoders(), base.replica().offload_encoders():
        assert torch.equal(base.encode_prompt(PROMPTS), expected)
    assert base._place.offloaders == base._text_place.offloaders == 0


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_encoders_leave_the_accelerator_and_come_back(folder: Path) -> None:
    loaded = VideoPipeline.load(folder, dtype="fp32")
    there = loaded.device.type
    expected = loaded.encode_prompt(PROMPTS)
    assert devices(loaded) == [there] * 3
    with loaded.offload_encoders():
        assert devices(loaded) == [there, "cpu", "cpu"]
        text = loaded.encode_prompt(PROMPTS)
        latents = loaded.encode_frames(tiny_frames())
        loaded.decode_latents(latents)
        assert text.device.type == latents.device.type == there
        assert devices(loaded) == [there, "cpu", "cpu"]
    assert devices(loaded) == [there] * 3
    torch.testing.assert_close(text, expected)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", ["auto", "fp16", "bf16"])
def test_accelerator_agrees_with_the_cpu(folder: Path, base: VideoPipeline, dtype: str) -> None:
    loaded = VideoPipeline.load(folder, dtype=dtype)
    assert loaded.identity == base.identity
    frames = loaded.decode_latents(loaded.encode_frames(tiny_frames()))
    torch.testing.assert_close(frames, base.decode_latents(base.encode_frames(tiny_frames())), rtol=0, atol=0.1)
    text = loaded.encode_prompt(PROMPTS).float().cpu()
    torch.testing.assert_close(text, base.encode_prompt(PROMPTS), rtol=0, atol=0.1)
