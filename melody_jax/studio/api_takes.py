"""/api/takes: the history. /api/votes and /api/export.zip: what listeners think of it, and all of it in one file."""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from melody_jax.errors import UserError
from melody_jax.sampling.settings import shorten
from melody_jax.studio.api_common import (
    HEIGHT,
    LASTING,
    MEDIA_TYPES,
    WIDTH,
    Height,
    Studio,
    Width,
    bytes_response,
    read_json,
)
from melody_jax.studio.export import command_words, export_clip, export_zip
from melody_jax.studio.project import MAX_PAGE
from melody_jax.studio.spectrogram import spectrogram_png
from melody_jax.studio.takes import Take
from melody_jax.studio.votes import vote_between

PICTURES = 64
"""Spectrograms that stay in memory."""
ENCODED = 2
"""Encoded clips that stay in memory, for requests of parts of one."""
NAME_LENGTH = 60
VOTE = {"a": "string", "b": "string", "choice": "string"}
CHANGES = {"favourite": "boolean", "title": "string"}


class TakesApi:
    """The routes of takes, votes and the export."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.project = studio.project
        self._picture = functools.lru_cache(PICTURES)(self._draw)
        self._encoded = functools.lru_cache(ENCODED)(self._encode)
        self.router = APIRouter(tags=["takes"])
        add = self.router.add_api_route
        add("/takes", self.list_takes, methods=["GET"])
        add("/takes/{take_id}", self.take, methods=["GET"])
        add("/takes/{take_id}", self.change, methods=["PATCH"], openapi_extra=_body(CHANGES, 0))
        add("/takes/{take_id}", self.delete, methods=["DELETE"], status_code=204)
        add("/takes/{take_id}/sound.{suffix}", self.sound, methods=["GET", "HEAD"], include_in_schema=False)
        add("/takes/{take_id}/sound.{suffix}", self.sound, methods=["GET"])
        add("/takes/{take_id}/spectrogram.png", self.spectrogram, methods=["GET"])
        add("/votes", self.vote, methods=["POST"], status_code=201, openapi_extra=_body(VOTE, 3))
        add("/export.zip", self.export, methods=["GET"])

    def list_takes(
        self,
        limit: int = Query(20, ge=1, le=MAX_PAGE),
        before: float | None = Query(None, description="`next` of the page before"),
        favourites: bool = False,
    ) -> dict[str, Any]:
        """A page of takes, newest first, and `next`, which is null on the last page."""
        takes = self.project.page(limit, before, favourites)
        is_last = not takes or not self.project.page(1, takes[-1].created, favourites)
        following = None if is_last else takes[-1].created
        return {"takes": [take_json(take) for take in takes], "next": following}

    def take(self, take_id: str) -> dict[str, Any]:
        """A take, with the words of the `melody sample` command that makes it."""
        return take_json(self.project.take(take_id))

    async def change(self, take_id: str, request: Request) -> dict[str, Any]:
        """Marks a take as a favourite or not, or gives it another title."""
        body = await read_json(request)
        return take_json(await run_in_threadpool(self._change, take_id, body))

    def _change(self, take_id: str, body: Any) -> Take:
        take = self.project.take(take_id)
        body = _checked_body(body, CHANGES)
        if "title" in body:
            take = self.project.rename(take_id, body["title"])
        if "favourite" in body:
            take = self.project.set_favourite(take_id, body["favourite"])
        return take

    def delete(self, take_id: str) -> Response:
        """Deletes a take. Those that were made from it stay."""
        self.project.delete(take_id)
        return Response(status_code=204)

    async def sound(self, take_id: str, suffix: str, request: Request, download: bool = False) -> Response:
        """The sound as .flac, .wav, .ogg or .mp3, or a range of its bytes.

        With `download`, browsers store it under its title, and it has the title, the prompt and the seed as tags.
        """
        take = self.project.take(take_id)
        media_type = media_type_of(suffix)
        if not download and take.file.endswith(f".{suffix}"):
            return FileResponse(self.project.path(take_id), headers=LASTING, media_type=media_type)
        data = await self.studio.compute(self._encoded, take_id, take.title, suffix)
        name = f"{file_name(take)}.{suffix}"
        headers = {"content-disposition": f'attachment; filename="{name}"'} if download else {}
        return bytes_response(request, data, media_type, headers)

    def _encode(self, take_id: str, title: str, suffix: str) -> bytes:
        del title  # a tag, which changes the bytes
        return export_clip(self.project, take_id, f".{suffix}")

    async def spectrogram(self, take_id: str, width: Width = WIDTH, height: Height = HEIGHT) -> Response:
        """A picture of the sound, with seconds and Hz."""
        self.project.take(take_id)
        data = await self.studio.compute(self._picture, take_id, width, height)
        return Response(data, headers=LASTING, media_type="image/png")

    def _draw(self, take_id: str, width: int, height: int) -> bytes:
        sample_rate = self.project.take(take_id).sample_rate
        return spectrogram_png(self.project.read(take_id), sample_rate, width, height)

    async def vote(self, request: Request) -> JSONResponse:
        """Stores which of two takes is better: `choice` is a, b or tie; `a` was played first."""
        body = _checked_body(await read_json(request), VOTE, required=True)
        await run_in_threadpool(self._vote, body["a"], body["b"], body["choice"])
        return JSONResponse({"stored": True}, 201)

    def _vote(self, a: str, b: str, choice: str) -> None:
        vote = vote_between(self.project.take(a), self.project.take(b), choice)
        self.studio.votes.append(vote)

    def export(self, takes: str = Query("", description="ids, separated by commas; empty: all")) -> Response:
        """A zip of takes, with prompt files and commands that make them again to the bit."""
        take_ids = [take_id for take_id in takes.split(",") if take_id]
        parts = export_zip(self.project, take_ids or None)
        headers = {"content-disposition": 'attachment; filename="melody.zip"'}
        return StreamingResponse(_non_empty(parts), media_type="application/zip", headers=headers)


def take_json(take: Take) -> dict[str, Any]:
    """A take as clients see it: with its seed as a text, which JavaScript does not round, and its command."""
    command = command_words(take)
    return dataclasses.asdict(take) | {"seed": str(take.settings["seed"]), "command": command}


def media_type_of(suffix: str) -> str:
    """The media type of a format. Raises `HTTPException` for one that is not written."""
    if f".{suffix}" not in MEDIA_TYPES:
        raise HTTPException(404, f"sounds end with {', '.join(MEDIA_TYPES)}, not with .{shorten(suffix)}")
    return MEDIA_TYPES[f".{suffix}"]


def file_name(take: Take) -> str:
    """A name for the file of a take, without its suffix: of its title only letters and digits of ASCII."""
    plain = unicodedata.normalize("NFKD", take.title).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:NAME_LENGTH].strip("-").lower()
    return f"{words}-{take.id}" if words else take.id


def _checked_body(body: Any, types: dict[str, str], required: bool = False) -> dict[str, Any]:
    """A body with values of these types. Raises `UserError` for another."""
    kinds = {"string": (str, "a text"), "boolean": (bool, "true or false")}
    names = ", ".join(types)
    if not isinstance(body, dict) or not body.keys() <= types.keys() or not body:
        raise UserError(f"the body must be an object with {names}")
    if required and body.keys() != types.keys():
        raise UserError(f"the body lacks {', '.join(sorted(types.keys() - body.keys()))}")
    for name, value in body.items():
        kind, words = kinds[types[name]]
        if not isinstance(value, kind):
            raise UserError(f"{name} is {shorten(value)}; it must be {words}")
    return body


def _body(types: dict[str, str], required: int) -> dict[str, Any]:
    """What OpenAPI says of a body with values of these types."""
    properties = {name: {"type": kind} for name, kind in types.items()}
    schema = {"type": "object", "properties": properties, "required": list(types)[:required]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _non_empty(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts that have bytes: an empty one ends a chunked answer."""
    return (part for part in parts if part)
