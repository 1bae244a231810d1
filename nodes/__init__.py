"""The ComfyUI side: the extension and the list of its nodes."""

from __future__ import annotations

from . import (
    absorbers,
    advanced,
    bridge,
    clips,
    compare,
    curves,
    files,
    load,
    noise,
    sample,
    save,
    score,
    stack,
    train,
    wan,
)
from .comfy import folders, routes
from .comfy.sockets import ComfyExtension, io

NODES: list[type[io.ComfyNode]] = [
    load.LoadT2VModel,
    wan.LoadWanModel,
    clips.LoadClip,
    clips.ReferenceClip,
    clips.PlaygroundClip,
    clips.CombineClips,
    train.TrainAppearanceAbsorber,
    sample.PreviewAbsorber,
    load.LoadAbsorber,
    absorbers.AbsorberFromLoRA,
    absorbers.AbsorberFromModel,
    save.SaveAbsorber,
    train.TrainMotionLoRA,
    advanced.TrainingOptions,
    load.LoadMotionLoRA,
    save.SaveMotionLoRA,
    stack.MotionLoRAStack,
    stack.AppearanceLoRA,
    stack.AppearanceHighway,
    files.LoadAnyLoRA,
    files.InspectLoRA,
    files.ConvertLoRA,
    files.MergeLoRAs,
    files.ResizeLoRA,
    curves.StrengthScheduleNode,
    curves.FrameStrengthNode,
    noise.InvertClip,
    sample.SampleVideo,
    sample.DecodeVideo,
    sample.SideBySide,
    bridge.ForKSampler,
    bridge.BaseSigmas,
    compare.CompareLoRAs,
    score.ScoreVideo,
]


class MotionLoRAExtension(ComfyExtension):
    """What ComfyUI loads."""

    def __init__(self) -> None:
        self._prepared = False

    async def on_load(self) -> None:
        """Folders and routes. ComfyUI 0.12 never calls this, later ones call it first."""
        if not self._prepared:
            self._prepared = True
            folders.register()
            routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        await self.on_load()
        return NODES
