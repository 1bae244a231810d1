"""README and docs/: every link leads somewhere, every command parses, every function that is named is there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import motion_lora
from motion_lora.apps.cli import build_parser
from motion_lora.files.formats import FORMATS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = {"METHODS", "MEASURING", "CLI", "FORMAT", "ARCHITECTURE", "CONTRIBUTING"}
README_CHARACTERS = 8000
# Commands of others, which are not this project's to check.
OTHERS = ("git clone ",)

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Code blocks as (language, code): fenced ones, and those that are indented after an empty line."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield language, code
    bare = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for code in re.findall(r"(?:\A|\n\n)((?: {4}.*\n?)+)", bare):
        yield "", re.sub(r"^ {4}", "", code, flags=re.M)


def commands(text: str) -> list[str]:
    """Command lines of code blocks, each with its continuations, and commands inside sentences."""
    lines = [line for _, code in blocks(text) for line in code.replace("\\\n", " ").splitlines()]
    said = re.findall(r"`((?:motion-lora|make|python) [^`]+)`", text)
    found = [line.split(" # ")[0].strip() for line in lines + said]
    return [line for line in found if re.match(r"(motion-lora|make|python\S*|pip|git) ", line)]


def fault_of(command: str) -> str:
    """What is wrong with a command of a page; empty where nothing is."""
    program, *words = shlex.split(command.replace("python_embeded\\python.exe", "python").replace("\\", "/"))
    if command.startswith(OTHERS):
        return ""
    if program == "motion-lora":
        return parse_fault(words)
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.M))
        return "" if set(words) <= targets else f"no target {words}"
    return words_fault(program, words)


def parse_fault(words: list[str]) -> str:
    try:
        build_parser().parse_args(words)
    except SystemExit as error:
        return "" if error.code == 0 else "the command line refuses it"
    return ""


def words_fault(program: str, words: list[str]) -> str:
    """pip and python: files that they name are here; modules too."""
    if words[:2] == ["-m", "pip"]:
        program, words = "pip", words[2:]
    if program == "pip":
        return pip_fault(words)
    place = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    return "" if (ROOT / place).is_file() else f"no {place}"


def pip_fault(words: list[str]) -> str:
    verb, *rest = words
    if verb != "install":
        return f"pip {verb}"
    named = [word for word in rest if word.endswith(".txt")]
    return "" if all((ROOT / name.rsplit("/", 1)[-1]).is_file() for name in named) else f"no {named}"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [link for link in found if not link.startswith("http")]


def link_fault(path: Path, link: str) -> str:
    place, _, anchor = link.partition("#")
    target = (path.parent / place).resolve() if place else path
    if not target.exists():
        return f"{link}: nothing there"
    if anchor and anchor not in anchors(text_of(target)):
        return f"{link}: no such heading"
    return ""


def test_the_pages_are_those_that_the_readme_names() -> None:
    assert {path.stem for path in PAGES} >= NAMED
    named = set(re.findall(r"\]\(docs/([A-Z]+)\.md\)", text_of(ROOT / "README.md")))
    assert named == {path.stem for path in PAGES[1:]}, "README lists every page of docs/"


def test_the_readme_is_short_and_begins_with_a_moving_picture() -> None:
    text = text_of(ROOT / "README.md")
    assert len(text) <= README_CHARACTERS
    assert re.match(r"# \S+\n\n!\[[^\]]+\]\(docs/images/demo\.(gif|webp)\)\n", text)


def test_the_readme_shows_every_workflow() -> None:
    shown = set(re.findall(r"\]\(workflows/(\w+)\.json\)", text_of(ROOT / "README.md")))
    assert shown == {path.stem for path in (ROOT / "workflows").glob("*.json")}


@page
def test_links_lead_somewhere(path: Path) -> None:
    assert [fault for link in links(text_of(path)) if (fault := link_fault(path, link))] == []


@page
def test_commands_parse(path: Path) -> None:
    assert [f"{command}: {fault}" for command in commands(text_of(path)) if (fault := fault_of(command))] == []


@page
def test_python_blocks_name_what_is_public(path: Path) -> None:
    for language, code in blocks(text_of(path)):
        if language == "python":
            ast.parse(code)
            assert set(re.findall(r"\bml\.(\w+)", code)) <= set(motion_lora.__all__)


@page
def test_files_and_functions_that_are_named_exist(path: Path) -> None:
    for place, name in re.findall(r"`([\w/]+\.py)(?:: (\w+))?`", text_of(path)):
        if "NAME" in place:
            continue
        assert (ROOT / place).is_file(), place
        assert not name or re.search(rf"^\s*(?:def |class )?{name}\b", text_of(ROOT / place), re.M), f"{place}: {name}"


def test_the_formats_are_those_of_the_table() -> None:
    page = text_of(ROOT / "docs" / "FORMAT.md")
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\| (yes|no) \|", page, re.M)
    assert rows == [(name, "yes" if row.write else "no") for name, row in FORMATS.items()]


def test_the_packages_are_those_of_the_house() -> None:
    import test_house

    table = text_of(ROOT / "docs" / "ARCHITECTURE.md").split("## The packages")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.M)) == test_house.IMPORT_ORDER


@pytest.mark.parametrize(
    "text",
    [
        "    motion-lora train --no-such-flag\n",
        "    motion-lora sample --prompt x \\\n        --no-such-flag\n",
        "    make nothing\n",
        "Say `python tools/gone.py`.\n",
        "    pip install -r gone.txt\n",
    ],
)
def test_a_wrong_command_is_found(text: str) -> None:
    (command,) = commands(f"A page.\n\n{text}")
    assert fault_of(command)


def test_a_wrong_link_is_found() -> None:
    assert link_fault(ROOT / "README.md", "docs/GONE.md")
    assert link_fault(ROOT / "README.md", "docs/CLI.md#gone")
