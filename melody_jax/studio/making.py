"""How a system makes the sound of one request, in blocks where it can."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from melody_jax.sampling.progress import Progress
from melody_jax.sampling.request import Request
from melody_jax.sampling.system import System

EXTENSION_SECONDS = 10.0
"""By how much a sound is continued unless its author says otherwise, seconds."""


def default_warm_ups(system: System, request: Request) -> list[Request]:
    """Requests whose programs the first jobs need: a clip of `request`, one that is longer than a window, and what the
    buttons of a take make from it.

    request: a prompt with the settings that a page starts with, without a source.
    """
    seconds = request.seconds
    requests = [request, dataclasses.replace(request, seconds=system.window_seconds + system.chunk_seconds)]
    if "tokenizer" not in system.params:
        return requests
    shape = (round(seconds * system.sample_rate), system.channels)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, shape).astype(np.float32)
    source = noise[:, 0] if system.channels == 1 else noise
    edits: list[dict[str, Any]] = [
        {"seconds": seconds + EXTENSION_SECONDS},
        {"regions": ((0.25 * seconds, 0.5 * seconds),)},
        {"strength": 0.5},
        {"keep_tokens": True},
    ]
    edited = dataclasses.replace(request, source=source, seconds=Request.seconds)
    return requests + [dataclasses.replace(edited, **edit) for edit in edits]


def can_stream(system: System, request: Request) -> bool:
    """Whether the sound of a request comes in blocks while it is made."""
    has_streams = type(system).stream is not System.stream
    return has_streams and request.source is None and request.best_of == 1


def sound_blocks(
    system: System, request: Request, progress: Progress = False
) -> Iterator[Float32[np.ndarray, " n *C"]]:
    """The sound of a request, in blocks if it can be streamed; concatenated, they are `system.run([request])[0]`."""
    if not can_stream(system, request):
        yield from system.run([request], progress=progress)
        return
    absent = ("prompt", "source", "regions")
    fields = [field.name for field in dataclasses.fields(Request) if field.name not in absent]
    settings = {name: getattr(request, name) for name in fields}
    yield from system.stream(request.prompt, progress=progress, **settings)


def prompt_similarity(system: System, request: Request, samples: np.ndarray) -> float | None:
    """The cosine of a clip with the prompt of its request; None without a prompt."""
    if not request.prompt:
        return None
    encoder = system.prompt_encoder
    encoded = encoder.encode_requests([request])[request]
    return round(encoder.similarity(encoded, samples), 4)
