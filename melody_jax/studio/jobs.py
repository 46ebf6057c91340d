"""The queue: one worker thread makes the takes of all clients, one after the other, on one system.

    with JobQueue(system, Release(name="mini"), project) as queue:
        job = queue.submit(Request(prompt="bossa nova"), client="page")
        for block in queue.blocks(job.id):      # float32, while it is made
            play(block)
        take_id = queue.status(job.id).take_id

A take is equal to the bit to the clip of `melody sample` with the same settings: each job is a batch of one, and
`System.stream` of a given length decodes the same windows as `System.run`. Requests that cannot be streamed (those with
a source or with several candidates, and systems without streams) are made by `System.run` and are one block.

Blocks have the samples of the networks; the file of the take has 16 bits.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from melody_jax.errors import UserError
from melody_jax.sampling.request import Request
from melody_jax.sampling.system import System
from melody_jax.studio.job import Job, JobState, JobStatus, QueueFull, QueueLimits, QueueStats, UnknownJob
from melody_jax.studio.making import prompt_similarity, sound_blocks
from melody_jax.studio.project import Project
from melody_jax.studio.takes import Release

LOG = logging.getLogger(__name__)
UNKNOWN_WAIT = 10.0
"""Seconds after which to retry if no job has ended yet."""
LONGEST_WAIT = 600.0
"""Largest number of seconds after which to retry."""


class _Cancelled(Exception):
    """The running job is to end."""


class _Interrupted(Exception):
    """The warm-up gives way to a job."""


class JobQueue:
    """A bounded queue with one worker thread. Any thread may call it; `close` ends it.

    warm_ups: requests that are made and thrown away while no job waits, so that their programs are compiled.
    """

    def __init__(
        self,
        system: System,
        release: Release,
        project: Project,
        limits: QueueLimits | None = None,
        warm_ups: Sequence[Request] = (),
    ) -> None:
        self.system = system
        self.release = release
        self.project = project
        self.limits = QueueLimits() if limits is None else limits
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._warm_ups = deque(warm_ups)
        self._closing = False
        self._counts = dict.fromkeys(JobState, 0)
        self._refused = 0
        self._music_seconds = 0.0
        self._work_seconds = 0.0
        self._real_time_factor: float | None = None
        self._window_seconds: float | None = None
        self._job_seconds: float | None = None
        self._worker = threading.Thread(target=self._work, name="studio worker", daemon=True)
        self._worker.start()

    def __enter__(self) -> "JobQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, request: Request, *, client: str, parent: str | None = None, title: str = ""
    ) -> JobStatus:
        """Queues one request; see `submit_all`."""
        return self.submit_all([request], client=client, parent=parent, title=title)[0]

    def submit_all(
        self, requests: Sequence[Request], *, client: str, parent: str | None = None, title: str = ""
    ) -> list[JobStatus]:
        """Queues all of the requests or, if they do not fit, none.

        parent: the take that they come from. title: of the takes; empty: their prompts.

        Raises:
            UserError: the system cannot make a request, a request makes too much music, a sound is not a source of the
                project, or the queue is closed.
            UnknownTake: there is no such parent.
            QueueFull: too many jobs wait already, of all clients or of this one.
        """
        if parent is not None:
            self.project.take(parent)
        jobs = []
        lengths: dict[Any, int] = {}
        for request in requests:
            self.limits.check(request)
            self.project.check_sounds(request)
            self.system.check_inputs(request, lengths)
            words = [str(entry) for entry in self.system.unknown_words(request)]
            notes = (*words, *self.system.unused_scenes(request))
            jobs.append(Job(request, client, parent, title, notes))
        with self._changed:
            if self._closing:
                raise UserError("the studio is closing; no more jobs are taken")
            self._check_room(client, len(jobs))
            self._forget()
            self._queue.extend(jobs)
            self._jobs |= {job.id: job for job in jobs}
            self._changed.notify_all()
            return [self._status(job) for job in jobs]

    def status(self, job_id: str) -> JobStatus:
        """A job as it is now. Raises `UnknownJob`."""
        with self._changed:
            return self._status(self._job(job_id))

    def jobs(self, client: str | None = None) -> list[JobStatus]:
        """The remembered jobs in the order in which they were submitted, of all clients or of one."""
        with self._changed:
            self._forget()
            return [self._status(job) for job in self._jobs.values() if client in (None, job.client)]

    def cancel(self, job_id: str) -> JobStatus:
        """Ends a job: at once if it waits, after the window that is being made if it runs. Raises `UnknownJob`.

        A job that has ended stays as it is.
        """
        with self._changed:
            job = self._job(job_id)
            job.is_cancelled.set()
            if job.state == JobState.QUEUED:
                self._queue.remove(job)
                self._finish(job, JobState.CANCELLED)
            return self._status(job)

    def blocks(self, job_id: str, heartbeat: float | None = None) -> Iterator[Float32[np.ndarray, " n *C"]]:
        """The sound of a job as it comes: float32 blocks (n,) or (n, channels) at the system's sample rate.

        A late reader gets what there is already; after the job's end, the samples of the take as one block of 16-bit
        precision. The iterator ends with the last block, which may be shortly before the state changes; at once for a
        job that failed or was cancelled. Blocks are read-only. heartbeat: see `SoundStream.read`. Raises `UnknownJob`.
        """
        with self._changed:
            job = self._job(job_id)
            if job.sound is not None:
                return job.sound.read(heartbeat)
            take_id = job.take_id
        return iter([] if take_id is None else [self.project.read(take_id)])

    def wait(self, job_id: str, timeout: float | None = None) -> JobStatus:
        """Waits for the end of a job, at most `timeout` seconds; returns its status. Raises `UnknownJob`."""
        with self._changed:
            job = self._job(job_id)
            self._changed.wait_for(lambda: job.state.is_final, timeout)
            return self._status(job)

    def stats(self) -> QueueStats:
        """Counts since the start."""
        with self._changed:
            return QueueStats(
                queued=len(self._queue),
                running=int(self._running is not None),
                done=self._counts[JobState.DONE],
                failed=self._counts[JobState.FAILED],
                cancelled=self._counts[JobState.CANCELLED],
                refused=self._refused,
                warm=not self._warm_ups,
                alive=self._worker.is_alive(),
                music_seconds=round(self._music_seconds, 3),
                work_seconds=round(self._work_seconds, 3),
                real_time_factor=self._real_time_factor,
            )

    def close(self, timeout: float | None = None) -> None:
        """Takes no more jobs, cancels all, and waits for the worker, which ends after the window that it makes."""
        with self._changed:
            self._closing = True
            self._warm_ups.clear()
            while self._queue:
                self._finish(self._queue.popleft(), JobState.CANCELLED)
            if self._running is not None:
                self._running.is_cancelled.set()
            self._changed.notify_all()
        self._worker.join(timeout)

    def _job(self, job_id: str) -> Job:
        self._forget()
        if job_id not in self._jobs:
            raise UnknownJob("there is no such job, or it ended long ago")
        return self._jobs[job_id]

    def _status(self, job: Job) -> JobStatus:
        position = None
        if job.state == JobState.RUNNING:
            position = 0
        elif job.state == JobState.QUEUED:
            position = 1 + self._queue.index(job)
        return job.status(position, self._window_seconds)

    def _check_room(self, client: str, count: int) -> None:
        """Raises `QueueFull` unless `count` more jobs of a client may wait."""
        mine = sum(job.client == client for job in self._queue)
        length = len(self._queue)
        message = ""
        if length + count > self.limits.queued:
            message = f"the queue is full: {length} of at most {self.limits.queued} jobs wait"
        elif mine + count > self.limits.queued_per_client:
            message = f"{mine} of your jobs wait, of at most {self.limits.queued_per_client}"
        if message:
            self._refused += count
            raise QueueFull(message, length, self._retry_seconds())

    def _retry_seconds(self) -> int:
        """When a place is likely to be free: after the running job."""
        running = self._running
        left = None if running is None else running.seconds_left(self._window_seconds)
        wait = next(wait for wait in (left, self._job_seconds, UNKNOWN_WAIT) if wait is not None)
        return math.ceil(min(max(wait, 1.0), LONGEST_WAIT))

    def _forget(self) -> None:
        """Forgets the jobs that ended first, beyond the limits."""
        finished = [job for job in self._jobs.values() if job.finished is not None]
        finished.sort(key=lambda job: job.finished or 0.0)
        oldest = time.time() - self.limits.finished_seconds
        surplus = len(finished) - self.limits.finished
        for number, job in enumerate(finished):
            if number < surplus or (job.finished or 0.0) < oldest:
                del self._jobs[job.id]

    def _finish(
        self, job: Job, state: JobState, take_id: str | None = None, error: str | None = None
    ) -> None:
        job.finish(state, take_id, error)
        self._counts[state] += 1
        self._changed.notify_all()

    def _work(self) -> None:
        """The worker: the jobs in their order, and the warm-up while there are none."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._queue or self._warm_ups)
                if self._closing:
                    return
                if self._queue:
                    self._running = self._queue.popleft()
                    self._running.start()
            if self._running is None:
                self._warm_up()
            else:
                self._run(self._running)

    def _run(self, job: Job) -> None:
        """Makes the take of a job, and notes how it ended."""
        state = JobState.FAILED
        take_id = None
        error = None
        try:
            take_id = self._make_take(job)
            state = JobState.DONE
        except _Cancelled:
            state = JobState.CANCELLED
        except UserError as problem:
            error = " ".join(str(problem).split())
        except Exception:
            LOG.exception("job %s failed", job.id)
            error = "internal error, see the log"
        with self._changed:
            self._running = None
            self._finish(job, state, take_id, error)

    def _make_take(self, job: Job) -> str:
        """Makes and stores the sound of a job; returns the take's id. Raises `_Cancelled`."""
        sound = job.sound
        assert sound is not None

        def progress(done: int, total: int) -> None:
            if job.is_cancelled.is_set():
                raise _Cancelled
            with self._changed:
                job.windows_done = done
                job.windows_total = total

        started = time.perf_counter()
        for block in sound_blocks(self.system, job.request, progress):
            if job.is_cancelled.is_set():
                raise _Cancelled
            sound.append(block)
        sound.end()
        seconds = time.perf_counter() - started
        samples = sound.samples()
        similarity = prompt_similarity(self.system, job.request, samples)
        if job.is_cancelled.is_set():
            raise _Cancelled
        take = self.project.add_take(
            samples,
            self.system.sample_rate,
            job.request,
            self.release,
            model_hash=self.system.hash,
            parent=job.parent,
            title=job.title,
            similarity=similarity,
            seconds_taken=seconds,
        )
        with self._changed:
            self._window_seconds = seconds / max(1, job.windows_total)
            self._job_seconds = seconds
            self._music_seconds += take.seconds
            self._work_seconds += seconds
            self._real_time_factor = round(take.seconds / seconds, 3)
        return take.id

    def _warm_up(self) -> None:
        """Makes the first of the warm-ups, unless a job arrives meanwhile."""

        def progress(done: int, total: int) -> None:
            del done, total
            if self._queue or self._closing:
                raise _Interrupted

        request = self._warm_ups[0]
        started = time.perf_counter()
        try:
            samples = np.concatenate(list(sound_blocks(self.system, request, progress)))
            seconds = time.perf_counter() - started
            prompt_similarity(self.system, request, samples)
            self._real_time_factor = round(len(samples) / self.system.sample_rate / seconds, 3)
        except _Interrupted:
            return
        except UserError as error:
            LOG.info("warm-up left out: %s", error)
        except Exception:
            LOG.exception("warm-up failed")
        with self._changed:
            if self._warm_ups:
                self._warm_ups.popleft()
