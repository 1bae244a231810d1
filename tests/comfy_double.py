"""A small double of what the nodes use of ComfyUI, for machines without one.

`Host(folder)` puts the modules in place and loads the pack as ComfyUI does: from its path, under a name made of it.
`tests/test_host.py` holds the double against the real thing where there is one: same node infos, same results.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import torch

ROOT = Path(__file__).resolve().parents[1]
PACK = "motion_lora_pack_under_test"


# comfy_execution.graph_utils and comfy_api.latest -------------------------------------------------------------------


class ExecutionBlocker:
    def __init__(self, message: str | None) -> None:
        self.message = message


def _pruned(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


class Input:
    """One input; `info` is its entry of /object_info."""

    io_type = ""
    # Keyword of the class -> key of the info, in the order of the real one.
    keys: Mapping[str, str] = {}

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        **options: Any,
    ) -> None:
        unknown = set(options) - set(self.keys) - {"advanced"}
        assert not unknown, f"{type(self).__name__} takes no {unknown}"
        self.id, self.optional = id, optional
        self.options = {"display_name": display_name, "tooltip": tooltip, **options}

    def info(self) -> list[Any]:
        named = {self.keys.get(name, name): value for name, value in self.options.items()}
        return [self.io_type, _pruned({**self.fixed(), **named})]

    def fixed(self) -> dict[str, Any]:
        return {}


class Output:
    io_type = ""

    def __init__(self, id: str | None = None, display_name: str | None = None, tooltip: str | None = None) -> None:
        self.id, self.display_name, self.tooltip = id, display_name or id, tooltip


def _type(io_type: str, keys: str = "", **fixed: Any) -> type:
    names = {name: name for name in keys.split()}
    made_input = type("Input", (Input,), {"io_type": io_type, "keys": names, "fixed": lambda self: dict(fixed)})
    return type(io_type, (), {"Input": made_input, "Output": type("Output", (Output,), {"io_type": io_type})})


class Hidden:
    unique_id, prompt, extra_pnginfo = "UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO"


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False
    not_idempotent: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui if ui is None or isinstance(ui, dict) else ui.as_dict()


class ComfyNode:
    hidden: Any = None

    @classmethod
    def info(cls) -> dict[str, Any]:
        """What the real one shows in /object_info, as far as the snapshot test looks."""
        schema = cls.define_schema()
        hidden = list(schema.hidden)
        if schema.is_output_node:
            hidden += [name for name in (Hidden.prompt, Hidden.extra_pnginfo) if name not in hidden]
        entries: dict[str, dict[str, Any]] = {"required": {}}
        for one in schema.inputs:
            entries.setdefault("optional" if one.optional else "required", {})[one.id] = one.info()
        return {
            "input": entries,
            "input_order": {kind: list(found) for kind, found in entries.items()},
            "output": [one.io_type for one in schema.outputs],
            "output_name": [one.display_name for one in schema.outputs],
            "output_tooltips": [one.tooltip for one in schema.outputs],
            "name": schema.node_id,
            "display_name": schema.display_name,
            "category": schema.category,
            "description": schema.description,
            "output_node": schema.is_output_node,
            "search_aliases": schema.search_aliases or None,
        }


class ComfyExtension:
    async def on_load(self) -> None: ...


@dataclass
class VideoComponents:
    images: torch.Tensor
    frame_rate: Fraction
    audio: Any = None


@dataclass
class VideoFromComponents:
    components: VideoComponents

    def get_components(self) -> VideoComponents:
        return self.components

    def get_stream_source(self) -> Any:
        return None


@dataclass
class VideoFromFile:
    file: str

    def get_stream_source(self) -> str:
        return self.file


class PreviewImage:
    def __init__(self, image: torch.Tensor, animated: bool = False, cls: Any = None) -> None:
        self.image = image

    def as_dict(self) -> dict[str, Any]:
        return {"images": [{"shape": tuple(one.shape)} for one in self.image], "animated": (False,)}


class PreviewVideo:
    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values, "animated": (True,)}


def _saved_result(filename: str, subfolder: str, type: str) -> dict[str, str]:
    return {"filename": filename, "subfolder": subfolder, "type": type}


_NUMBER = "default min max step"
_IO = {
    "Schema": Schema,
    "NodeOutput": NodeOutput,
    "ComfyNode": ComfyNode,
    "Hidden": Hidden,
    "Custom": _type,
    "FolderType": types.SimpleNamespace(temp="temp", output="output", input="input"),
    "Int": _type("INT", f"{_NUMBER} control_after_generate"),
    "Float": _type("FLOAT", f"{_NUMBER} round"),
    "Boolean": _type("BOOLEAN", "default label_on label_off"),
    "String": _type("STRING", "default multiline dynamic_prompts"),
    "Combo": _type("COMBO", "default options", multiselect=False),
    "Image": _type("IMAGE"),
    "Latent": _type("LATENT"),
    "Model": _type("MODEL"),
    "Clip": _type("CLIP"),
    "Vae": _type("VAE"),
    "Sigmas": _type("SIGMAS"),
    "Conditioning": _type("CONDITIONING"),
    "Video": _type("VIDEO"),
    "LossMap": _type("LOSS_MAP"),
}
_IO["String"].Input.fixed = lambda self: {"multiline": False}
_IO["String"].Input.keys = {"default": "default", "multiline": "multiline", "dynamic_prompts": "dynamicPrompts"}


# The host ------------------------------------------------------------------------------------------------------------


class InterruptProcessingException(Exception):  # noqa: N818  (the real one's name)
    pass


class _Queue:
    def __init__(self) -> None:
        self.running: list[Any] = []
        self.flags: dict[str, bool] = {}

    def get_current_queue_volatile(self) -> tuple[list[Any], list[Any]]:
        return self.running, []

    def set_flag(self, name: str, value: bool) -> None:
        self.flags[name] = value

    def get_flags(self, reset: bool = True) -> dict[str, bool]:
        found = dict(self.flags)
        if reset:
            self.flags.clear()
        return found


class _Routes:
    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], Callable[..., Any]] = {}

    def get(self, path: str) -> Callable[..., Any]:
        return self._adder("GET", path)

    def post(self, path: str) -> Callable[..., Any]:
        return self._adder("POST", path)

    def _adder(self, method: str, path: str) -> Callable[..., Any]:
        def add(handler: Callable[..., Any]) -> Callable[..., Any]:
            self.handlers[method, path] = handler
            return handler

        return add


class Server:
    def __init__(self) -> None:
        self.prompt_queue, self.routes = _Queue(), _Routes()
        self.client_id = "browser-1"
        self.sent: list[tuple[str, Any]] = []

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.sent.append(("text", (node_id, text)))


class _ProgressBar:
    seen: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, total: int, node_id: str | None = None) -> None: ...

    def update_absolute(self, value: int, total: int | None = None) -> None:
        self.seen.append((value, total or 0))


class ModelPatcher:
    """What the pack's own patcher builds upon."""

    def __init__(self, model: Any, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device

    def model_size(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.model.state_dict().values())


class Host:
    """A ComfyUI of one's own below `folder`; `nodes` are the classes of the pack by node id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.interrupted = threading.Event()
        self.progress = _ProgressBar.seen = []
        for name in ("models/diffusers", "models/loras", "output/loras", "temp", "user"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._install()
        self.pack = self._load()
        # ComfyUI 0.12 does not call on_load.
        self.extension = asyncio.run(self.pack.comfy_entrypoint())
        self.refresh()

    def refresh(self) -> None:
        """Ask the extension for its nodes, as ComfyUI does when it starts."""
        self.nodes = {node.define_schema().node_id: node for node in asyncio.run(self.extension.get_node_list())}

    def library(self, name: str) -> Any:
        """A module of the library as the pack sees it: not the one that tests import."""
        return importlib.import_module(f"{PACK}.motion_lora.{name}")

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{PACK}.nodes.{name}")

    def run(self, node_id: str, *, unique_id: str = "1", prompt: Any = None, **inputs: Any) -> NodeOutput:
        """Execute a node as ComfyUI does: in inference mode, widgets that are not given at their defaults."""
        return self.run_prompt(self.run_async(node_id, unique_id=unique_id, prompt=prompt, **inputs))

    def run_prompt(self, prompt: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine over `run_async` in inference mode, which has to be around the whole loop: it is a state of
        the thread, and tasks that entered it one after the other would leave it in the wrong order."""
        with torch.inference_mode():
            return asyncio.run(prompt)

    async def run_async(self, node_id: str, *, unique_id: str = "1", prompt: Any = None, **inputs: Any) -> NodeOutput:
        """One node of a prompt; see `run_prompt`. A `prompt` that is text is the node's own widget."""
        if isinstance(prompt, str):
            inputs, prompt = {**inputs, "prompt": prompt}, None
        node = self.nodes[node_id]
        defaults = {i.id: i.options["default"] for i in node.define_schema().inputs if "default" in i.options}
        clone = type(node.__name__, (node,), {})
        clone.hidden = types.SimpleNamespace(unique_id=unique_id, prompt=prompt or {}, extra_pnginfo={"workflow": {}})
        self.server.prompt_queue.running.append(unique_id)
        try:
            made = clone.execute(**{**defaults, **inputs})
            return await made if inspect.isawaitable(made) else made
        finally:
            self.server.prompt_queue.running.remove(unique_id)

    def close(self) -> None:
        """Stop the jobs and take every module out again."""
        background = sys.modules.get(f"{PACK}.nodes.comfy.jobs")
        if background is not None and background._runner is not None:
            background._runner.close(timeout=20)
        for name in [name for name in sys.modules if name == PACK or name.startswith(f"{PACK}.")]:
            del sys.modules[name]
        for name in self._installed:
            sys.modules.pop(name, None)

    def _load(self) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACK] = module
        spec.loader.exec_module(module)
        return module

    def _install(self) -> None:
        latest = {
            "io": types.SimpleNamespace(**_IO),
            "ui": types.SimpleNamespace(
                PreviewImage=PreviewImage, PreviewVideo=PreviewVideo, SavedResult=_saved_result
            ),
            "InputImpl": types.SimpleNamespace(VideoFromComponents=VideoFromComponents, VideoFromFile=VideoFromFile),
            "Types": types.SimpleNamespace(VideoComponents=VideoComponents),
            "ComfyExtension": ComfyExtension,
        }
        modules: dict[str, Mapping[str, Any]] = {
            "comfy_api": {},
            "comfy_api.latest": latest,
            "comfy_execution": {},
            "comfy_execution.graph_utils": {"ExecutionBlocker": ExecutionBlocker},
            "comfy": {},
            "comfy.model_management": self._model_management(),
            "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
            "comfy.utils": {"ProgressBar": _ProgressBar},
            "comfy.cli_args": {"args": types.SimpleNamespace(disable_metadata=False)},
            "folder_paths": self._folder_paths(),
            "server": {"PromptServer": types.SimpleNamespace(instance=self.server)},
        }
        if importlib.util.find_spec("aiohttp") is None:
            modules |= {"aiohttp": {"web": types.SimpleNamespace(Request=Any, StreamResponse=Any, Response=Any)}}
        self._installed = list(modules)
        for name, content in modules.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)

    def _model_management(self) -> dict[str, Any]:
        cpu = torch.device("cpu")

        def throw() -> None:
            if self.interrupted.is_set():
                self.interrupted.clear()
                raise InterruptProcessingException

        return {
            "InterruptProcessingException": InterruptProcessingException,
            "get_torch_device": lambda: cpu,
            "intermediate_device": lambda: cpu,
            "processing_interrupted": self.interrupted.is_set,
            "throw_exception_if_processing_interrupted": throw,
            "soft_empty_cache": lambda: None,
            "free_memory": lambda size, device: [],
            "get_total_memory": lambda device: 0,
            "current_loaded_models": [],
            "loaded_models": lambda: [],
            "load_models_gpu": lambda models, memory_required=0: None,
        }

    def _folder_paths(self) -> dict[str, Any]:
        known: dict[str, tuple[list[str], set[str]]] = {
            "diffusers": ([str(self.folder / "models/diffusers")], {"folder"}),
            "checkpoints": ([str(self.folder / "models/checkpoints")], {".safetensors", ".ckpt"}),
            "clip_vision": ([str(self.folder / "models/clip_vision")], {".safetensors", ".pth"}),
            "diffusion_models": ([str(self.folder / "models/diffusion_models")], {".safetensors"}),
            "vae": ([str(self.folder / "models/vae")], {".safetensors"}),
            "loras": ([str(self.folder / "models/loras"), str(self.folder / "output/loras")], {".safetensors", ".pt"}),
        }

        def listed(name: str) -> Iterator[tuple[str, Path]]:
            folders, suffixes = known[name]
            for folder in map(Path, folders):
                for path in sorted(folder.rglob("*")):
                    if path.is_file() and (not suffixes or path.suffix in suffixes):
                        yield str(path.relative_to(folder)), path

        def full_path(name: str, file: str) -> str:
            return next(str(path) for found, path in listed(name) if found == file)

        return {
            "base_path": str(self.folder),
            "models_dir": str(self.folder / "models"),
            "folder_names_and_paths": known,
            "add_model_folder_path": lambda name, path: known.setdefault(name, ([], set()))[0].append(path),
            "get_folder_paths": lambda name: list(known[name][0]),
            "get_filename_list": lambda name: list(dict.fromkeys(found for found, _ in listed(name))),
            "get_full_path_or_raise": full_path,
            "get_input_directory": lambda: str(self.folder / "input"),
            "get_output_directory": lambda: str(self.folder / "output"),
            "get_temp_directory": lambda: str(self.folder / "temp"),
            "get_user_directory": lambda: str(self.folder / "user"),
        }


@contextmanager
def hosted(folder: Path) -> Iterator[Host]:
    """A host for one test or module."""
    host = Host(folder)
    try:
        yield host
    finally:
        host.close()
