"""/api/uploads: sounds of the client, to continue, change or follow. They are decoded in a process of their own."""

import asyncio
import tempfile
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from melody_jax import audio
from melody_jax.studio.api_common import HEIGHT, LASTING, MEDIA_TYPES, WIDTH, Height, Studio, Width
from melody_jax.studio.spectrogram import spectrogram_png
from melody_jax.studio.uploads import DecodedSound, UploadBusy

RAW_TYPES = ("application/octet-stream", "application/ogg", "")
RAW_KINDS = ("audio/", "video/")
MULTIPART = "multipart/form-data"
WAITING = 4
"""Uploads that are received at the same time."""
CONTENT = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}}


class UploadsApi:
    """The routes of uploads."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.project = studio.project
        self._places = asyncio.Semaphore(WAITING)
        self.router = APIRouter(prefix="/uploads", tags=["uploads"])
        content = {"application/octet-stream": CONTENT, MULTIPART: FORM}
        self.router.add_api_route(
            "",
            self.upload,
            methods=["POST"],
            status_code=201,
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )
        self.router.add_api_route("/{name}/sound.{suffix}", self.sound, methods=["GET"])
        self.router.add_api_route("/{name}/spectrogram.png", self.spectrogram, methods=["GET"])

    async def upload(self, request: Request) -> JSONResponse:
        """Stores a sound, the body itself or a file of a form, and returns the name by which jobs refer to it."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != MULTIPART and kind not in RAW_TYPES and not kind.startswith(RAW_KINDS):
            raise HTTPException(
                415, "the body must be a sound, Content-Type: audio/wav or alike, or multipart/form-data"
            )
        if self._places.locked():
            raise UploadBusy(
                f"{WAITING} sounds are being uploaded; try again in {UploadBusy.retry_seconds} s"
            )
        async with self._places:
            if kind == MULTIPART:
                return await self._from_form(request)
            with tempfile.TemporaryFile(dir=self.project.uploads_folder) as file:
                async for part in request.stream():
                    await run_in_threadpool(file.write, part)
                return await self._store(file)

    async def _from_form(self, request: Request) -> JSONResponse:
        async with request.form(max_files=1, max_fields=4, max_part_size=1 << 12) as form:
            uploads = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(uploads) != 1:
                raise HTTPException(422, f"the form has {len(uploads)} files; it must have one")
            return await self._store(uploads[0].file)

    async def _store(self, file: BinaryIO) -> JSONResponse:
        """Decodes a file, whose name plays no part, and stores its sound."""
        file.seek(0)
        sound = await run_in_threadpool(self.studio.decoder.decode, file)
        return JSONResponse(await run_in_threadpool(self._add, sound), 201)

    def _add(self, sound: DecodedSound) -> dict[str, Any]:
        sample_rate = self.studio.decoder.audio_format.sample_rate
        path = self.project.add_source(sound.samples, sample_rate)
        seconds = round(len(sound.samples) / sample_rate, 3)
        return {"upload": path.name, "seconds": seconds, "notes": list(sound.notes)}

    def sound(self, name: str, suffix: str) -> FileResponse:
        """The stored sound in 16 bits, or a range of its bytes; `suffix` is that of the name."""
        path = self.project.source(name)
        if path.suffix != f".{suffix}":
            raise HTTPException(404, f"the sound is stored as {path.suffix}")
        return FileResponse(path, headers=LASTING, media_type=MEDIA_TYPES[path.suffix])

    async def spectrogram(self, name: str, width: Width = WIDTH, height: Height = HEIGHT) -> Response:
        """A picture of the sound, with seconds and Hz."""
        data = await self.studio.compute(self._draw, name, width, height)
        return Response(data, headers=LASTING, media_type="image/png")

    def _draw(self, name: str, width: int, height: int) -> bytes:
        samples, audio_format = audio.read_as_stored(self.project.source(name))
        return spectrogram_png(samples, audio_format.sample_rate, width, height)
