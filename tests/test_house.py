"""The house rules of docs and design, as tests: who may import whom, what no source file may hold, what is declared.

Every rule is a function from a parsed file to its offences; `test_rule_has_teeth` feeds each one a file that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "motion_lora"
NODES = ROOT / "nodes"

# A package of motion_lora imports only from those before it in this list.
IMPORT_ORDER = (
    "core",
    "media",
    "backbones",
    "base",
    "adapters",
    "files",
    "sampling",
    "methods",
    "training",
    "playground",
    "evaluate",
    "jobs",
    "apps",
)
# Functions that may be longer than a screen, each with its reason.
LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450

# What the host provides and requirements.txt must not name, and import names that differ from the distribution's.
PROVIDED = {"torch", "numpy"}
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "aiohttp", "nodes"}
DISTRIBUTIONS = {"PIL": "pillow", "imageio_ffmpeg": "imageio-ffmpeg"}
POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "pty"}

Rule = Callable[[Path, ast.Module], Iterator[str]]


def committed_files() -> list[Path]:
    """What is or would be committed: tracked and new files that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        skipped = {".venv", ".git", "out", "__pycache__"}
        return [p for p in ROOT.rglob("*") if p.is_file() and not skipped.intersection(p.relative_to(ROOT).parts)]
    names = [name for name in listed.stdout.decode("utf-8").split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported_roots(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and first part of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


# Rules of single files ----------------------------------------------------------------------------------------------


def has_docstring(path: Path, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module does not say what it is"


def no_print(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: print"


def no_blind_except(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type
            names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
            if caught is None or any(isinstance(n, ast.Name) and n.id in _BLIND for n in names):
                yield f"line {node.lineno}: blind except"
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id in _BLIND:
                yield f"line {node.lineno}: raises a nameless exception"


_BLIND = {"Exception", "BaseException"}


def no_device_literal(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"cuda(:\d+)?", node.value):
            yield f"line {node.lineno}: literal {node.value!r}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            yield f"line {node.lineno}: .cuda()"


def ascii_only(path: Path, tree: ast.Module) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.isascii():
            yield f"line {number}: characters outside ASCII"


def relative_imports_only(path: Path, tree: ast.Module) -> Iterator[str]:
    for line, root in imported_roots(tree):
        if root == "motion_lora":
            yield f"line {line}: absolute import of motion_lora inside a package"


def no_posix_only(path: Path, tree: ast.Module) -> Iterator[str]:
    guarded = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in guarded:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: {name} exists on POSIX only" for name in names if name in POSIX_MODULES)


def short_functions(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in functions(tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        # A node's schema is a declaration, as long as the node has inputs.
        allowed = f"{relative(path)}:{node.name}" in LONG_FUNCTIONS or node.name == "define_schema"
        if lines > MAX_FUNCTION_LINES and not allowed:
            yield f"line {node.lineno}: {node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


def short_files(path: Path, tree: ast.Module) -> Iterator[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_FILE_LINES and relative(path) not in LONG_FILES:
        yield f"{lines} lines, more than {MAX_FILE_LINES}: does it hold two things?"


def public_is_documented(path: Path, tree: ast.Module) -> Iterator[str]:
    if path.is_relative_to(NODES):
        return
    for node in tree.body:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        # A script's main is described by the module's docstring.
        if named and not node.name.startswith("_") and node.name != "main" and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def heavy_libraries_by_submodule(path: Path, tree: ast.Module) -> Iterator[str]:
    """`import diffusers` pulls optional backends and fails late; name the submodule."""
    for node in ast.walk(tree):
        named = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if "diffusers" in named:
            yield f"line {node.lineno}: import from a submodule of diffusers"


def no_network_particulars(path: Path, tree: ast.Module) -> Iterator[str]:
    """Only backbones/ names a network's classes, layers and blocks; a block strength may be shown as an example."""
    if path.is_relative_to(LIBRARY / "backbones"):
        return
    docs = {id(node.body[0].value) for node in ast.walk(tree) if _has_doc(node)}
    for node in ast.walk(tree):
        words = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
        words += [node.attr] if isinstance(node, ast.Attribute) else []
        words += [node.id] if isinstance(node, ast.Name) else []
        words += [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom | ast.Import) else []
        words += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for word in words if id(node) not in docs else ():
            if found := _PARTICULARS.search(word):
                yield f"line {node.lineno}: {found.group()} is the affair of a backbone"


def _has_doc(node: ast.AST) -> bool:
    holder = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return holder and ast.get_docstring(node) is not None


_PARTICULARS = re.compile(
    r"UNet3DConditionModel|UNetMotionModel|TransformerTemporalModel|AnimateDiffTransformer3D|TemporalConvLayer"
    r"|Transformer2DModel|ResnetBlock2D|transformer_in\b|temp_attentions|temp_convs|motion_modules|res_hidden_states"
    # What latents are made by and scaled with; building the playground is a tool, outside the library.
    r"|WanTransformer3DModel|AutoencoderKL\w*|scaling_factor|latents_mean|latent_dist"
    r"|\battn[12]\b|\bresnets\b|\b(?:down_blocks|up_blocks|mid_block)\b(?![.\d]*=)"
    r"|backbones\.(?:unet|unet3d|motion_unet)\b"
)


RULES: tuple[tuple[Rule, str], ...] = (
    (no_network_particulars, "from diffusers.models.resnet import TemporalConvLayer\n"),
    (no_network_particulars, "from ..backbones.unet3d import UNET3D\n"),
    (no_network_particulars, "x = 'mid_block.attentions.0'\n"),
    (no_network_particulars, "x = unet.down_blocks\n"),
    (no_network_particulars, "x = vae.encode(pixels).latent_dist\n"),
    (no_network_particulars, "x = vae.config['scaling_factor']\n"),
    (no_network_particulars, "from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL\n"),
    (no_network_particulars, "x = block['res_hidden_states_tuple']\n"),
    (has_docstring, "x = 1\n"),
    (no_print, '"""Doc."""\nprint(1)\n'),
    (no_blind_except, "try:\n    pass\nexcept Exception:\n    pass\n"),
    (no_blind_except, "try:\n    pass\nexcept:\n    pass\n"),
    (no_blind_except, "try:\n    pass\nexcept (KeyError, BaseException):\n    pass\n"),
    (no_blind_except, "raise Exception('no')\n"),
    (no_device_literal, "device = 'cuda'\n"),
    (no_device_literal, "device = 'cuda:0'\n"),
    (no_device_literal, "x.cuda()\n"),
    (ascii_only, "x = '\u00e9'\n"),
    (relative_imports_only, "from motion_lora.core.errors import ClipError\n"),
    (relative_imports_only, "import motion_lora.core.errors\n"),
    (no_posix_only, "import resource\n"),
    (short_functions, "def f():\n" + "    x = 1\n" * 60),
    (short_files, "x = 1\n" * 451),
    (public_is_documented, "def f():\n    pass\n"),
    (public_is_documented, "class F:\n    pass\n"),
    (heavy_libraries_by_submodule, "from diffusers import UNet3DConditionModel\n"),
    (heavy_libraries_by_submodule, "import diffusers\n"),
)


@pytest.mark.parametrize(("rule", "offence"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_rule_has_teeth(rule: Rule, offence: str, tmp_path: Path) -> None:
    path = tmp_path / "offender.py"
    path.write_text(offence, encoding="utf-8")
    assert list(rule(path, parse(path)))


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _ in RULES), ids=lambda rule: rule.__name__)
def test_library_and_nodes_keep(rule: Rule) -> None:
    found = [f"{relative(path)}: {offence}" for path in sources(LIBRARY, NODES) for offence in rule(path, parse(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [has_docstring, ascii_only], ids=lambda rule: rule.__name__)
def test_tests_and_tools_keep(rule: Rule) -> None:
    paths = sources(ROOT / "tests", ROOT / "tools")
    found = [f"{relative(path)}: {offence}" for path in paths for offence in rule(path, parse(path))]
    assert not found, "\n".join(found)


def test_every_exception_to_a_rule_is_needed() -> None:
    long = {
        f"{relative(path)}:{node.name}"
        for path in sources(LIBRARY, NODES)
        for node in functions(parse(path))
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert set(LONG_FUNCTIONS) <= long
    for name in LONG_FILES:
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES


# Who may import whom ------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """`motion_lora.core.errors` for motion_lora/core/errors.py, `motion_lora.core` for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """`core` for `motion_lora.core.errors`; empty for the library itself and for what is not in it."""
    top, *inside = module.split(".")
    return inside[0] if top == "motion_lora" and inside else ""


def internal_imports(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports relatively, anywhere in it: `motion_lora.core.lora.LoRA`."""
    here = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = here[: len(here) - (node.level - 1)] if node.level - 1 <= len(here) else ["outside"]
            start = [*base, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*start, alias.name])) for alias in node.names)


def uphill_imports(path: Path, tree: ast.Module) -> Iterator[str]:
    own = package_of(module_name(path))
    allowed = IMPORT_ORDER[: IMPORT_ORDER.index(own) + 1]
    for line, name in internal_imports(path, tree):
        if package_of(name) not in allowed:
            yield f"line {line}: {own} imports {name}, which is not above it"


def library_modules() -> list[Path]:
    """Every file of the library's packages; its own `__init__.py` hands out names of all of them, when asked."""
    return [path for path in sources(LIBRARY) if path.parent != LIBRARY]


def import_circles(trees: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Every way round: modules that import each other, directly or through others, for types or in a function included.

    `trees` are the files with their syntax by module name.
    """
    arrows = {
        name: {
            found for _, full in internal_imports(path, tree) if (found := module_among(full, trees)) and found != name
        }
        for name, (path, tree) in trees.items()
    }
    free: set[str] = set()  # modules whose imports come to an end
    while settled := {name for name, targets in arrows.items() if name not in free and targets <= free}:
        free |= settled
    on_circle = {name: sorted(targets - free) for name, targets in arrows.items() if name not in free}
    return [f"{name} imports {', '.join(targets)}" for name, targets in sorted(on_circle.items())]


def module_among(full: str, trees: dict[str, tuple[Path, ast.Module]]) -> str:
    """The module that an import of a dotted name reads: itself, or the one that holds the name."""
    return full if full in trees else full.rpartition(".")[0] if full.rpartition(".")[0] in trees else ""


def test_every_package_has_its_place_in_the_order() -> None:
    assert {package_of(module_name(path)) for path in library_modules()} == set(IMPORT_ORDER)
    assert [path.name for path in LIBRARY.glob("*.py")] == ["__init__.py"], "a module belongs into a package"


def test_imports_run_downhill() -> None:
    found = [f"{relative(path)}: {o}" for path in library_modules() for o in uphill_imports(path, parse(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core/lora.py", "from ..training import train"),
        ("core/lora.py", "from .. import training"),
        ("core/lora.py", "from ..training.loop import train"),
        ("playground/world.py", "from ..apps.cli import main"),
        ("core/lora.py", "from ...nodes import comfy"),
        ("core/lora.py", "from .... import comfy"),
    ],
)
def test_uphill_import_is_seen(name: str, source: str) -> None:
    assert list(uphill_imports(LIBRARY / name, ast.parse(source)))


def test_no_import_goes_round_in_a_circle() -> None:
    paths = [*library_modules(), *sources(NODES)]
    found = import_circles({module_name(path): (path, parse(path)) for path in paths})
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "sources_by_name",
    [
        {"core/a.py": "from .b import x", "core/b.py": "from .a import y"},
        {"core/a.py": "from . import b", "core/b.py": "from . import a"},
        {"core/a.py": "from .b import x", "core/b.py": "if TYPE_CHECKING:\n    from .a import y"},
        {"core/a.py": "from .b import x", "core/b.py": "def f():\n    from .a import y"},
        {"core/a.py": "from .b import x", "core/b.py": "from ..base.c import y", "base/c.py": "from ..core.a import z"},
        {"core/a.py": "from . import x", "core/__init__.py": "from .a import y"},
    ],
)
def test_circle_is_seen(sources_by_name: dict[str, str]) -> None:
    trees = {module_name(path): (path, ast.parse(text)) for path, text in placed(sources_by_name)}
    assert import_circles(trees)


def test_no_circle_is_seen_where_there_is_none() -> None:
    apart = {
        "core/a.py": "from .b import x",
        "core/b.py": "from .c import y",
        "core/c.py": "",
        "base/d.py": "from ..core import a",
    }
    assert not import_circles({module_name(path): (path, ast.parse(text)) for path, text in placed(apart)})


def placed(sources_by_name: dict[str, str]) -> list[tuple[Path, str]]:
    return [(LIBRARY / name, text) for name, text in sources_by_name.items()]


def test_library_never_imports_the_host() -> None:
    found = [
        f"{relative(path)}: line {line} imports {root}"
        for path in sources(LIBRARY)
        for line, root in imported_roots(parse(path))
        if root in HOST_MODULES
    ]
    assert not found, "\n".join(found)


def test_world_and_probe_stand_alone() -> None:
    """A reader of the benchmark has to see that the judge shares no code with what is judged."""
    for name in ("world", "probe"):
        path = LIBRARY / "playground" / f"{name}.py"
        tree = parse(path)
        roots = {root for _, root in imported_roots(tree)} - set(sys.stdlib_module_names)
        assert roots <= {"torch"}, f"{name} imports {sorted(roots)}"
        inside = {module for _, module in internal_imports(path, tree)}
        allowed = ("motion_lora.core.errors.", "motion_lora.playground.world")
        assert all(module.startswith(allowed) for module in inside), f"{name} imports {sorted(inside)}"


def test_package_imports_nothing_heavy() -> None:
    """`import motion_lora` and `motion-lora --help` must not wait for torch."""
    heavy = {"torch", "diffusers", "transformers"}
    code = f"import sys, motion_lora, motion_lora.apps.cli; assert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_root_init_is_a_lazy_entry_point() -> None:
    """ComfyUI imports the root at start-up, pytest while collecting: it may define things but import nothing."""
    path = ROOT / "__init__.py"
    if not path.exists():
        return
    for node in parse(path).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.ImportFrom) and node.module == "__future__", ast.unparse(node)
        names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        assert "NODE_CLASS_MAPPINGS" not in names, "it makes ComfyUI ignore comfy_entrypoint"


# What is declared and what is committed -----------------------------------------------------------------------------


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def distribution(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert name, requirement
    return name.group().lower().replace("_", "-")


def test_requirements_equal_dependencies() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == pyproject()["project"]["dependencies"]


def test_requirements_leave_the_hosts_torch_alone() -> None:
    names = [distribution(entry) for entry in pyproject()["project"]["dependencies"]]
    forbidden = {"torch", "torchvision", "torchaudio", "numpy", "xformers", "triton"}
    assert not forbidden.intersection(names)
    assert not [name for name in names if name.startswith("opencv")]
    assert not [entry for entry in pyproject()["project"]["dependencies"] if "==" in entry or "git+" in entry]


def test_every_import_is_declared() -> None:
    project = pyproject()["project"]
    declared = {distribution(entry) for entry in project["dependencies"]} | PROVIDED
    optional = {distribution(entry) for entry in project["optional-dependencies"]["metrics"]}
    missing = {}
    for path in sources(LIBRARY, NODES):
        known = declared | optional if path.is_relative_to(LIBRARY / "evaluate" / "metrics") else declared
        for line, root in imported_roots(parse(path)):
            name = DISTRIBUTIONS.get(root, root.replace("_", "-")).lower()
            if root not in sys.stdlib_module_names and root not in HOST_MODULES and name not in known:
                missing[f"{relative(path)}:{line}"] = root
    missing = {place: root for place, root in missing.items() if root not in ("tomllib", "motion_lora")}
    assert not missing


def test_only_the_library_is_installed() -> None:
    found = pyproject()["tool"]["setuptools"]["packages"]["find"]["include"]
    assert found == ["motion_lora", "motion_lora.*"], "nodes/ on sys.path would shadow ComfyUI's nodes.py"


def test_no_registry_hosts() -> None:
    """A mirror or an offline machine must be enough: no committed file names a package registry."""
    hosts = ["pypi" + ".org", "files.python" + "hosted.org", "download.py" + "torch.org", "registry.npm" + "js.org"]
    found = []
    for path in committed_files():
        if path.suffix in {".safetensors", ".png", ".jpg", ".gif", ".mp4", ".webp"}:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{relative(path)}: {host}" for host in hosts if host in text]
    assert not found, "\n".join(found)


def test_committed_files_are_small_and_real() -> None:
    for path in committed_files():
        assert not path.is_symlink(), f"{relative(path)} is a link; ComfyUI's policies refuse those"
        assert path.stat().st_size < 20_000_000, f"{relative(path)} is larger than 20 MB"
    weights = [path for path in committed_files() if path.is_relative_to(LIBRARY / "playground" / "weights")]
    assert sum(path.stat().st_size for path in weights) <= 15_000_000


def test_ci_entry_is_executable_and_runs_the_tests() -> None:
    entry = ROOT / ".ci" / "run"
    assert "make test" in entry.read_text(encoding="utf-8")
    if sys.platform != "win32":
        assert entry.stat().st_mode & 0o111
