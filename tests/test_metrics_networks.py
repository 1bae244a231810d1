"""Metrics by networks: CLIP and LPIPS, over random weights, over doubles with known answers, and beside the originals.

LPIPS is tested over a double of its package and, where the package is installed and loads, over the package too.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from metric_doubles import ALEXNET, clip_double, lpips_module, turned
from metric_models import write_clip_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from motion_lora.core.errors import ClipError, ModelError, SettingsError
from motion_lora.evaluate.metrics import (
    ClipScorer,
    Perceptual,
    clip_temporal_consistency,
    lpips_diversity,
    lpips_temporal_consistency,
    text_alignment,
)
from motion_lora.evaluate.metrics.optional import require
from motion_lora.playground import world


def clip_of(colour: str, background: str, motion: str = "orbit") -> Tensor:
    return world.render(world.Scene("circle", colour, background, motion, radius=0.2))


def grey_clip(*values: float) -> Tensor:
    """Frames of one brightness each, the smallest that LPIPS takes."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 32, 32, 3)


# CLIP ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scorer(clip_folder: Path) -> ClipScorer:
    return ClipScorer.load(clip_folder, device="cpu")


def test_clip_vectors_are_unit_and_follow_their_input(scorer: ClipScorer) -> None:
    frames = clip_of("red", "sand")
    vectors = scorer.embed_frames(frames)
    assert vectors.shape == (8, 16)
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    assert torch.allclose(scorer.embed_frames(frames[3:4])[0], vectors[3], atol=1e-5)
    assert scorer.embed_texts(["a red circle", "a blue square " * 20]).shape == (2, 16)


@pytest.mark.parametrize("size", [(48, 48), (40, 75), (75, 40), (32, 32), (21, 30), (67, 91)])
def test_clip_preprocessing_is_clips_own(scorer: ClipScorer, size: tuple[int, int]) -> None:
    """Bicubic resize of the shorter side, centre crop, mean and deviation per channel, as transformers does them."""
    theirs = CLIPImageProcessor(size={"shortest_edge": scorer.size}, crop_size=scorer.size)
    assert (tuple(theirs.image_mean), tuple(theirs.image_std)) == (scorer.mean, scorer.std)
    # No black and white, whose overshoot PIL cuts off after each direction, which would be another difference.
    pictures = torch.randint(48, 208, (2, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    wanted = theirs([picture.numpy() for picture in pictures], return_tensors="pt")["pixel_values"]
    found = scorer._pixels(pictures.float() / 255)
    assert found.shape == wanted.shape
    # PIL resizes in whole numbers of 0 to 255, one direction after the other: two roundings.
    assert float((found - wanted).abs().max()) < 2 / 255 / min(scorer.std)
    checks = scorer._pixels((torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float())
    mean, std = (torch.tensor(values) for values in (scorer.mean, scorer.std))
    assert bool((checks.amin(dim=(0, 2, 3)) >= -mean / std - 1e-5).all()), "overshoot is cut off"
    assert bool((checks.amax(dim=(0, 2, 3)) <= (1 - mean) / std + 1e-5).all())


def test_clip_normalises_as_its_folder_says(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.125]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    pixels = ClipScorer.load(folder, device="cpu")._pixels(torch.full((1, 40, 40, 3), 0.6))
    assert pixels.mean(dim=(0, 2, 3)).tolist() == pytest.approx([1.0, 1.6, 2.4], abs=1e-4)


def test_clip_scores_of_known_cosines() -> None:
    """An image of brightness v is v half turns from the text, so cosines are 1, 1/2, 0 and -1."""
    scorer = clip_double(turned, torch.tensor([[5.0, 0.0]]))
    frames = grey_clip(0, 1 / 3, 1 / 2, 1)
    assert (scorer.embed_frames(frames) @ scorer.embed_texts(["x"])[0]).tolist() == pytest.approx(
        [1, 0.5, 0, -1], abs=1e-5
    )
    assert text_alignment(frames, "x", scorer) == pytest.approx(100 * (1 + 0.5 + 0 + 0) / 4, abs=1e-3), "none below 0"
    assert text_alignment(grey_clip(1, 1), "x", scorer) == 0
    neighbours = [math.cos(math.pi * step) for step in (1 / 3, 1 / 6, 1 / 2)]
    assert clip_temporal_consistency(frames, scorer) == pytest.approx(100 * sum(neighbours) / 3, abs=1e-3)
    assert clip_temporal_consistency(grey_clip(0, 1), scorer) == pytest.approx(-100), "images may differ"
    assert clip_temporal_consistency(grey_clip(0, 0.5, 0), scorer) == pytest.approx(0, abs=1e-3), "neighbours only"
    many = [i / 40 for i in range(41)]
    cosines = [max(math.cos(math.pi * value), 0) for value in many]
    assert text_alignment(grey_clip(*many), "x", scorer) == pytest.approx(100 * sum(cosines) / 41, abs=1e-3), "chunks"


def test_clip_preprocessing_crops_the_middle(scorer: ClipScorer) -> None:
    frames = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([torch.zeros(1, 32, 10, 3), frames, torch.ones(1, 32, 10, 3)], dim=2)
    assert torch.allclose(scorer.embed_frames(wide), scorer.embed_frames(frames), atol=1e-5)


def test_text_alignment_is_the_mean_of_the_frames(scorer: ClipScorer) -> None:
    frames = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    prompt = "a red circle"
    cosines = scorer.embed_frames(frames) @ scorer.embed_texts([prompt])[0]
    assert text_alignment(frames, prompt, scorer) == pytest.approx(100 * float(cosines.clamp(min=0).mean()), abs=1e-4)


def test_clip_consistency_orders_clips(scorer: ClipScorer) -> None:
    frames = torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    static = frames[:1].expand(8, -1, -1, -1)
    drifting = static + torch.linspace(0, 0.3, 8)[:, None, None, None] * frames
    scores = [clip_temporal_consistency(clip, scorer) for clip in (static, drifting.clamp(0, 1), frames)]
    assert scores[0] == pytest.approx(100, abs=1e-3) and scores == sorted(scores, reverse=True)
    with pytest.raises(ClipError, match="2 or more"):
        clip_temporal_consistency(frames[:1], scorer)


def test_folders_that_hold_no_clip(tmp_path: Path, clip_folder: Path) -> None:
    for message, prepare in (
        ("is not a folder", lambda folder: None),
        ("no config.json", lambda folder: folder.mkdir()),
        (
            "pickled weights are never read",
            lambda folder: (folder / "config.json").write_text('{"model_type": "clip"}'),
        ),
        ("type 't5', not 'clip'", lambda folder: _other_model(folder)),
    ):
        prepare(tmp_path / "model")
        with pytest.raises(ModelError, match=message) as caught:
            ClipScorer.load(tmp_path / "model")
        assert "\n" not in str(caught.value)


def _other_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")


# LPIPS --------------------------------------------------------------------------------------------------------------


def need_lpips() -> None:
    try:
        require("lpips", "lpips", "LPIPS")
    except SettingsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer, (out, into, side) in ALEXNET.items():
        spread = math.sqrt(2 / (into * side * side))
        weights[f"features.{layer}.weight"] = spread * torch.randn(out, into, side, side, generator=generator)
        weights[f"features.{layer}.bias"] = 0.1 * torch.randn(out, generator=generator)
    path = tmp_path_factory.mktemp("lpips") / "alexnet.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def known_distance(alexnet: Path) -> Perceptual:
    """LPIPS by the double: the distance of two frames is the mean of their differences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lpips", lpips_module())
        return Perceptual.load(alexnet, device="cpu")


@pytest.fixture(scope="module", params=["double", "package"])
def perceptual(request: pytest.FixtureRequest, alexnet: Path) -> Perceptual:
    """LPIPS by the double, and by the package over AlexNet with random weights, which is a distance too."""
    if request.param == "double":
        return request.getfixturevalue("known_distance")
    need_lpips()
    return Perceptual.load(alexnet, device="cpu")


def test_lpips_orders_clips(perceptual: Perceptual) -> None:
    frames = clip_of("red", "sand", "still")
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    scores = [
        lpips_temporal_consistency((frames + amount * noise).clamp(0, 1), perceptual) for amount in (0, 0.05, 0.2)
    ]
    assert scores[0] == pytest.approx(0, abs=1e-6) and scores == sorted(scores) and scores[1] > 1e-3


def test_lpips_diversity_is_the_mean_over_pairs(perceptual: Perceptual) -> None:
    a, b, c = clip_of("red", "sand"), clip_of("blue", "sand"), clip_of("blue", "night")
    assert lpips_diversity([a, a], perceptual) == pytest.approx(0, abs=1e-6)
    pairs = [float(perceptual.distance(x, y).mean()) for x, y in ((a, b), (a, c), (b, c))]
    assert lpips_diversity([a, b, c], perceptual) == pytest.approx(sum(pairs) / 3, rel=1e-4)
    with pytest.raises(SettingsError, match="two or more"):
        lpips_diversity([a], perceptual)
    with pytest.raises(ClipError, match="equal shapes"):
        perceptual.distance(a, b[:4])


def test_lpips_has_the_weights_of_the_file(perceptual: Perceptual, alexnet: Path) -> None:
    held = dict(perceptual.network.net.named_parameters())
    for name, value in load_file(alexnet).items():
        slice_ = list(ALEXNET).index(int(name.split(".")[1])) + 1
        assert torch.equal(held.pop(name.replace("features", f"slice{slice_}")), value)
    assert not held


def test_lpips_scores_of_known_distances(known_distance: Perceptual) -> None:
    steps = grey_clip(0, 0.5, 0.6, 0.6)
    assert lpips_temporal_consistency(steps, known_distance) == pytest.approx((0.5 + 0.1 + 0) / 3), "neighbours only"
    assert lpips_temporal_consistency(steps.flip(0), known_distance) == pytest.approx(0.2)
    many = grey_clip(*(i % 2 * i / 40 for i in range(41)))
    assert lpips_temporal_consistency(many, known_distance) == pytest.approx(sum(range(1, 40, 2)) / 20 / 40), "chunks"
    # The same frames at other times are diverse: frames are compared at the same time, and in pairs of videos.
    a, b, c = grey_clip(0, 1), grey_clip(1, 0), grey_clip(0, 0.5)
    assert lpips_diversity([a, b], known_distance) == pytest.approx(1)
    assert lpips_diversity([a, b, c], known_distance) == pytest.approx((1 + 0.25 + 0.75) / 3)
    known_distance.network.seen.clear()
    lpips_temporal_consistency(grey_clip(0, 1), known_distance)
    assert known_distance.network.seen == [(-1, -1), (1, 1)], "the package wants [-1, 1]"


def test_lpips_of_the_package_is_the_papers(alexnet: Path) -> None:
    """Zhang et al. 2018, equation 1: weighted squared differences of unit features, averaged over places, summed."""
    need_lpips()
    perceptual = Perceptual.load(alexnet, device="cpu")
    a, b = clip_of("red", "sand")[:3], clip_of("blue", "night")[:3]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    network, wanted = perceptual.network, torch.zeros(3)
    with torch.no_grad():
        seen = [network.net(((frames * 2 - 1 - shift) / scale).movedim(-1, 1)) for frames in (a, b)]
        for weight, x, y in zip(network.lins, *seen, strict=True):
            difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            wanted += (weight.model[-1].weight * difference).sum(dim=1).mean(dim=(1, 2))
    assert perceptual.distance(a, b).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_weights_that_are_missing_or_another_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=r"put the file alexnet-\*\.pth into"):
        Perceptual.load()
    with pytest.raises(SettingsError, match="must be one of: alex, vgg, squeeze"):
        Perceptual.load(backbone="resnet")
    monkeypatch.setitem(sys.modules, "lpips", lpips_module())
    with pytest.raises(ModelError, match=r"lacks features\.0\.weight"):
        save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
        Perceptual.load(tmp_path / "x.safetensors")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        Perceptual.load(tmp_path / "bad.pth")
