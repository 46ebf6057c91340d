"""What all routes of the HTTP API share: the studio that they serve, bodies of JSON, errors of one line, sounds."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from melody_jax.errors import UserError
from melody_jax.files import parse_json
from melody_jax.studio.job import QueueFull, UnknownJob
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.project import Project, UnknownTake
from melody_jax.studio.uploads import UploadBusy, UploadDecoder
from melody_jax.studio.votes import VoteFile

MEDIA_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
LASTING = {"cache-control": "private, max-age=31536000, immutable"}
"""Headers of what never changes under its address."""
READERS = 4
"""Sounds that are decoded or encoded at the same time, each of which takes memory."""
WIDTH = 640
HEIGHT = 240
"""Pixels of a spectrogram."""
Width = Annotated[int, Query(ge=240, le=1600)]
Height = Annotated[int, Query(ge=120, le=800)]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Studio:
    """What the API serves."""

    queue: JobQueue
    decoder: UploadDecoder
    votes: VoteFile
    limits: dict[str, Any] = field(default_factory=dict)
    """What /api/info says of the limits."""
    readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS))

    @property
    def project(self) -> Project:
        """The project of the queue."""
        return self.queue.project

    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that takes memory and time in a thread, at most `READERS` at the same time."""
        async with self.readers:
            return await run_in_threadpool(function, *arguments)


def client_of(request: Request) -> str:
    """Whose limits count (security.py)."""
    return request.scope.get("melody_client", "local")


async def read_json(request: Request) -> Any:
    """The value of a body. Raises `UserError` for what is not JSON, and `HTTPException` for another content type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be JSON, with the header Content-Type: application/json")
    data = await request.body()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"the body is not UTF-8 at byte {error.start}") from None
    return parse_json(text, "the body")


def json_error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error of one line."""
    line = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
    return JSONResponse({"error": line}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Makes all errors of an application answers of one line."""
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_error)


def _on_user_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, QueueFull | UploadBusy):
        return json_error(429, str(error), {"retry-after": str(error.retry_seconds)})
    return json_error(404 if isinstance(error, UnknownTake | UnknownJob) else 422, str(error))


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return json_error(error.status_code, str(error.detail), dict(error.headers or {}))


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = first["loc"][-1] if first.get("loc") else "the request"
    return json_error(422, f"{name}: {first['msg']}")


def _on_error(request: Request, error: Exception) -> JSONResponse:
    return json_error(500, "internal error, see the log of the studio")


def bytes_response(request: Request, data: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """Bytes, or the range of them that the request asks for; several ranges give all bytes."""
    headers = headers | {"accept-ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").replace(" ", "")[:64])
    if match is None or not (match[1] or match[2]):
        return Response(data, 200, headers, media_type)
    if match[1]:
        begin = int(match[1])
        end = min(int(match[2]) + 1 if match[2] else len(data), len(data))
    else:
        begin = max(0, len(data) - int(match[2]))
        end = len(data)
    if begin >= end:
        return json_error(416, f"the file has {len(data)} bytes", {"content-range": f"bytes */{len(data)}"})
    headers = headers | {"content-range": f"bytes {begin}-{end - 1}/{len(data)}"}
    return Response(data[begin:end], 206, headers, media_type)
