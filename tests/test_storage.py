"""Bytes on disk: headers that lie, files that end early, writing that fails half-way, names nobody should trust."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from motion_lora.core import disk
from motion_lora.core.disk import check_target, free_path, path_inside, safe_name, write_atomically, write_new
from motion_lora.core.errors import LoRAFileError, OutputError
from motion_lora.files import container
from motion_lora.files.container import read_header, read_tensors, serialize


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).to(torch.bfloat16),
        "c": torch.tensor(2.5, dtype=torch.float64),
        "d": torch.arange(6).reshape(2, 3),
        "e": torch.randn(2, 2, generator=generator).to(torch.float8_e4m3fn),
        "f": torch.empty(0, 4),
    }


def with_header(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape=(2, 2), offsets=(0, 16), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_is_written_is_read_back_here_and_by_the_safetensors_package(tmp_path):
    path = write_atomically(tmp_path / "x.safetensors", serialize(sample(), {"k": "v \u00e9 \u732b", "a": "b"}))
    ours, theirs = read_tensors(path), safetensors.torch.load_file(path)
    assert read_header(path).metadata == {"k": "v \u00e9 \u732b", "a": "b"}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "v \u00e9 \u732b", "a": "b"}
    for key, tensor in sample().items():
        for found in (ours[key], theirs[key]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found.float(), tensor.float()), key


def test_files_of_the_safetensors_package_are_read(tmp_path):
    safetensors.torch.save_file(sample(), tmp_path / "x.safetensors", {"who": "them"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[key].float(), tensor.float()) for key, tensor in sample().items())


def test_the_same_input_gives_the_same_bytes():
    tensors, metadata = sample(), {str(i): "x" for i in range(50)}
    backwards = serialize(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert serialize(tensors, metadata) == backwards


def test_reading_owns_its_memory(tmp_path):
    """A mapped file would change under the reader, or crash it, when somebody writes the file again."""
    path = write_atomically(tmp_path / "x.safetensors", serialize(sample(), {}))
    found = read_tensors(path)
    path.write_bytes(b"")
    assert torch.equal(found["a"], sample()["a"])


DAMAGED = {
    "empty object": b"{}",
    "not json": b"{nope",
    "a list": b"[]",
    "a number": b"17",
    "not utf-8": b'{"\xff": 1}',
    "nested": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no dtype": {"a": {"shape": [2, 2], "data_offsets": [0, 16]}},
    "unknown dtype": {"a": entry(dtype="F3")},
    "dtype is a list": {"a": entry(dtype=["F32"])},
    "entry is text": {"a": "text"},
    "entry is null": {"a": None},
    "negative": {"a": entry(shape=(-2, -2))},
    "fraction": {"a": entry(shape=(2.0, 2))},
    "boolean": {"a": entry(shape=(True, 4))},
    "one offset": {"a": entry(offsets=(0,))},
    "offsets swapped": {"a": entry(offsets=(16, 0))},
    "beyond the end": {"a": entry(shape=(2, 4), offsets=(0, 32))},
    "hole": {"a": entry(shape=(2, 1), offsets=(8, 16))},
    "overlap": {"a": entry(), "b": entry(offsets=(8, 24))},
    "shape and size differ": {"a": entry(shape=(2, 3))},
    "overflow": {"a": entry(shape=(2**62, 4), offsets=(0, 16))},
    "bytes left over": {"a": entry(shape=(2, 1), offsets=(0, 8))},
    "metadata is a list": {"__metadata__": [1], "a": entry()},
    "metadata holds numbers": {"__metadata__": {"a": 1}, "a": entry()},
    "name twice": b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}",
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_headers_are_refused_in_one_line(tmp_path, fault):
    path = with_header(tmp_path / "x.safetensors", DAMAGED[fault], b"\0" * 16)
    with pytest.raises(LoRAFileError, match=r"x\.safetensors") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"1234567", b"\0" * 8, b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LoRAFileError):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"<!DOCTYPE html><html>", "web page")],
)
def test_what_downloads_leave_behind_is_named(tmp_path, content, named):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LoRAFileError, match=named):
        read_header(tmp_path / "x.safetensors")


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(LoRAFileError, match=path.name):
            read_header(path)


def test_every_truncation_is_refused(tmp_path):
    whole = serialize(sample(), {"k": "v"})
    for length in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(LoRAFileError):
            read_tensors(tmp_path / "x.safetensors")


def test_fuzzed_files_are_read_or_refused_but_never_crash(tmp_path):
    whole, chance = serialize(sample(), {"k": "v"}), random.Random(0)
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw) if chance.random() < 0.5 else 200)] = chance.randrange(256)
        (tmp_path / "x.safetensors").write_bytes(raw)
        try:
            read_tensors(tmp_path / "x.safetensors")
        except LoRAFileError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("fault", ["length", "tensor", "many"])
def test_two_sparse_gigabytes_with_a_lying_header_take_no_memory(tmp_path, fault):
    resource = pytest.importorskip("resource")
    path, size = tmp_path / "x.safetensors", 2 * 2**30 + 4096
    header: dict = {"a": entry()}
    if fault == "tensor":
        header = {"a": entry(shape=(2**29, 1), offsets=(0, 2**31))}
    if fault == "many":
        header = {str(i): entry(shape=(2**19, 64), offsets=(i * 2**27, (i + 1) * 2**27)) for i in range(17)}
    with_header(path, header, length=size - 8 if fault == "length" else None)
    data_start = 8 + len(json.dumps(header).encode())
    os.truncate(path, {"length": size, "tensor": data_start + 2**31 - 1, "many": data_start + 17 * 2**27}[fault])
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LoRAFileError):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert peak < 2**20
    assert grown < 64 * 2**20


# Writing


def test_a_failed_check_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_atomically(tmp_path / "x.bin", b"old")

    def refuse(part: Path) -> None:
        assert part.read_bytes() == b"new"
        raise LoRAFileError("differs")

    with pytest.raises(LoRAFileError, match="differs"):
        write_atomically(path, b"new", refuse)
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "named"),
    [(errno.ENOSPC, "disk space"), (errno.EACCES, "permission"), (errno.EROFS, "permission"), (errno.EIO, "cannot")],
)
def test_what_the_disk_says_is_said_in_one_line(tmp_path, monkeypatch, number, named):
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.os, "fsync", fail)
    with pytest.raises(OutputError, match=named) as caught:
        write_atomically(tmp_path / "x.bin", b"new")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"x\.bin"):
        write_atomically(tmp_path / "file" / "x.bin", b"new")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission"):
        write_atomically(tmp_path / "x.bin", b"new")
    tmp_path.chmod(0o700)


def test_overwriting_can_be_refused(tmp_path):
    write_atomically(tmp_path / "x.bin", b"old")
    with pytest.raises(OutputError, match="exists"):
        write_atomically(tmp_path / "x.bin", b"new", overwrite=False)
    assert (tmp_path / "x.bin").read_bytes() == b"old"
    assert free_path(tmp_path / "x.bin").name == "x-2.bin"
    assert free_path(tmp_path / "y.bin").name == "y.bin"


# Names

NAMES = {
    "plain": "plain",
    "a circling walk": "a circling walk",
    "\u732b\u306e\u52d5\u304d": "\u732b\u306e\u52d5\u304d",
    "cafe\u0301": "caf\u00e9",
    "10:30 a/b\\c": "10_30 a_b_c",
    'what? "this" <is> a|b*': "what_ _this_ _is_ a_b_",
    "..": "motion_lora",
    "": "motion_lora",
    "   ": "motion_lora",
    "///": "motion_lora",
    "tail. ": "tail",
    ".hidden": "hidden",
    "con": "_con",
    "COM1.txt": "_COM1.txt",
    "nul .x": "_nul .x",
    "control": "control",
    "line\nbreak\x00\x07": "line break",
    "\ud800lone": "lone",
    "\u202egnp.exe": "gnp.exe",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_become_safe(name, tmp_path):
    assert safe_name(name) == NAMES[name]
    (tmp_path / f"{safe_name(name)}.safetensors").write_bytes(b"")


@pytest.mark.parametrize("character", ["x", "\u732b", "\U0001f600"])
def test_three_hundred_characters_fit(character, tmp_path):
    name = safe_name(character * 300)
    assert 100 <= len(name.encode()) <= 120
    (tmp_path / f"{name}-000500.preview.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("walk", "walk.safetensors"),
        ("walk.safetensors", "walk.safetensors"),
        ("motion/people/walk", "motion/people/walk.safetensors"),
        ("motion\\walk", "motion/walk.safetensors"),
        ("a:b", "a_b.safetensors"),
        ("./walk", "walk.safetensors"),
        ("", "motion_lora.safetensors"),
        ("v1.5 best", "v1.5 best.safetensors"),
    ],
)
def test_names_stay_inside_the_folder(tmp_path, name, expected):
    assert path_inside(tmp_path, name) == tmp_path / expected


@pytest.mark.parametrize(
    "name", ["../walk", "a/../../walk", "..\\walk", "/etc/walk", "\\\\server\\walk", "C:\\walk", "c:/walk", "~/walk"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match="leads out"):
        path_inside(tmp_path / "out", name)


def test_a_link_to_another_drive_is_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "big").mkdir()
    try:
        (tmp_path / "out" / "link").symlink_to(tmp_path / "big")
    except OSError:
        pytest.skip("no links here")
    path = path_inside(tmp_path / "out", "link/walk")
    check_target(path)
    assert write_new(path, b"x").resolve() == (tmp_path / "big" / "walk.safetensors").resolve()
    assert [p.name for p in (tmp_path / "big").iterdir()] == ["walk.safetensors"]


# Patience, and what can be known before


def refusing(times: int, number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The real function after it has failed so many times."""
    left = [times]

    def call(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    return call


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY])
def test_a_file_in_use_is_tried_again(tmp_path, monkeypatch, name, number):
    monkeypatch.setattr(disk.os, name, refusing(2, number, getattr(os, name)))
    assert write_atomically(tmp_path / "x.bin", b"new").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_a_file_in_use_is_removed_and_moved_later(tmp_path, monkeypatch):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    monkeypatch.setattr(disk.shutil, "rmtree", refusing(1, errno.EACCES, disk.shutil.rmtree))
    assert disk.remove_tree(tmp_path / "a") and not list(tmp_path.iterdir())
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(Path, "rename", refusing(1, errno.EACCES, Path.rename))
    assert disk.move(tmp_path / "b", tmp_path / "c") == tmp_path / "c"


def test_what_stays_in_use_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(disk.os, "replace", refusing(100, errno.EACCES, os.replace))
    with pytest.raises(OutputError, match="close what has it open"):
        write_atomically(tmp_path / "x.bin", b"new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_new_files_never_take_anothers_name(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(disk.os, "link", refusing(1000, errno.EPERM, os.link))
    writers = [threading.Thread(target=lambda n=n: write_new(tmp_path / "x.bin", b"%d" % n)) for n in range(8)]
    for writer in writers if links else ():
        writer.start()
    for writer in writers:
        writer.join() if links else writer.run()
    assert {p.read_bytes() for p in tmp_path.iterdir()} == {b"%d" % n for n in range(8)}
    assert {p.name for p in tmp_path.iterdir()} == {"x.bin", *(f"x-{n}.bin" for n in range(2, 9))}


def test_a_target_is_checked_without_a_trace(tmp_path, monkeypatch):
    check_target(tmp_path / "a" / "b" / "walk.safetensors", 10)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="is a file"):
        check_target(tmp_path / "file" / "walk.safetensors")
    with pytest.raises(OutputError, match="too long"):
        check_target(tmp_path / ("x" * 250))
    with pytest.raises(OutputError, match="MB are needed"):
        check_target(tmp_path / "walk.safetensors", 2**60)
    monkeypatch.setattr(disk, "_write", refusing(100, errno.EROFS, disk._write))
    with pytest.raises(OutputError, match="permission"):
        check_target(tmp_path / "walk.safetensors")


def test_own_files_may_be_larger_than_foreign_ones(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "x.safetensors", serialize(sample(), {}))
    monkeypatch.setattr(container, "MAX_DATA_BYTES", 8)
    with pytest.raises(LoRAFileError, match="not a LoRA"):
        read_tensors(path)
    assert torch.equal(read_tensors(path, own=True)["a"], sample()["a"])
