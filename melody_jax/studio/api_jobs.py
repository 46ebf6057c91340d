"""/api/jobs: requests for takes, how they get on, and their sound while it is made."""

import asyncio
import dataclasses
import json
import struct
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from melody_jax import audio
from melody_jax.studio.api_common import MEDIA_TYPES, Studio, bytes_response, client_of, read_json
from melody_jax.studio.api_requests import body_schema, parse_body
from melody_jax.studio.export import export_clip
from melody_jax.studio.job import JobStatus, UnknownJob

POLL_SECONDS = 0.05
"""Time between two looks at a job whose client waits for its sound or its state."""
TICK_SECONDS = 1.0
"""Time after which an event repeats a state, with the seconds that are left."""
UNKNOWN_SIZE = 0xFFFFFFFF
"""Size in the header of a WAV that is being made."""


class JobsApi:
    """The routes of jobs."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.queue = studio.queue
        content = {"application/json": {"schema": body_schema()}}
        self.router = APIRouter(prefix="/jobs", tags=["jobs"])
        self.router.add_api_route(
            "",
            self.submit,
            methods=["POST"],
            status_code=202,
            response_class=JSONResponse,
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )
        self.router.add_api_route("", self.list_jobs, methods=["GET"])
        self.router.add_api_route("/{job_id}", self.status, methods=["GET"])
        self.router.add_api_route("/{job_id}", self.cancel, methods=["DELETE"])
        self.router.add_api_route("/{job_id}/events", self.events, methods=["GET"])
        self.router.add_api_route("/{job_id}/sound", self.sound, methods=["GET"])

    async def submit(self, request: Request) -> JSONResponse:
        """Queues one to four takes, or none of them if they do not all fit."""
        body = await read_json(request)
        statuses = await run_in_threadpool(self._submit, body, client_of(request))
        return JSONResponse({"jobs": [dataclasses.asdict(status) for status in statuses]}, 202)

    def _submit(self, body: Any, client: str) -> list[JobStatus]:
        job = parse_body(body, self.studio.project)
        return self.queue.submit_all(job.requests, client=client, parent=job.parent, title=job.title)

    def list_jobs(self, request: Request) -> dict[str, Any]:
        """The jobs of this client that are not forgotten, oldest first."""
        return {"jobs": [dataclasses.asdict(status) for status in self.queue.jobs(client_of(request))]}

    def status(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        return dataclasses.asdict(self.queue.status(job_id))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ends a job, a running one after the window that is being made."""
        return dataclasses.asdict(self.queue.cancel(job_id))

    async def events(self, job_id: str) -> StreamingResponse:
        """Server-sent events, each the job as it is: at every change, once a second, and at its end."""
        self.queue.status(job_id)
        return StreamingResponse(
            self._events(job_id), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def _events(self, job_id: str) -> AsyncIterator[str]:
        previous: JobStatus | None = None
        sent = 0.0
        while True:
            try:
                status = self.queue.status(job_id)
            except UnknownJob:
                return
            is_news = previous is None or _without_estimate(status) != _without_estimate(previous)
            if is_news or time.monotonic() - sent >= TICK_SECONDS:
                yield f"data: {json.dumps(dataclasses.asdict(status))}\n\n"
                previous = status
                sent = time.monotonic()
            if status.state.is_final:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def sound(self, job_id: str, request: Request) -> Response:
        """The sound as a 16-bit WAV, sent while it is made. It ends early if the job is cancelled or fails."""
        status = self.queue.status(job_id)
        if status.take_id is not None:
            data = await self.studio.compute(export_clip, self.studio.project, status.take_id, ".wav")
            return bytes_response(request, data, MEDIA_TYPES[".wav"], {})
        if status.state.is_final:
            raise HTTPException(410, f"the job is {status.state}; it has no sound")
        blocks = await run_in_threadpool(self.queue.blocks, job_id, 0.0)
        return StreamingResponse(self._wav(blocks), media_type=MEDIA_TYPES[".wav"])

    async def _wav(self, blocks: Iterator[np.ndarray]) -> AsyncIterator[bytes]:
        """The bytes of a WAV, as its blocks come; an empty block means that there is no other yet."""
        yield wav_header(self.queue.system.sample_rate, self.queue.system.channels)
        for block in blocks:
            if not len(block):
                await asyncio.sleep(POLL_SECONDS)
            for first in range(0, len(block), audio.BLOCK):
                yield audio.to_int16(block[first : first + audio.BLOCK], "the sound").tobytes()


def wav_header(sample_rate: int, channels: int) -> bytes:
    """The 44 bytes before the samples of a 16-bit WAV of unknown length."""
    frame = 2 * channels
    return b"".join(
        (
            struct.pack("<4sI4s", b"RIFF", UNKNOWN_SIZE, b"WAVE"),
            struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, sample_rate, sample_rate * frame, frame, 16),
            struct.pack("<4sI", b"data", UNKNOWN_SIZE),
        )
    )


def _without_estimate(status: JobStatus) -> JobStatus:
    return dataclasses.replace(status, seconds_left=None)
