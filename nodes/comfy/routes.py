"""The panel's HTTP routes: state by GET, commands by POST with a small JSON body of names, nothing else.

ComfyUI has no accounts, and a foreign web page can make a browser send requests to it. So a command has to be JSON
(which a foreign page cannot send without asking first), small, of the known keys and types, and must not come from
another page. The browser itself says where it comes from; a tunnel or proxy in between changes the host, not that.
Nothing here takes a path.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from ...motion_lora.core.disk import plain_fault
from ...motion_lora.core.errors import LoRAFileError, MotionLoRAError, SettingsError
from ...motion_lora.files.container import read_header
from ...motion_lora.jobs import RESULT
from . import jobs, plans, server

PREFIX = "/motion_lora"
MAX_BODY = 4096
# Widgets may hold a page of captions.
MAX_PLAN = 65_536
# Where proxies say which host was asked for.
_FORWARDED = ("X-Forwarded-Host", "X-Original-Host", "X-Forwarded-Server")
# The second and third are what a preview becomes where no encoder is to be had.
_PREVIEW = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
_CURVE = {".csv": "text/csv; charset=utf-8", ".png": "image/png"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def register() -> None:
    """Add the routes to ComfyUI's server; called once, at load."""
    routes = PromptServer.instance.routes
    routes.get(f"{PREFIX}/jobs")(_answering(_jobs))
    routes.get(f"{PREFIX}/jobs/{{id}}")(_answering(_job))
    routes.get(f"{PREFIX}/jobs/{{id}}/previews/{{name}}")(_answering(_preview))
    routes.get(f"{PREFIX}/jobs/{{id}}/{{curve}}")(_answering(_curve))
    routes.post(f"{PREFIX}/jobs/{{command}}")(_answering(_command))
    routes.post(f"{PREFIX}/plan")(_answering(_plan))


async def _jobs(request: web.Request) -> web.StreamResponse:
    return web.json_response(await asyncio.to_thread(jobs.snapshot))


async def _job(request: web.Request) -> web.StreamResponse:
    job_id = request.match_info["id"]
    job = await asyncio.to_thread(jobs.describe, job_id)
    metadata = await asyncio.to_thread(_metadata, job_id)
    return web.json_response({**job, "metadata": metadata})


async def _preview(request: web.Request) -> web.StreamResponse:
    store = jobs.runner().store
    path = store.file(request.match_info["id"], "previews", request.match_info["name"])
    if path.suffix not in _PREVIEW:
        raise SettingsError(f"{path.name} is no preview")
    headers = {"Content-Type": _PREVIEW[path.suffix], "X-Content-Type-Options": "nosniff", "Cache-Control": "private"}
    return web.FileResponse(path, headers=headers)


async def _curve(request: web.Request) -> web.StreamResponse:
    path = jobs.runner().store.curve(request.match_info["id"], request.match_info["curve"])
    headers = {
        "Content-Type": _CURVE[path.suffix],
        "Content-Disposition": f'inline; filename="{path.name}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return web.FileResponse(path, headers=headers)


async def _plan(request: web.Request) -> web.StreamResponse:
    body = await _json_body(request, MAX_PLAN)
    if not plans.is_plan(body):
        raise _RefusedError(400, "the body is no plan of a node")
    return web.json_response(await asyncio.to_thread(plans.plan, body))


async def _command(request: web.Request) -> web.StreamResponse:
    body = await _checked_body(request)
    done = await asyncio.to_thread(_obey, request.match_info["command"], body)
    return web.json_response(done)


def _obey(command: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a command on the job that the body names."""
    runner, job_id = jobs.runner(), body["id"]
    if command == "continue":
        return {"continuation": jobs.take_continuation(job_id, wanted=body.get("wanted", True))}
    if command == "delete":
        runner.delete(job_id)
        return {}
    actions = {"pause": runner.pause, "resume": runner.resume, "stop": runner.stop, "cancel": runner.cancel}
    if command not in actions:
        raise SettingsError(f"there is no command {command[:40]!r}: use one of {', '.join(actions)}, delete, continue")
    return {"job": jobs.with_host(actions[command](job_id).to_json())}


def _metadata(job_id: str) -> dict[str, str]:
    """What the finished file says about itself; empty while there is none."""
    path = jobs.runner().get(job_id).folder / RESULT
    try:
        return dict(read_header(path).metadata)
    except LoRAFileError:
        return {}


# What is refused ----------------------------------------------------------------------------------------------------


def _answering(handler: Handler) -> Handler:
    """Errors that a user can meet become a JSON answer of one line."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if not _same_origin(request):
            return _refusal(403, "this request comes from another web page")
        try:
            return await handler(request)
        except _RefusedError as error:
            return _refusal(error.status, str(error))
        except SettingsError as error:
            return _refusal(404 if "there is no job" in str(error) else 400, str(error))
        except MotionLoRAError as error:
            return _refusal(409, str(error))
        except OSError as error:
            return _refusal(507 if error.errno == errno.ENOSPC else 503, plain_fault(error))

    return answer


class _RefusedError(MotionLoRAError):
    """A request that is not even looked into."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _same_origin(request: web.Request) -> bool:
    """Whether the request comes from a page of this server, or from no page at all.

    Sec-Fetch-Site is set by browsers alone, and no page can change it: where it is there, it decides. Browsers leave
    it out towards plain http on other machines, so there the page's origin has to be a host that the request was sent
    to: Host, or what the proxies on the way say it was before them. Whom the user lets into ComfyUI by its own
    --enable-cors-header is let in here too.
    """
    if _allowed(request):
        return True
    site = request.headers.get("Sec-Fetch-Site", "").lower()
    if site:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or _host_of(origin) in _hosts(request) - {""}


def _allowed(request: web.Request) -> bool:
    """Whether the user lets this origin in; "*", as in ComfyUI, is every page there is."""
    allowed = server.cors_origin().rstrip("/")
    return allowed == "*" or (allowed != "" and request.headers.get("Origin", "").lower() == allowed.lower())


def _hosts(request: web.Request) -> set[str]:
    """Every name under which the request was sent, with the port where it is not the scheme's own.

    No page can add these headers to a request without asking first, which ComfyUI does not grant.
    """
    headers = request.headers
    named = [headers.get("Host", "")]
    named += [host for name in _FORWARDED for value in headers.getall(name, []) for host in value.split(",")]
    named += re.findall(r'host="?([^";,]+)', ",".join(headers.getall("Forwarded", [])), re.IGNORECASE)
    # Some proxies name the port apart from the host.
    ports = [port.strip() for value in headers.getall("X-Forwarded-Port", []) for port in value.split(",")]
    named += [f"{host.strip()}:{port}" for host in named for port in ports if port.isdecimal()]
    return {_plain(host) for host in named}


def _host_of(origin: str) -> str:
    """What is no origin, as the word null, has none."""
    try:
        parts = urlsplit(origin)
        return _plain(parts.netloc) if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""


def _plain(host: str) -> str:
    return re.sub(r":(80|443)$", "", host.strip().lower())


async def _json_body(request: web.Request, most: int) -> Any:
    """What the body says, of so many bytes at most. Raises _RefusedError."""
    if request.content_type != "application/json":
        raise _RefusedError(415, "send JSON, with the content type application/json")
    raw = b""
    while chunk := await request.content.read(most + 1):
        raw += chunk
        if len(raw) > most:
            raise _RefusedError(413, f"the body is larger than {most} bytes")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError, web.RequestPayloadError) as error:
        raise _RefusedError(400, "the body is not JSON") from error


async def _checked_body(request: web.Request) -> dict[str, Any]:
    """The JSON body: an object with a job's `id`, and for continue whether it is `wanted`. Raises _RefusedError."""
    body = await _json_body(request, MAX_BODY)
    if not isinstance(body, dict) or set(body) - {"id", "wanted"} or not isinstance(body.get("id"), str):
        raise _RefusedError(400, 'the body has to be {"id": "<job id>"}')
    if not isinstance(body.get("wanted", True), bool):
        raise _RefusedError(400, "wanted has to be true or false")
    return body
