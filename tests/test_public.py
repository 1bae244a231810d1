"""The names that `import motion_lora` offers: each is there, is lazy, and is the same thing as in its module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import motion_lora


@pytest.mark.parametrize("name", motion_lora._HOME)
def test_every_name_is_there(name: str) -> None:
    home = importlib.import_module(f"motion_lora.{motion_lora._HOME[name]}")
    assert getattr(motion_lora, name) is getattr(home, name)
    assert name in dir(motion_lora)


def test_type_checkers_readers_and_python_see_the_same_names() -> None:
    tree = ast.parse(Path(motion_lora.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert declared == motion_lora._HOME
    assert set(motion_lora.__all__) == {*motion_lora._HOME, "__version__"}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = motion_lora.nothing_of_the_kind


def test_names_are_lazy() -> None:
    code = "import sys, motion_lora; motion_lora.MotionLoRAError; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version_is_that_of_the_package() -> None:
    pyproject = Path(motion_lora.__file__).parents[1] / "pyproject.toml"
    assert f'version = "{motion_lora.__version__}"' in pyproject.read_text(encoding="utf-8")


def test_example_of_the_docstring_is_valid_python() -> None:
    lines = (motion_lora.__doc__ or "").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    assert {"load_playground", "read_clip", "train", "save_lora", "sample", "write_video"} <= used
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ml":
            assert node.attr in motion_lora.__all__
