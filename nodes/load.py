"""Nodes that bring something in from disk: base models, motion LoRAs, appearance absorbers."""

from __future__ import annotations

from .comfy import folders, models
from .comfy.sockets import CATEGORY, Absorber, Base, MotionLoRA, io
from .widgets import files, previews
from .widgets.enums import DTYPES


class LoadT2VModel(io.ComfyNode):
    """A base model, by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_LoadT2VModel",
            display_name="Load T2V Model",
            category=f"{CATEGORY}/load",
            description="Loads a text-to-video base model: the small built-in playground model, a folder in diffusers' "
            "layout below models/diffusers, such as ModelScope's, or AnimateDiff: a Stable Diffusion 1.5 checkpoint "
            "with a motion module.",
            search_aliases=["text to video", "ModelScope", "ZeroScope", "AnimateDiff", "playground", "base model"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models.names(),
                    default=models.PLAYGROUND,
                    tooltip="The base model. Put folders in diffusers' layout into models/diffusers and press R. The "
                    "two known ones are listed even when they are not on this machine. For AnimateDiff: checkpoint + "
                    "motion module, with the two folded inputs (Show Advanced).",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="How weights are held and computed. auto: bf16 where the device has it, fp16 on other "
                    "GPUs, fp32 on a CPU. The playground is fp32.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    label_on="allowed",
                    label_off="never",
                    tooltip="Only for the two known models: fetch it from the Hugging Face hub if it is not on this "
                    "machine (several GB). Off, nothing is ever fetched.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[models.NONE, *folders.checkpoint_names()],
                    default=models.NONE,
                    optional=True,
                    advanced=True,
                    tooltip="For checkpoint + motion module: Stable Diffusion 1.5, with VAE and CLIP in it, from "
                    "models/checkpoints, or a diffusers folder of it.",
                ),
                io.Combo.Input(
                    "motion_module",
                    options=[models.NONE, *folders.motion_module_names()],
                    default=models.NONE,
                    optional=True,
                    advanced=True,
                    tooltip="For checkpoint + motion module: AnimateDiff's v2 (mm_sd_v15_v2) or v3 (v3_sd15_mm), from "
                    "models/animatediff_models, or a diffusers MotionAdapter folder below models/diffusers.",
                ),
            ],
            outputs=[Base.Output("base_model", display_name="base_model", tooltip="For training and sampling.")],
        )

    @classmethod
    def execute(
        cls, model: str, dtype: str, download: bool, checkpoint: str = models.NONE, motion_module: str = models.NONE
    ) -> io.NodeOutput:
        name = models.composed_name(checkpoint, motion_module) if model == models.COMPOSED else model
        return io.NodeOutput(models.load(name, dtype, download))


class LoadMotionLoRA(files.FromLoRAFile):
    """A motion LoRA from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_LoadMotionLoRA",
            display_name="Load Motion LoRA",
            category=f"{CATEGORY}/load",
            description="Loads a motion LoRA that was trained here or shared by somebody else.",
            search_aliases=["motion lora", "load lora", "video lora"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folders.choices(folders.lora_names()),
                    tooltip="Files in the subfolder motion of the loras folders (finished training lands there) and in "
                    "models/motion_lora. Press R after adding one.",
                )
            ],
            outputs=[
                MotionLoRA.Output("motion_lora", display_name="motion_lora", tooltip="For a Motion LoRA Stack."),
                io.String.Output(
                    "caption",
                    display_name="caption",
                    tooltip="The caption it was trained with: prompts in its words work best.",
                ),
            ],
        )

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        from ..motion_lora.files.own import load_lora

        lora = load_lora(folders.lora_path(lora_name))
        return io.NodeOutput(lora, previews.caption_of(lora.metadata))


class LoadAbsorber(io.ComfyNode):
    """An appearance absorber from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_LoadAbsorber",
            display_name="Load Appearance Absorber",
            category=f"{CATEGORY}/load",
            description="Loads an appearance absorber, to train several motion LoRAs on the same clip with it.",
            search_aliases=["appearance absorber", "absorber"],
            inputs=[
                io.Combo.Input(
                    "absorber_name",
                    options=folders.choices(folders.absorber_names()),
                    tooltip="Files in models/motion_lora_absorbers and in the output folder of that name.",
                )
            ],
            outputs=[
                Absorber.Output(
                    "appearance_absorber", display_name="appearance_absorber", tooltip="For Train Motion LoRA."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, absorber_name: str) -> str:
        return previews.file_mark(folders.absorber_path, absorber_name)

    @classmethod
    def validate_inputs(cls, absorber_name: str) -> bool | str:
        return previews.is_listed(folders.absorber_path, absorber_name)

    @classmethod
    def execute(cls, absorber_name: str) -> io.NodeOutput:
        from ..motion_lora.files.absorber_file import load_absorber

        return io.NodeOutput(load_absorber(folders.absorber_path(absorber_name)))
