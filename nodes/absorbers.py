"""Nodes that make an absorber of what others have trained: a LoRA of a look, or a network tuned on a subject."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..motion_lora.core.errors import LoRAFileError
from .comfy import folders, server
from .comfy.sockets import CATEGORY, Absorber, Base, MotionLoRA, io
from .widgets import previews

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline
    from ..motion_lora.core.lora import LoRA

CONNECTED = "(the connected LoRA)"


class AbsorberFromLoRA(io.ComfyNode):
    """A LoRA of a look, used as an absorber."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_AbsorberFromLoRA",
            display_name="Absorber from LoRA",
            category=f"{CATEGORY}/load",
            description="Uses the spatial layers of any LoRA that fits as an appearance absorber: one of the clip's "
            "subject or style, from anywhere. It is active and frozen while the motion is learned.",
            search_aliases=["third-party absorber", "appearance absorber", "image lora", "style lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=[CONNECTED, *folders.all_lora_names()],
                    default=CONNECTED,
                    tooltip="A file in the loras folders, in the formats of this project, diffusers, PEFT or kohya; or "
                    "the LoRA that is connected below.",
                ),
                Base.Input("base_model", tooltip="What it is going to be used on; every layer is checked against it."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the look is held: 1 as trained. Trained absorbers use half of it.",
                ),
                MotionLoRA.Input(
                    "lora",
                    optional=True,
                    tooltip="A LoRA from another node, such as one of MotionDirector's image path.",
                ),
            ],
            outputs=[
                Absorber.Output(
                    "appearance_absorber", display_name="appearance_absorber", tooltip="For Train Motion LoRA."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = CONNECTED, **unused: Any) -> str:
        return "" if lora_name == CONNECTED else previews.file_mark(folders.lora_path, lora_name)

    @classmethod
    def validate_inputs(cls, lora_name: str) -> bool | str:
        return True if lora_name == CONNECTED else previews.is_listed(folders.lora_path, lora_name)

    @classmethod
    def execute(
        cls, lora_name: str, base_model: VideoPipeline, strength: float, lora: LoRA | None = None
    ) -> io.NodeOutput:
        from ..motion_lora.files.absorbers import absorber_from_lora, load_any_absorber
        from ..motion_lora.training import check_absorber

        if (lora is None) == (lora_name == CONNECTED):
            raise LoRAFileError("an absorber needs one LoRA: choose a file, or connect a LoRA and choose no file")
        if lora is None:
            report = load_any_absorber(folders.lora_path(lora_name), base_model.unet, strength=strength)
            absorber, notes = report.absorber, report.notes
        else:
            absorber, notes = absorber_from_lora(lora, strength=strength)
        check_absorber(base_model, absorber)
        server.tell_node(cls.hidden.unique_id, "; ".join(notes))
        return io.NodeOutput(absorber)


class AbsorberFromModel(io.ComfyNode):
    """The spatial weights of a network that was tuned on a subject, used as an absorber."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_AbsorberFromModel",
            display_name="Absorber from Model",
            category=f"{CATEGORY}/load",
            description="Uses the spatial weights of a fine-tuned image or video model (DreamBooth) as an appearance "
            "absorber: they stand in for the base's own, frozen, while the motion is learned.",
            search_aliases=["third-party absorber", "DreamBooth", "appearance absorber"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=folders.choices(folders.network_names()),
                    tooltip="A folder in diffusers' layout below models/diffusers, with weights as safetensors. For "
                    "ModelScope and ZeroScope a model of Stable Diffusion 2.1's layout fits.",
                ),
                Base.Input("base_model", tooltip="What it is going to be used on; every weight is checked against it."),
            ],
            outputs=[
                Absorber.Output(
                    "appearance_absorber", display_name="appearance_absorber", tooltip="For Train Motion LoRA."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        return previews.is_listed(folders.network_path, model)

    @classmethod
    def execute(cls, model: str, base_model: VideoPipeline) -> io.NodeOutput:
        from ..motion_lora.files.absorbers import load_any_absorber

        report = load_any_absorber(folders.network_path(model), base_model.unet)
        server.tell_node(cls.hidden.unique_id, "; ".join(report.notes))
        return io.NodeOutput(report.absorber)
