"""motion-lora convert, merge, resize and extract: LoRA files from other LoRA files, or from two checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from .bases import BASE_HELP, PLAYGROUND, add_json_flag, empty_network, wants_json
from .console import note, write, write_json
from .options import file_and_strength
from .results import check_output

if TYPE_CHECKING:
    import torch

    from ...core.lora import LoRA

_CONVERT_EXAMPLES = """\
examples:
  motion-lora convert orbit.safetensors --format kohya --output orbit_kohya.safetensors
  motion-lora convert checkpoint_default.pt --base modelscope --output theirs.safetensors
  motion-lora convert orbit.safetensors --dtype fp16 --no-metadata --output small.safetensors

The written file is read back and compared before it takes its name.
"""
_MERGE_EXAMPLES = """\
examples:
  motion-lora merge orbit.safetensors 0.7 --with style.safetensors 0.5 --output both.safetensors
  motion-lora merge a.safetensors --with b.safetensors --rank 4 --output both.safetensors

Without --rank the merge is exact: ranks add up.
"""
_RESIZE_EXAMPLES = """\
examples:
  motion-lora resize orbit.safetensors --rank 2 --output orbit_r2.safetensors
  motion-lora resize orbit.safetensors --energy 0.95 --output orbit_small.safetensors
"""
_EXTRACT_EXAMPLES = """\
examples:
  motion-lora extract models/zeroscope_v2_576w models/my_finetune --rank 16 --output mine.safetensors
  motion-lora extract playground out/tuned/unet --preset temporal-attention --output motion.safetensors

BASE and TUNED are model folders in diffusers' layout, their unet folders, safetensors files of a UNet, or playground.
What a LoRA cannot hold (biases, norms) or --preset leaves out is counted.
"""
_DTYPES = ("fp32", "fp16", "bf16")


def add(commands: Any) -> None:
    """Add the parsers of the four commands."""
    convert = _parser(commands, "convert", "read a LoRA of any format, write another", _CONVERT_EXAMPLES, run_convert)
    convert.add_argument("file", type=Path, help="LoRA file of any format that motion-lora inspect knows")
    convert.add_argument("--format", default="motion-lora", metavar="NAME", help="motion-lora (default), kohya or peft")
    convert.add_argument("--base", metavar="BASE", help=f"the network that it is for: {BASE_HELP}")
    merge = _parser(commands, "merge", "several LoRAs into one", _MERGE_EXAMPLES, run_merge)
    merge.add_argument("first", nargs="+", metavar="FILE [STRENGTH]", help="the first LoRA and its strength")
    merge.add_argument(
        "--with", dest="others", nargs="+", action="append", default=[], metavar="FILE [STRENGTH]", help="another LoRA"
    )
    merge.add_argument("--rank", type=int, metavar="N", help="bring the result down to this rank")
    resize = _parser(commands, "resize", "a LoRA of a lower rank", _RESIZE_EXAMPLES, run_resize)
    resize.add_argument("file", type=Path, help="LoRA file")
    resize.add_argument("--rank", type=int, metavar="N", help="the highest rank of a layer")
    resize.add_argument("--energy", type=float, metavar="X", help="share of each layer's energy to keep, 0 to 1")
    extract = _parser(
        commands, "extract", "the difference of two checkpoints as a LoRA", _EXTRACT_EXAMPLES, run_extract
    )
    extract.add_argument("base", metavar="BASE", help="the model before")
    extract.add_argument("tuned", metavar="TUNED", help="the model after it was trained on")
    extract.add_argument("--rank", type=int, default=16, metavar="N", help="rank of the LoRA (default: 16)")
    extract.add_argument("--preset", metavar="NAME", help="only these modules (motion-lora targets lists presets)")
    extract.add_argument("--variant", help="file variant in the folders, such as fp16")


def _parser(commands: Any, name: str, summary: str, examples: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")
    parser.add_argument("--dtype", choices=_DTYPES, help="store factors in this precision (default: as they are)")
    parser.add_argument("--no-metadata", action="store_true", help="write only what is needed to read the file")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    add_json_flag(parser)
    parser.set_defaults(run=run)
    return parser


def run_convert(options: argparse.Namespace) -> int:
    """Read, write, prove."""
    from ...files.writers import convert, not_carried

    _check(options)
    report = convert(
        options.file,
        options.output,
        options.format,
        empty_network(options.base) if options.base else None,
        dtype=_dtype(options.dtype),
        metadata=not options.no_metadata,
        overwrite=options.overwrite,
    )
    lost = not_carried(report.lora, options.format, metadata=not options.no_metadata)
    facts = {"file": str(options.output), "from": report.format, "to": options.format, "layers": report.total}
    facts |= {"lost": lost} if lost else {}
    _tell(options, facts, f"{options.output}: {report.text}" + (f"; {lost}" if lost else ""))
    return 0


def run_merge(options: argparse.Namespace) -> int:
    """Add up the changes, and bring the rank down if asked."""
    from ...adapters.arithmetic import merge, resize
    from ...files.reader import load_any

    _check(options)
    pairs = [file_and_strength(entry, "a LoRA") for entry in (options.first, *options.others)]
    lora = merge([load_any(path).lora for path, _ in pairs], [strength for _, strength in pairs])
    kept = 1.0
    if options.rank is not None:
        resized = resize(lora, options.rank)
        lora, kept = resized.lora, resized.kept
    _save(options, lora, kept)
    return 0


def run_resize(options: argparse.Namespace) -> int:
    """The nearest LoRA of a lower rank."""
    from ...adapters.arithmetic import resize
    from ...files.reader import load_any

    _check(options)
    resized = resize(load_any(options.file).lora, options.rank, energy=options.energy)
    _save(options, resized.lora, resized.kept)
    return 0


def run_extract(options: argparse.Namespace) -> int:
    """Two checkpoints of one network in, their difference out."""
    from ...adapters.arithmetic import extract
    from ...adapters.targets import target_modules
    from ...base.loading import read_unet_weights
    from ...playground.model import PLAYGROUND_FOLDER

    _check(options)
    modules = target_modules(empty_network(options.base), options.preset) if options.preset else None
    places = [
        PLAYGROUND_FOLDER if place == PLAYGROUND else Path(place).expanduser()
        for place in (options.base, options.tuned)
    ]
    base, tuned = (read_unet_weights(place, options.variant) for place in places)
    found = extract(base, tuned, options.rank, modules)
    if found.left_out:
        note(f"{len(found.left_out)} changed tensors are left out, {found.left_out[0]} the first")
    _save(options, found.lora.with_metadata(**{"modelspec.title": options.output.stem}), found.kept)
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.output.suffix != ".safetensors":
        raise SettingsError(f"The output {options.output} must end in .safetensors.")
    check_output(options.output, overwrite=options.overwrite)


def _save(options: argparse.Namespace, lora: LoRA, kept: float) -> None:
    from ...files.own import save_lora

    save_lora(
        options.output,
        lora,
        dtype=_dtype(options.dtype),
        metadata=not options.no_metadata,
        overwrite=options.overwrite,
    )
    facts = {"file": str(options.output), "layers": len(lora), "ranks": list(lora.ranks), "energy_kept": kept}
    ranks = ", ".join(str(rank) for rank in lora.ranks)
    _tell(options, facts, f"{options.output}: {len(lora)} layers of rank {ranks}, {kept:.2%} of the energy kept")


def _tell(options: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    if wants_json(options):
        write_json(facts)
    else:
        write(text)


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return {None: None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
