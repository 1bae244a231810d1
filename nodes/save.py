"""Nodes that write files: motion LoRAs and appearance absorbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..motion_lora.core.lora import LoRA
from .comfy import folders, server
from .comfy.sockets import CATEGORY, Absorber, MotionLoRA, io
from .widgets import files

if TYPE_CHECKING:
    from ..motion_lora.core.absorber import Absorber as AbsorberValue


class SaveMotionLoRA(io.ComfyNode):
    """A motion LoRA as a file to keep and to share."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_SaveMotionLoRA",
            display_name="Save Motion LoRA",
            category=f"{CATEGORY}/save",
            description="Writes a motion LoRA below output/loras, where ComfyUI lists it. Training keeps a copy there "
            "by itself; this is for another name or precision.",
            search_aliases=["save lora", "export motion lora"],
            is_output_node=True,
            inputs=[
                MotionLoRA.Input("motion_lora", tooltip="What to save."),
                files.filename("motion/my_motion"),
                files.precision(),
            ],
            outputs=[files.written_name()],
        )

    @classmethod
    def execute(cls, motion_lora: LoRA, filename: str, precision: str) -> io.NodeOutput:
        from ..motion_lora.files.own import save_lora

        path = folders.new_file(folders.lora_folder(), filename)
        dtype = files.PRECISIONS[precision]
        save_lora(path, motion_lora, metadata=server.metadata_allowed(), dtype=dtype, overwrite=False)
        return io.NodeOutput(folders.listed_name(path))


class SaveAbsorber(io.ComfyNode):
    """An appearance absorber as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_SaveAbsorber",
            display_name="Save Appearance Absorber",
            category=f"{CATEGORY}/save",
            description="Writes an appearance absorber into output/motion_lora_absorbers.",
            search_aliases=["save absorber"],
            is_output_node=True,
            inputs=[
                Absorber.Input("appearance_absorber", tooltip="What to save."),
                io.String.Input(
                    "filename",
                    default="my_absorber",
                    tooltip="An existing file is never replaced, the new one gets a number.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "absorber_name", display_name="absorber_name", tooltip="The name under which it is listed."
                )
            ],
        )

    @classmethod
    def execute(cls, appearance_absorber: AbsorberValue, filename: str) -> io.NodeOutput:
        from ..motion_lora.files.absorber_file import save_absorber

        path = folders.new_file(folders.absorber_folder(), filename)
        save_absorber(path, appearance_absorber, metadata=server.metadata_allowed(), overwrite=False)
        return io.NodeOutput(path.relative_to(folders.absorber_folder()).as_posix())
