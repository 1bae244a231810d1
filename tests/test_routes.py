"""The panel's routes on a real aiohttp server: who is let in behind tunnels, what hostile requests get."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from comfy_double import Host, hosted

JSON = {"Content-Type": "application/json"}
RUNPOD = {"Host": "100.65.18.228", "Origin": "https://x-8188.proxy.runpod.net"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfy")) as host:
        yield host


class Panel:
    """Requests to a server with the pack's routes."""

    def __init__(self, host: Host) -> None:
        self.app = web.Application()
        for (method, path), handler in host.server.routes.handlers.items():
            self.app.router.add_route(method, path, handler)

    def all(self, requests: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(requests)

    async def call(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        async with TestClient(TestServer(self.app)) as client:
            return await answered(client, method, path, data, headers)


async def answered(client: Any, method: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    async with client.request(method, path, data=data, headers=headers) as answer:
        return answer.status, await answer.read()


def status(host: Host, headers: dict[str, str], data: bytes = b'{"id": "x"}') -> int:
    panel = Panel(host)
    return panel.all(panel.call("POST", "/motion_lora/jobs/pause", data, {**JSON, **headers}))[0]


# Let in: the answer is about the job then (there is none of that id).
OURS = {
    "no page at all": {},
    "a page of this server": {"Host": "127.0.0.1:8188", "Origin": "http://127.0.0.1:8188"},
    "a tunnel that keeps nothing": {**RUNPOD, "Sec-Fetch-Site": "same-origin"},
    "two proxies": {**RUNPOD, "X-Forwarded-Host": "x-8188.proxy.runpod.net, inner"},
    "a standard header": {**RUNPOD, "Forwarded": 'for=1.2.3.4;host="x-8188.proxy.runpod.net";proto=https'},
    "a proxy on a port of its own": {
        "Host": "inner", "Origin": "http://pod.example:10042", "X-Forwarded-Host": "pod.example",
        "X-Forwarded-Port": "10042", "X-Forwarded-Proto": "http",
    },
    "a proxy that keeps the host elsewhere": {**RUNPOD, "X-Original-Host": "x-8188.proxy.runpod.net"},
    "the scheme's own port": {"Host": "comfy.example:443", "Origin": "https://comfy.example"},
    "typed by the user": {"Sec-Fetch-Site": "none"},
}  # fmt: skip
FOREIGN = {
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "another site that forges the host": {
        "Origin": "https://evil.example", "X-Forwarded-Host": "evil.example", "Sec-Fetch-Site": "cross-site",
    },
    "a neighbour behind the same tunnel": {"Origin": "https://y.proxy.runpod.net", "Sec-Fetch-Site": "same-site"},
    "a page on another port of the host": {
        "Origin": "http://pod.example:9999", "Host": "inner", "X-Forwarded-Host": "pod.example",
        "X-Forwarded-Port": "10042",
    },
    "an old browser": {"Origin": "https://evil.example"},
    "nobody": {"Origin": "null"},
    "nonsense": {"Origin": "http://[::1", "Host": ""},
    "another scheme": {"Origin": "file://127.0.0.1:8188", "Host": "127.0.0.1:8188"},
}  # fmt: skip


@pytest.mark.parametrize("who", OURS)
def test_our_own_page_is_let_in(host: Host, who: str) -> None:
    assert status(host, OURS[who]) == 404


@pytest.mark.parametrize("who", FOREIGN)
def test_a_foreign_page_gets_nothing(host: Host, who: str) -> None:
    assert status(host, FOREIGN[who]) == 403


def test_an_origin_that_the_user_allows_is_let_in(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server = host.module("comfy.server")
    headers = {"Origin": "https://mine.example", "Sec-Fetch-Site": "cross-site"}
    monkeypatch.setattr(server.args, "enable_cors_header", "https://mine.example", raising=False)
    assert status(host, headers) == 404
    assert status(host, {**headers, "Origin": "https://evil.example"}) == 403
    # As in ComfyUI itself, whose own commands are then open to every page.
    monkeypatch.setattr(server.args, "enable_cors_header", "*", raising=False)
    assert status(host, headers) == 404


@pytest.mark.parametrize(
    ("number", "expected", "said"), [(errno.ENOSPC, 507, "disk space"), (errno.EACCES, 503, "close")]
)
def test_a_fault_of_the_disk_is_said_with_its_way_out(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int, expected: int, said: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number), "status.json")

    monkeypatch.setattr(host.module("comfy.jobs"), "snapshot", fail)
    panel = Panel(host)
    found, body = panel.all(panel.call("GET", "/motion_lora/jobs", b"", {}))
    assert found == expected and said in json.loads(body)["error"]


def hostile(chance: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """A request that nobody honest sends."""
    ids = [
        "x",
        "../../etc/passwd",
        "20261121-050000-deadbeef-0000",
        "",
        "a" * 5000,
        "\u202e",
        "%00",
        "..%2F..%2Fx",
        "nul",
    ]
    names = ["status.json", "..%2Fstatus.json", "validation.csv", "000001.mp4", "previews", "%2e%2e", "C:%5Cx"]
    command = chance.choice(["pause", "resume", "stop", "cancel", "delete", "continue", "explode", "..", "%00"])
    path = chance.choice([
        "/motion_lora/jobs", f"/motion_lora/jobs/{command}", f"/motion_lora/jobs/{chance.choice(ids)[:200]}",
        f"/motion_lora/jobs/{chance.choice(ids)[:200]}/{chance.choice(names)}",
        f"/motion_lora/jobs/{chance.choice(ids)[:200]}/previews/{chance.choice(names)}",
    ])  # fmt: skip
    body: Any = chance.choice([
        {"id": chance.choice(ids)}, {"id": chance.randint(-9, 9)}, [], None, {"id": "x", "wanted": 3}, {"path": "/"},
    ])  # fmt: skip
    data = json.dumps(body).encode()
    for _ in range(chance.choice([0, 0, 1, 5])):
        place = chance.randrange(len(data) + 1)
        data = data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
    data = chance.choice([data, data, data, b"[" * 5000, b"{" * 3000, b"\xff" * 100])
    headers = dict(
        chance.choice([JSON, JSON, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=x"}])
    )
    headers |= chance.choice([{}, {}, *OURS.values(), *FOREIGN.values()])
    return chance.choice(["GET", "POST", "POST", "PUT", "DELETE", "HEAD"]), path, data, headers


async def storm(client: Any, count: int, seed: int = 0) -> dict[int, int]:
    """How many of so many hostile requests got which status."""
    chance, found = random.Random(seed), {}
    for _ in range(count):
        got, _body = await answered(client, *hostile(chance))
        found[got] = found.get(got, 0) + 1
    assert (await answered(client, "GET", "/motion_lora/jobs", b"", {}))[0] == 200
    return found


async def besiege(app: web.Application, count: int, seed: int = 0) -> dict[int, int]:
    """The same on a server of its own."""
    async with TestClient(TestServer(app)) as client:
        return await storm(client, count, seed)


def test_hostile_requests_break_nothing(host: Host) -> None:
    secret = Path(host.folder) / "user" / "secret.txt"
    secret.write_text("secret")
    before = sorted(path for path in Path(host.folder).rglob("*"))
    panel = Panel(host)
    found = panel.all(besiege(panel.app, 500))
    assert sum(found.values()) == 500 and not [got for got in found if got >= 500]
    assert sorted(path for path in Path(host.folder).rglob("*")) == before and secret.read_text() == "secret"
