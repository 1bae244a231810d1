"""Nodes for LoRA files that travel: loading any format, a look inside, writing other formats, merging, resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..motion_lora.core.errors import SettingsError
from ..motion_lora.core.lora import LoRA
from .comfy import folders, server
from .comfy.sockets import CATEGORY, Base, MotionLoRA, TextPart, io
from .widgets import files, previews
from .widgets.enums import COUNTS, LORA_FORMATS

if TYPE_CHECKING:
    from ..motion_lora.adapters.arithmetic import Resized
    from ..motion_lora.base.pipeline import VideoPipeline
    from ..motion_lora.files.reader import ImportReport

_MAX_STRENGTH = 10.0
_MAX_CLIPS = 64  # of an N-clip list; the library refuses longer ones
_ANY_FILE = (
    "Any file in the loras folders or in models/motion_lora: of this project, PEFT, diffusers, kohya, or the lists "
    "that MotionDirector writes. Press R after adding one."
)
_REPORT = "What was done, as text; connect Preview as Text."


def _lora_name() -> io.Combo.Input:
    return io.Combo.Input("lora_name", options=folders.choices(folders.all_lora_names()), tooltip=_ANY_FILE)


class LoadAnyLoRA(files.FromLoRAFile):
    """A LoRA from a file of any format that is understood."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_LoadAnyLoRA",
            display_name="Load LoRA (any format)",
            category=f"{CATEGORY}/load",
            description="Loads a LoRA that another tool wrote. The file is recognised by its content, every key is "
            "accounted for, and what does not fit is refused with the reason: nothing is applied by halves.",
            search_aliases=["import lora", "kohya", "PEFT", "diffusers lora", "MotionDirector", "load lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                _lora_name(),
                Base.Input(
                    "base_model",
                    optional=True,
                    tooltip="What it is going to be used on: every layer is checked against it at once. Without one, "
                    "only the file itself is checked.",
                ),
                io.Boolean.Input(
                    "text_encoder",
                    default=False,
                    optional=True,
                    label_on="read it too",
                    label_off="leave it out",
                    tooltip="The text-encoder part that many image LoRAs have. It changes what every word means, for "
                    "the other LoRAs too. Needs the base model.",
                ),
                io.Int.Input(
                    "clip",
                    default=0,
                    min=0,
                    max=_MAX_CLIPS - 1,
                    optional=True,
                    tooltip="Only for MotionDirector's spatial lists of several clips: whose LoRA to take.",
                ),
            ],
            outputs=[
                MotionLoRA.Output("motion_lora", display_name="motion_lora", tooltip="For a Motion LoRA Stack."),
                io.String.Output("report", display_name="report", tooltip=_REPORT),
                io.String.Output(
                    "caption",
                    display_name="caption",
                    tooltip="The caption it was trained with, where the file says so.",
                ),
                TextPart.Output(
                    "text_part",
                    display_name="text_part",
                    tooltip="Its text-encoder part, if it was asked for, for text_part of Motion LoRA Stack.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, lora_name: str, base_model: VideoPipeline | None = None, text_encoder: bool = False, clip: int = 0
    ) -> io.NodeOutput:
        report, text = read(lora_name, base_model, text_encoder=text_encoder, clip=clip)
        server.tell_node(cls.hidden.unique_id, text)
        return io.NodeOutput(report.lora, text, previews.caption_of(report.lora.metadata), report.text_encoder)


def read(
    lora_name: str, base: VideoPipeline | None, *, text_encoder: bool = False, clip: int = 0
) -> tuple[ImportReport, str]:
    """A listed LoRA of any format, and what to say of it in one line. Raises LoRAFileError, SettingsError."""
    from ..motion_lora.adapters.fit import base_warning
    from ..motion_lora.files.reader import load_any

    path = folders.lora_path(lora_name)
    if base is None:
        if text_encoder:
            raise SettingsError(
                "the text-encoder part is read against a base model: connect base_model, or leave it out"
            )
        report = load_any(path, clip=clip)
        notes = [*report.notes, "connect base_model to see whether they fit"]
        return report, "; ".join([f"{report.total} layers read ({report.format})", *notes])
    report = load_any(path, base.unet, text_encoder=base.text_encoder if text_encoder else None, clip=clip)
    warning = base_warning(report.lora.metadata, base.identity)
    return report, f"{report.text}; {warning}" if warning else report.text


class InspectLoRA(files.FromLoRAFile):
    """What a LoRA file is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_InspectLoRA",
            display_name="Inspect LoRA",
            category=f"{CATEGORY}/load",
            description="Shows what a LoRA file holds, before it is used: format, layers and norms by block, rank, "
            "captions, the base it was made on.",
            search_aliases=["lora info", "lora metadata", "lora keys"],
            is_output_node=True,
            inputs=[
                _lora_name(),
                Base.Input("base_model", optional=True, tooltip="Also says whether every layer fits this base model."),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="The report as text."),
                io.Image.Output("table", display_name="table", tooltip="The report as the node shows it."),
            ],
        )

    @classmethod
    def execute(cls, lora_name: str, base_model: VideoPipeline | None = None) -> io.NodeOutput:
        from ..motion_lora.files.inspection import inspect, report_text

        network, identity = (base_model.unet, base_model.identity) if base_model is not None else (None, None)
        facts = inspect(folders.lora_path(lora_name), network, identity)
        text, table = report_text(facts), previews.report_table(facts)
        return io.NodeOutput(text, table, ui={**previews.in_node(table, cls).as_dict(), "text": (text,)})


class ConvertLoRA(io.ComfyNode):
    """A LoRA as a file for other tools."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_ConvertLoRA",
            display_name="Convert LoRA",
            category=f"{CATEGORY}/save",
            description="Writes a LoRA below output/loras in the format of another tool, or in this project's own. "
            "The file is read back and compared before it takes its name.",
            search_aliases=["export lora", "save as kohya", "save as PEFT", "diffusers lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                MotionLoRA.Input("motion_lora", tooltip="What to write, such as from Load LoRA (any format)."),
                io.Combo.Input(
                    "format",
                    options=list(LORA_FORMATS),
                    default="motion-lora",
                    tooltip="motion-lora: this project's own. kohya: lora_unet_* keys with alpha. peft: what diffusers "
                    "and PEFT read.",
                ),
                files.filename("motion/converted"),
                files.precision(),
            ],
            outputs=[files.written_name()],
        )

    @classmethod
    def execute(cls, motion_lora: LoRA, format: str, filename: str, precision: str) -> io.NodeOutput:
        from ..motion_lora.files.own import save_lora
        from ..motion_lora.files.writers import export_kohya, export_peft, not_carried

        path = folders.new_file(folders.lora_folder(), filename)
        write = {"motion-lora": save_lora, "kohya": export_kohya, "peft": export_peft}[format]
        dtype = files.PRECISIONS[precision]
        described = server.metadata_allowed()
        write(path, motion_lora, metadata=described, dtype=dtype, overwrite=False)
        name = folders.listed_name(path)
        lost = not_carried(motion_lora, format, metadata=described)
        text = f"{name}: {len(motion_lora)} layers written ({format})" + (f"; {lost}" if lost else "")
        server.tell_node(cls.hidden.unique_id, text)
        return io.NodeOutput(name)


class MergeLoRAs(io.ComfyNode):
    """Two LoRAs as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_MergeLoRAs",
            display_name="Merge LoRAs",
            category=f"{CATEGORY}/stack",
            description="Makes one LoRA that does what two do together, to be saved or shared. Chain it for more.",
            search_aliases=["combine loras", "lora merge", "lora arithmetic"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                MotionLoRA.Input("lora_1", tooltip="The first LoRA, or the result of another Merge LoRAs."),
                _strength("strength_1", "first"),
                MotionLoRA.Input("lora_2", tooltip="The second LoRA."),
                _strength("strength_2", "second"),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=COUNTS["rank"],
                    tooltip="0: exact, the ranks add up. Otherwise the nearest LoRA of at most this rank.",
                ),
            ],
            outputs=[
                MotionLoRA.Output("motion_lora", display_name="motion_lora", tooltip="For a stack, or to be saved."),
                io.String.Output("report", display_name="report", tooltip=_REPORT),
            ],
        )

    @classmethod
    def execute(cls, lora_1: LoRA, strength_1: float, lora_2: LoRA, strength_2: float, rank: int) -> io.NodeOutput:
        from ..motion_lora.adapters.arithmetic import merge, resize

        with server.ordinary_tensors():
            merged = merge([lora_1, lora_2], [strength_1, strength_2])
            resized = resize(merged, rank) if rank else None
        lora = resized.lora if resized else merged
        kept = _kept(resized) if resized else "exact"
        text = f"{len(lora_1)} and {len(lora_2)} layers merged into {len(lora)} of rank {_ranks(lora)}: {kept}"
        server.tell_node(cls.hidden.unique_id, text)
        return io.NodeOutput(lora, text)


class ResizeLoRA(io.ComfyNode):
    """A LoRA of a lower rank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_ResizeLoRA",
            display_name="Resize LoRA",
            category=f"{CATEGORY}/stack",
            description="Finds the nearest LoRA of a lower rank (SVD): a smaller file that does nearly the same. Says "
            "how much of the change was kept.",
            search_aliases=["reduce rank", "lora svd", "shrink lora", "dynamic rank"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                MotionLoRA.Input("motion_lora", tooltip="What to make smaller."),
                io.Int.Input(
                    "rank",
                    default=4,
                    min=0,
                    max=COUNTS["rank"],
                    tooltip="The highest rank of a layer; ranks are never raised. 0: what the energy asks for.",
                ),
                io.Float.Input(
                    "energy",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of each layer's energy (squared singular values) to keep, where the rank allows it.",
                ),
            ],
            outputs=[
                MotionLoRA.Output("motion_lora_out", display_name="motion_lora", tooltip="The smaller LoRA."),
                io.Float.Output("kept", display_name="kept", tooltip="Share of the energy that was kept, 0 to 1."),
                io.String.Output("report", display_name="report", tooltip=_REPORT),
            ],
        )

    @classmethod
    def execute(cls, motion_lora: LoRA, rank: int, energy: float) -> io.NodeOutput:
        from ..motion_lora.adapters.arithmetic import resize

        with server.ordinary_tensors():
            resized = resize(motion_lora, rank or None, energy=energy)
        text = f"rank {_ranks(motion_lora)} to {_ranks(resized.lora)}: {_kept(resized)}"
        server.tell_node(cls.hidden.unique_id, text)
        return io.NodeOutput(resized.lora, resized.kept, text)


def _strength(name: str, which: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=-_MAX_STRENGTH,
        max=_MAX_STRENGTH,
        step=0.05,
        tooltip=f"How much of the {which} LoRA goes in: negative turns it round.",
    )


def _ranks(lora: LoRA) -> str:
    return str(lora.ranks[0]) if len(set(lora.ranks)) == 1 else f"{min(lora.ranks)} to {max(lora.ranks)}"


def _kept(resized: Resized) -> str:
    least = min(resized.kept_by_module, key=lambda module: resized.kept_by_module[module])
    return f"{resized.kept:.2%} of the energy kept, least in {least} ({resized.kept_by_module[least]:.2%})"
