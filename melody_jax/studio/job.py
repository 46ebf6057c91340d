"""One job of the queue: what a client sees of it, and what the queue changes; the limits and counts of a queue."""

import dataclasses
import secrets
import threading
import time
from dataclasses import dataclass
from enum import StrEnum

from melody_jax.errors import UserError
from melody_jax.options import check_fields, option
from melody_jax.sampling.request import Request
from melody_jax.studio.sound_stream import SoundStream
from melody_jax.studio.takes import kind_of, shorten_title, title_of


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job as it is at one moment. All fields are JSON values."""

    id: str
    """32 hexadecimal digits; only its client knows it."""
    client: str
    """Whose limits count."""
    kind: str
    """What its take will be (`takes.KINDS`)."""
    title: str
    parent: str | None
    """The take that it comes from."""
    state: JobState
    position: int | None
    """Jobs before it, 1 for the first of the queue; 0 while it runs, None after its end."""
    windows_done: int
    windows_total: int
    """Windows of the networks; a total of 0 is not known yet."""
    seconds_left: float | None
    """Estimate for a running job, seconds; None: unknown."""
    notes: tuple[str, ...]
    """What its author may not expect: words that the model does not know, scenes without effect."""
    error: str | None
    """Why it failed, one line."""
    submitted: float
    started: float | None
    finished: float | None
    """Seconds since 1970."""
    take_id: str | None
    """The take that it made."""


class QueueFull(UserError):
    """The queue, or the share of a client, is full. `length` jobs wait; retry in `retry_seconds`, a whole number."""

    def __init__(self, message: str, length: int, retry_seconds: int) -> None:
        super().__init__(f"{message}; try again in {retry_seconds} s")
        self.length = length
        self.retry_seconds = retry_seconds


class UnknownJob(UserError):
    """There is no job of this id, or it ended long ago."""


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How much the queue takes and remembers."""

    queued: int = option(32, least=1, most=10_000)
    """Jobs that wait."""
    queued_per_client: int = option(8, least=1, most=10_000)
    """Jobs of one client that wait."""
    seconds: float = option(600.0, least=1, most=1e6)
    """Seconds of music that one job may make, those of all its candidates together."""
    finished: int = option(256, least=1, most=100_000)
    """Jobs that are remembered after their end."""
    finished_seconds: float = option(3600.0, above=0, most=1e9)
    """Seconds after its end for which a job is remembered."""

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, request: Request) -> None:
        """Raises `UserError` for a request that makes too much music."""
        seconds = request.seconds * request.best_of
        if seconds > self.seconds:
            candidates = f" times {request.best_of} candidates" if request.best_of > 1 else ""
            raise UserError(
                f"seconds is {request.seconds:g}{candidates}; a job makes at most {self.seconds:g} s of music here"
            )


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """Counts since the start, for a health check and for metrics."""

    queued: int
    running: int
    """0 or 1."""
    done: int
    failed: int
    cancelled: int
    refused: int
    """Jobs that were not taken because the queue was full."""
    warm: bool
    """Whether the programs of the warm-up are compiled."""
    alive: bool
    """Whether the worker runs."""
    music_seconds: float
    """Length of all takes, seconds."""
    work_seconds: float
    """Seconds that the takes took."""
    real_time_factor: float | None
    """Seconds of music per second of work, of the last take or, before the first one, of the last warm-up."""


class Job:
    """A job of the queue. The queue's lock guards all fields but `sound` and `is_cancelled`."""

    def __init__(
        self, request: Request, client: str, parent: str | None, title: str, notes: tuple[str, ...]
    ) -> None:
        self.id = secrets.token_hex(16)
        self.request = request
        self.client = client
        self.parent = parent
        self.kind = kind_of(request)
        self.title = shorten_title(title) or title_of(request)
        self.notes = notes
        self.state = JobState.QUEUED
        self.windows_done = 0
        self.windows_total = 0
        self.error: str | None = None
        self.submitted = time.time()
        self.started: float | None = None
        self.finished: float | None = None
        self.take_id: str | None = None
        self.sound: SoundStream | None = SoundStream()
        self.is_cancelled = threading.Event()

    def start(self) -> None:
        """The job runs from now on."""
        self.state = JobState.RUNNING
        self.started = time.time()

    def finish(self, state: JobState, take_id: str | None = None, error: str | None = None) -> None:
        """The job has ended; its sound is freed when its last reader ends."""
        self.state = state
        self.take_id = take_id
        self.error = error
        self.finished = time.time()
        if self.sound is not None:
            self.sound.end()
        self.sound = None

    def seconds_left(self, window_seconds: float | None) -> float | None:
        """Estimate for a running job: from its windows, before the first one ends from the `window_seconds` of one."""
        if self.started is None or self.finished is not None:
            return None
        passed = time.time() - self.started
        if self.windows_done:
            remaining = self.windows_total - self.windows_done
            return round(passed / self.windows_done * remaining, 1)
        if window_seconds is None:
            return None
        return round(max(0.0, window_seconds * max(1, self.windows_total) - passed), 1)

    def status(self, position: int | None, window_seconds: float | None) -> JobStatus:
        """What a client sees."""
        derived = {"position": position, "seconds_left": self.seconds_left(window_seconds)}
        names = {field.name for field in dataclasses.fields(JobStatus)} - derived.keys()
        return JobStatus(**{name: getattr(self, name) for name in names}, **derived)
