"""One step of each kind on a real network, ModelScope's if none is named, from its config with random weights.

    python tools/full_size.py                 the real network at 16 x 256 x 256
    python tools/full_size.py --config animatediff-v2    Stable Diffusion 1.5 with a v2 motion module
    python tools/full_size.py --config tiny   the same code path on a toy, in seconds
    python tools/full_size.py --write         also add a row per measurement to bench/full-size.md

Measured are the library's own `train` and `sample`: a step of the temporal LoRA, a step of the spatial-LoRA absorber
with the temporal layers bypassed, and two sampling steps without guidance. The floor is what the counted arithmetic
takes at this machine's measured matrix-product rate; what gradient checkpointing computes again is no part of it.
Text encoder and VAE are toys: in training their results are computed once, in sampling they take part once per video.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pretrain_playground.architecture import SCHEDULER_CONFIG, write_tokenizer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from motion_lora.backbones.base import Text
from motion_lora.backbones.bypass import temporal_bypass
from motion_lora.backbones.motion_unet import ANIMATEDIFF_CONFIG
from motion_lora.backbones.registry import empty_network, of_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.base.identity import identify
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.base.placement import DTYPES, pick_device, pick_dtype
from motion_lora.media.read import clip_from_frames
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import Command, StepReport, TrainSettings, train, train_absorber

logger = logging.getLogger("full_size")
RESULTS = Path(__file__).resolve().parents[1] / "bench" / "full-size.md"
TITLE = "# Full size, measured\n\nRows are added by `python tools/full_size.py --write`.\n\n"
HEADER = (
    "| machine | torch | device | dtype | network | size | checkpointing | what | seconds | floor | peak GiB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|\n"
)
TINY: Mapping[str, Any] = {
    **MODELSCOPE_UNET_CONFIG,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "modelscope": MODELSCOPE_UNET_CONFIG,
    "animatediff-v2": {**ANIMATEDIFF_CONFIG, "use_motion_mid_block": True},
    "tiny": TINY,
}
# Bytes for what has to fit beside the weights where activations are computed twice: the largest block, LoRA, the rest.
_ROOM_FOR_THE_REST = 8 * 2**30
# Numbers that the backward pass keeps at 16 x 256 x 256, and bytes for all else: 12.4 GB at peak in bf16, while fp32
# was killed at 24.4 GB.
_KEPT_ACTIVATIONS, _REST = 4_600_000_000, 2**30
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Measurement:
    """One row: seconds of the work, seconds that its arithmetic needs at least, and peak memory."""

    what: str
    seconds: float
    floor: float
    peak_gib: float


@dataclass(frozen=True)
class Size:
    """Of the clip, in pixels."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        return 1, 4, self.num_frames, self.height // 8, self.width // 8


# The base -----------------------------------------------------------------------------------------------------------


def random_unet(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network with random weights, allocated once, on the device and in the dtype in which it computes."""
    unet = empty_network(config).to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))
        for table in unet.buffers():  # of positions
            table.normal_(0, 1, generator=generator)
    of_network(unet).prepare(unet)
    return unet.eval().requires_grad_(False)


def random_base(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, folder: Path) -> VideoPipeline:
    """A whole base: the network at full size, a VAE that halves three times, a text encoder of the right width."""
    tokenizer: CLIPTokenizer = write_tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=int(config["cross_attention_dim"]),
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    vae: Any = AutoencoderKL(down_block_types=down, up_block_types=up, **widths)
    encoder: Any = CLIPTextModel(text)
    unet = random_unet(config, device, dtype)
    return VideoPipeline(
        unet=unet,
        vae=vae.to(device, dtype).eval().requires_grad_(False),
        text_encoder=encoder.to(device, dtype).eval().requires_grad_(False),
        tokenizer=tokenizer,
        scheduler_config={**SCHEDULER_CONFIG, "prediction_type": "epsilon"},
        identity=identify(unet, "random"),
        device=device,
        dtype=dtype,
    )


def choose_dtype(name: str, device: torch.device, config: Mapping[str, Any]) -> torch.dtype:
    """As `pick_dtype`; on CPUs "auto" is bf16 where the processor multiplies it natively or fp32 would not fit."""
    if name != "auto" or device.type != "cpu":
        return pick_dtype(name, device)
    weights = sum(parameter.numel() for parameter in empty_network(config).parameters())
    fits = 4 * weights + _ROOM_FOR_THE_REST < total_memory()
    return torch.float32 if fits and not has_amx() else torch.bfloat16


def needs_checkpointing(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype, config: Mapping[str, Any]
) -> bool:
    """Whether a training step on a CPU would ask for more memory than there is; accelerators are left to the user."""
    weights = sum(parameter.numel() for parameter in empty_network(config).parameters())
    share = options.num_frames * options.height * options.width / (16 * 256 * 256)
    kept = _KEPT_ACTIVATIONS * share if options.config != "tiny" else 0
    return device.type == "cpu" and dtype.itemsize * (weights + kept) + _REST > 0.9 * total_memory()


# The machine --------------------------------------------------------------------------------------------------------


def has_amx() -> bool:
    """Whether the processor has matrix units for bf16."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe()) if probe is not None else False


def total_memory() -> int:
    """Bytes of main memory; a guess of 24 GiB where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    return 24 * 2**30


def reset_peak_memory(device: torch.device) -> None:
    """Forget the highest use so far, where the system can; else rows show the peak since the start."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> float:
    """Highest use in GiB: of the accelerator, else of the process; NaN where the system does not say."""
    if device.type != "cpu":
        return float(torch.accelerator.max_memory_allocated()) / 2**30
    if _STATUS.exists():
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def machine_name(device: torch.device) -> str:
    """The accelerator's or the processor's name, and its threads."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        return str(module.get_device_name()) if hasattr(module, "get_device_name") else device.type
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP per second of a square matrix product: the best of five after a warm-up."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


# Counting -----------------------------------------------------------------------------------------------------------


def count_flops(config: Mapping[str, Any], latents: tuple[int, ...], *, bypass: bool, backward: bool) -> int:
    """FLOPs of a forward pass, and of its activations' gradients: weights are frozen, the LoRA's part is negligible."""
    unet = empty_network(config).eval().requires_grad_(False)
    batch = latents[0]
    with torch.device("meta"):
        noisy = torch.empty(latents, requires_grad=backward)
        timesteps = torch.empty(batch, dtype=torch.long)
        text = torch.empty(batch, 77, int(config["cross_attention_dim"]))
    with FlopCounterMode(display=False) as counter, temporal_bypass(unet, bypass):
        predicted = of_network(unet).predict(unet, noisy, timesteps, Text({"encoder_hidden_states": text}))
        if backward:
            predicted.sum().backward()
    return int(counter.get_total_flops())


# Measuring ----------------------------------------------------------------------------------------------------------


class StepTimer:
    """A training callback that times steps from one loss to the next: reading a loss waits for the device."""

    def __init__(self) -> None:
        self._first = float("nan")
        self._ends: list[float] = []

    def __call__(self, report: StepReport) -> Command:
        self._first = report.seconds if not self._ends else self._first
        self._ends.append(time.perf_counter())
        return "continue"

    @property
    def fastest(self) -> float:
        """Seconds; of a single step what the library says, else the first step counts as warm-up."""
        return min((after - before for before, after in pairwise(self._ends)), default=self._first)


class Bench:
    """The base, the size and the rate that the rows share."""

    def __init__(self, options: argparse.Namespace, pipeline: VideoPipeline, rate: float) -> None:
        self.config = CONFIGS[options.config]
        self.size = Size(options.num_frames, options.height, options.width)
        self.pipeline, self.rate = pipeline, rate
        # A device of its own only queues the first steps; what they take shows from the second on.
        steps = options.repeat if pipeline.device.type == "cpu" else max(options.repeat, 4)
        self.rounds = 1 if pipeline.device.type == "cpu" else 2
        self.settings = TrainSettings(
            steps=steps,
            absorber_steps=steps,
            absorber="none",
            frames_per_step=options.frames_per_step,
            gradient_checkpointing=options.gradient_checkpointing,
            compile=options.compile,
        )
        generator = torch.Generator().manual_seed(0)
        frames = torch.rand(self.size.num_frames, self.size.height, self.size.width, 3, generator=generator)
        self.clip = clip_from_frames(
            frames, 8.0, caption="a red circle circling around over sand", appearance_caption="a red circle over sand"
        )

    def rows(self) -> list[Measurement]:
        """All measurements, in order."""
        found = []
        for work in (self.temporal_step, self.absorber_step, self.sampling_steps):
            reset_peak_memory(self.pipeline.device)
            found.append(self._row(*work()))
        return found

    def temporal_step(self) -> tuple[str, float, int]:
        """The second stage of Customize-A-Video: forward, backward, clipping, optimizer."""
        timer = StepTimer()
        train(self.pipeline, [self.clip], self.settings, callback=timer)
        flops = count_flops(self.config, self.size.latents, bypass=False, backward=True)
        return "temporal LoRA step", timer.fastest, flops

    def absorber_step(self) -> tuple[str, float, int]:
        """Its first stage: frames as images, temporal layers bypassed, whole frames instead of patches."""
        timer = StepTimer()
        settings = replace(self.settings, absorber="spatial", patch_crop=False)
        train_absorber(self.pipeline, [self.clip], settings, callback=timer)
        frames = min(self.settings.frames_per_step, self.size.num_frames)
        shape = (frames, 4, 1, self.size.height // 8, self.size.width // 8)
        flops = count_flops(self.config, shape, bypass=True, backward=True)
        return f"absorber step, {frames} frames", timer.fastest, flops

    def sampling_steps(self) -> tuple[str, float, int]:
        """Two denoising steps without guidance and without decoding."""
        settings = SampleSettings(
            prompt="a blue square",
            num_frames=self.size.num_frames,
            height=self.size.height,
            width=self.size.width,
            num_inference_steps=2,
            guidance_scale=1.0,
        )
        seconds = min(self._timed(lambda: sample(self.pipeline, settings, decode=False)) for _ in range(self.rounds))
        flops = 2 * count_flops(self.config, self.size.latents, bypass=False, backward=False)
        return "two sampling steps", seconds, flops

    def _timed(self, work: Callable[[], object]) -> float:
        synchronize(self.pipeline.device)
        began = time.perf_counter()
        work()
        synchronize(self.pipeline.device)
        return time.perf_counter() - began

    def _row(self, what: str, seconds: float, flops: int) -> Measurement:
        row = Measurement(what, seconds, flops / self.rate, peak_memory(self.pipeline.device))
        logger.info(
            "%-28s %8.2f s   floor %7.2f s (%.2f TFLOP)   peak %5.1f GiB",
            row.what, row.seconds, row.floor, flops / 1e12, row.peak_gib,
        )  # fmt: skip
        return row


def append_rows(path: Path, cells: Sequence[str], rows: Sequence[Measurement]) -> None:
    """Add the rows to the table, which is begun if it is not there."""
    text = path.read_text(encoding="utf-8") if path.exists() else TITLE
    text += "" if HEADER in text else HEADER
    for row in rows:
        numbers = (f"{row.seconds:.2f}", f"{row.floor:.2f}", f"{row.peak_gib:.1f}")
        text += "| " + " | ".join((*cells, row.what, *numbers)) + " |\n"
    path.write_text(text, encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="modelscope", help="network (default: modelscope)")
    parser.add_argument("--num-frames", type=int, default=16, help="default: 16")
    parser.add_argument("--height", type=int, default=256, help="default: 256")
    parser.add_argument("--width", type=int, default=256, help="default: 256")
    parser.add_argument("--frames-per-step", type=int, default=4, help="images in an absorber step (default: 4)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, or a device name of torch")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: what is fast here and fits")
    parser.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="default: on a CPU whose memory is too small without it",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--repeat", type=int, default=1, help="training steps; the fastest counts (default: 1)")
    parser.add_argument("--write", action="store_true", help=f"add the rows to {RESULTS.name}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file for --write")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and write if asked."""
    import tempfile

    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    config = CONFIGS[options.config]
    device = pick_device(options.device)
    dtype = choose_dtype(options.dtype, device, config)
    rate = matmul_rate(device, dtype, 256 if options.config == "tiny" else 4096)
    if options.gradient_checkpointing is None:
        options.gradient_checkpointing = needs_checkpointing(options, device, dtype, config)
    name = str(dtype).removeprefix("torch.")
    logger.info("%s, torch %s, %s, AMX: %s", machine_name(device), torch.__version__, name, has_amx())
    logger.info("gradient checkpointing: %s", "on" if options.gradient_checkpointing else "off")
    logger.info("matrix product: %.0f GFLOP/s", rate / 1e9)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = random_base(config, device, dtype, Path(folder))
        logger.info("weights: %.2f GB", weight_bytes(pipeline.unet) / 1e9)
        bench = Bench(options, pipeline, rate)
        rows = bench.rows()
    checkpointing = "on" if options.gradient_checkpointing else "off"
    cells = (machine_name(device), torch.__version__, device.type, name, options.config, str(bench.size), checkpointing)
    if options.write:
        append_rows(options.results, cells, rows)
    if options.json:
        versions = {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")}
        facts = {"machine": cells[0], "dtype": name, "gflops": rate / 1e9, "versions": versions}
        sys.stdout.write(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


def weight_bytes(module: nn.Module) -> int:
    """Bytes that the parameters take, each storage once."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


if __name__ == "__main__":
    sys.exit(main())
