"""A system without networks, whose sound follows from the seed and which a test can hold up."""

import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.sampling.progress import Progress, count_windows
from melody_jax.sampling.prompts import PromptEncoder, UnknownWords
from melody_jax.sampling.request import PromptLike, Request, make_requests
from melody_jax.sampling.system import System, check_streamed

RATE = 8_000


class FakeEncoder:
    """Finds every clip similar to its prompt by the length of its text."""

    def encode_requests(self, requests: Sequence[Request]) -> dict[Request, Any]:
        return {request: request for request in requests}

    def similarity(self, encoded: Request, wave: np.ndarray) -> float:
        return len(str(encoded.prompt)) / 100


class FakeSystem(System):
    """Windows of a second of noise. A prompt of "crash" crashes, "refuse" is refused while it is made.

    gate: the semaphore of which each window takes one; None: it does not wait.
    """

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.params = {}
        self.configs = {}
        self.hashes = {"lm": "0" * 64}
        self.gate = gate
        self.prompts_made: list[Any] = []

    @property
    def audio_format(self) -> AudioFormat:
        return AudioFormat(sample_rate=RATE)

    @property
    def window_seconds(self) -> float:
        return 1.0

    @property
    def prompt_encoder(self) -> PromptEncoder:
        encoder: Any = FakeEncoder()
        return encoder

    def check(self, request: Request, source_samples: int | None = None) -> None:
        del source_samples
        if request.bpm:
            raise UserError(f"bpm is {request.bpm:g}; this system has no tempo")

    def check_inputs(self, request: Request, source_samples: dict[Any, int] | None = None) -> None:
        del source_samples
        self.check(request)

    def unknown_words(self, request: Request) -> list[UnknownWords]:
        return [UnknownWords(str(request.prompt), ["xyzzy"], False)] if "xyzzy" in str(request.prompt) else []

    def warn_of_unknown_words(self, requests: Sequence[Request]) -> None:
        del requests

    def program(self, request: Request) -> Hashable:
        return request.seconds

    def run(self, requests: Sequence[Request], *, progress: Progress = False) -> list[np.ndarray]:
        return [np.concatenate(list(self._windows(request, progress))) for request in requests]

    def stream(
        self,
        prompt: PromptLike | None = None,
        *,
        seconds: float | None = None,
        progress: Progress = False,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        (request,) = make_requests([prompt], settings | {"seconds": seconds})
        check_streamed(request)
        return self._windows(request, progress)

    def _windows(self, request: Request, progress: Progress) -> Iterator[np.ndarray]:
        self.prompts_made.append(request.prompt)
        rng = np.random.default_rng(request.seed)
        count = round(request.seconds)
        for number in count_windows(range(count), count, progress):
            if self.gate is not None:
                self.gate.acquire()
            if request.prompt == "crash":
                raise RuntimeError("a network fell over")
            if request.prompt == "refuse":
                raise UserError("the prompt\nis refused")
            del number
            yield rng.uniform(-0.5, 0.5, RATE).astype(np.float32)


class WholeSystem(FakeSystem):
    """Makes whole clips only."""

    stream = System.stream
