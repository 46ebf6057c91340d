"""The studio's queue: order, limits, cancelling, streams to many readers, crashes, and takes equal to the bit."""

import itertools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.fake_system import RATE, FakeSystem, WholeSystem

from melody_jax import cli, load
from melody_jax.errors import UserError
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.plan import NETWORKS
from melody_jax.sampling.request import Request
from melody_jax.studio.job import JobState, JobStatus, QueueFull, QueueLimits, UnknownJob
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.making import can_stream, default_warm_ups
from melody_jax.studio.project import Project, UnknownTake, open_project
from melody_jax.studio.sound_stream import SoundStream
from melody_jax.studio.takes import Release, kind_of

PATIENCE = 60
"""Seconds after which a test gives up waiting."""
RELEASE = Release(name="fake")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with open_project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def gate() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture
def held(project: Project, gate: threading.Semaphore) -> Iterator[JobQueue]:
    """A queue whose system waits for the gate at every window."""
    queue = JobQueue(FakeSystem(gate), RELEASE, project, QueueLimits(queued=4, queued_per_client=3))
    yield queue
    gate.release(1000)
    queue.close(PATIENCE)
    assert not queue.stats().alive


@pytest.fixture
def queue(project: Project) -> Iterator[JobQueue]:
    with JobQueue(FakeSystem(), RELEASE, project) as opened:
        yield opened


def request(seconds: float = 3, prompt: str = "bossa nova", **settings: object) -> Request:
    return Request(prompt=prompt, seconds=seconds, **settings)  # type: ignore[arg-type]


def until_running(queue: JobQueue, job: JobStatus) -> None:
    until(lambda: queue.status(job.id).state == JobState.RUNNING)


def until(condition: object) -> None:
    assert callable(condition)
    event = threading.Event()
    for _ in range(PATIENCE * 200):
        if condition():
            return
        event.wait(0.005)
    pytest.fail("waited in vain")


def test_a_job_becomes_a_take(queue: JobQueue, project: Project) -> None:
    job = queue.submit(request(prompt="xyzzy waltz", seed=7), client="page", title="My  waltz")
    blocks = list(queue.blocks(job.id))
    status = queue.wait(job.id, PATIENCE)
    assert (status.state, status.error, status.position) == (JobState.DONE, None, None)
    assert (status.windows_done, status.windows_total, status.kind) == (3, 3, "prompt")
    assert "xyzzy" in status.notes[0]
    assert status.submitted <= (status.started or 0) <= (status.finished or 0)
    assert [block.dtype for block in blocks] == [np.float32] * 3
    assert not blocks[0].flags.writeable
    take = project.take(status.take_id or "")
    assert (take.title, take.release, take.similarity, take.seconds) == ("My waltz", "fake", 0.11, 3.0)
    assert take.settings["seed"] == 7
    assert take.model_hash == queue.system.hash
    stored, rate = soundfile.read(project.path(take.id), dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(stored, np.rint(np.concatenate(blocks) * 32768))
    assert queue.stats().done == 1
    assert queue.stats().music_seconds == 3.0


def test_jobs_wait_in_order(held: JobQueue, gate: threading.Semaphore) -> None:
    jobs = [held.submit(request(1, f"number {i}"), client="page") for i in range(3)]
    until_running(held, jobs[0])
    assert [held.status(job.id).position for job in jobs] == [0, 1, 2]
    assert [job.id for job in held.jobs("page")] == [job.id for job in jobs]
    assert held.jobs("another") == []
    gate.release(1)
    assert held.wait(jobs[0].id, PATIENCE).state == JobState.DONE
    until_running(held, jobs[1])
    assert [held.status(job.id).position for job in jobs] == [None, 0, 1]
    assert held.status(jobs[1].id).seconds_left is not None
    gate.release(2)
    assert held.wait(jobs[2].id, PATIENCE).state == JobState.DONE
    assert held.system.prompts_made == ["number 0", "number 1", "number 2"]  # type: ignore[attr-defined]


def test_a_full_queue_says_its_length_and_when_to_come_again(held: JobQueue) -> None:
    first = held.submit(request(), client="a")
    until_running(held, first)
    for _ in range(3):
        held.submit(request(), client="a")
    with pytest.raises(QueueFull, match=r"3 of your jobs wait, of at most 3; try again in \d+ s") as refused:
        held.submit(request(), client="a")
    assert refused.value.length == 3
    assert refused.value.retry_seconds >= 1
    with pytest.raises(QueueFull, match="the queue is full: 3 of at most 4 jobs wait"):
        held.submit_all([request()] * 2, client="b")
    assert held.stats().queued == 3  # of the two, none was taken
    assert held.submit(request(), client="b").position == 4
    assert held.stats().refused == 3


def test_cancelled_while_it_waits_and_while_it_runs(
    held: JobQueue, gate: threading.Semaphore, project: Project
) -> None:
    running = held.submit(request(), client="page")
    waiting = held.submit(request(), client="page")
    until_running(held, running)
    assert held.cancel(waiting.id).state == JobState.CANCELLED
    assert list(held.blocks(waiting.id)) == []
    blocks = held.blocks(running.id)
    gate.release(1)
    assert len(next(blocks)) == RATE
    assert held.cancel(running.id).state == JobState.RUNNING
    gate.release(1)  # the window that is being made
    assert held.wait(running.id, PATIENCE).state == JobState.CANCELLED
    assert len(list(blocks)) <= 1
    assert held.status(running.id).windows_done < 3
    assert len(project) == 0
    assert held.cancel(running.id).state == JobState.CANCELLED
    assert held.stats().cancelled == 2


def test_every_reader_gets_every_block(held: JobQueue, gate: threading.Semaphore) -> None:
    """One from the beginning, one that is late, one that goes away, and one that begins after the end."""
    job = held.submit(request(), client="page")
    early = held.blocks(job.id)
    vanished = held.blocks(job.id)
    gate.release(2)
    first = [next(early), next(early)]
    next(vanished)
    del vanished
    late = held.blocks(job.id)
    np.testing.assert_array_equal(next(late), first[0])
    gate.release(1)
    status = held.wait(job.id, PATIENCE)  # which no reader holds up
    assert status.state == JobState.DONE
    everything = np.concatenate([*first, *early])
    np.testing.assert_array_equal(np.concatenate([first[0], *late]), everything)
    (after,) = held.blocks(job.id)
    np.testing.assert_allclose(after, everything, atol=1 / 65536)


def test_a_waiting_reader_gets_heartbeats() -> None:
    sound = SoundStream()
    reader = sound.read(heartbeat=0.01)
    assert len(next(reader)) == 0
    sound.append(np.ones(3, np.float32))
    blocks = itertools.islice((block for block in reader if len(block)), 1)
    assert len(next(blocks)) == 3
    sound.end()
    assert not any(len(block) for block in reader)


def test_a_crash_ends_one_job_only(
    queue: JobQueue, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        crashed = queue.wait(queue.submit(request(prompt="crash"), client="page").id, PATIENCE)
    assert (crashed.state, crashed.error) == (JobState.FAILED, "internal error, see the log")
    assert "a network fell over" in caplog.text
    refused = queue.wait(queue.submit(request(prompt="refuse"), client="page").id, PATIENCE)
    assert (refused.state, refused.error) == (JobState.FAILED, "the prompt is refused")
    assert list(queue.blocks(refused.id)) == []
    after = queue.wait(queue.submit(request(), client="page").id, PATIENCE)
    assert after.state == JobState.DONE
    assert queue.stats().failed == 2
    assert [take.id for take in project.takes()] == [after.take_id]


def test_a_take_that_cannot_be_written_fails_its_job(
    queue: JobQueue, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(project, "add_take", full)
    status = queue.wait(queue.submit(request(), client="page").id, PATIENCE)
    assert (status.state, status.error) == (JobState.FAILED, "the disk is full")


def test_bad_requests_are_refused_at_once(queue: JobQueue, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bpm is 90; this system has no tempo"):
        queue.submit(request(bpm=90), client="page")
    with pytest.raises(UnknownTake, match="no such take"):
        queue.submit(request(), client="page", parent="0" * 16)
    outside = tmp_path / "outside.wav"
    soundfile.write(outside, np.zeros(RATE), RATE)
    for source in (outside, str(outside), np.zeros(RATE, np.float32)):
        with pytest.raises(UserError, match="not one of the project's"):
            queue.submit(request(source=source), client="page")
    for call in (queue.status, queue.cancel, queue.blocks, queue.wait):
        with pytest.raises(UnknownJob):
            call("0" * 32)


def test_a_job_that_makes_too_much_music_is_refused(project: Project) -> None:
    with JobQueue(FakeSystem(), RELEASE, project, QueueLimits(seconds=20)) as queue:
        assert queue.submit(request(10, best_of=2), client="page")
        with pytest.raises(UserError, match="seconds is 21; a job makes at most 20 s of music here"):
            queue.submit(request(21), client="page")
        with pytest.raises(UserError, match="seconds is 10 times 3 candidates; a job makes at most 20 s"):
            queue.submit(request(10, best_of=3), client="page")


def test_a_source_and_candidates_and_whole_systems_give_one_block(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = project.add_source(np.zeros(2 * RATE, np.float32), RATE)
    requests = [request(source=source), request(best_of=2)]
    assert not any(can_stream(FakeSystem(), one) for one in requests)
    monkeypatch.setattr(FakeSystem, "stream", lambda *_, **__: pytest.fail("streamed"))
    with JobQueue(FakeSystem(), RELEASE, project) as queue:
        for one in requests:
            job = queue.submit(one, client="page")
            (block,) = queue.blocks(job.id)
            assert len(block) == 3 * RATE
            assert queue.wait(job.id, PATIENCE).windows_done == 3
    monkeypatch.undo()
    assert can_stream(FakeSystem(), request())
    assert not can_stream(WholeSystem(), request())
    with JobQueue(WholeSystem(), RELEASE, project) as queue:
        (block,) = queue.blocks(queue.submit(request(), client="page").id)
        assert len(block) == 3 * RATE


def test_an_edit_is_cancelled_between_its_windows(
    held: JobQueue, gate: threading.Semaphore, project: Project
) -> None:
    source = project.add_source(np.zeros(2 * RATE, np.float32), RATE)
    job = held.submit(request(5, source=source), client="page")
    gate.release(2)
    until(lambda: held.status(job.id).windows_done == 2)
    held.cancel(job.id)
    gate.release(1)
    assert held.wait(job.id, PATIENCE).state == JobState.CANCELLED


@pytest.mark.parametrize("limits", [QueueLimits(finished=2), QueueLimits(finished_seconds=1e-9)])
def test_ended_jobs_are_forgotten_and_hold_no_sound(project: Project, limits: QueueLimits) -> None:
    with JobQueue(FakeSystem(), RELEASE, project, limits) as queue:
        jobs = []
        for _ in range(4):
            jobs.append(queue.submit(request(1), client="page"))
            until(lambda: queue.stats().done == len(jobs))
        assert len(queue.jobs()) == (2 if limits.finished == 2 else 0)
        assert all(job.sound is None for job in queue._jobs.values())
        with pytest.raises(UnknownJob):
            queue.status(jobs[0].id)
    assert len(project) == 4


def test_closing_cancels_and_ends_the_worker(project: Project, gate: threading.Semaphore) -> None:
    queue = JobQueue(FakeSystem(gate), RELEASE, project)
    jobs = [queue.submit(request(), client="page") for _ in range(2)]
    until_running(queue, jobs[0])
    reader = queue.blocks(jobs[0].id)
    threading.Timer(0.05, gate.release, (1,)).start()
    queue.close(PATIENCE)
    assert not queue.stats().alive
    assert [queue.status(job.id).state for job in jobs] == [JobState.CANCELLED] * 2
    assert len(list(reader)) <= 1
    with pytest.raises(UserError, match="closing"):
        queue.submit(request(), client="page")


def test_the_warm_up_gives_way_to_jobs(project: Project, gate: threading.Semaphore) -> None:
    system = FakeSystem(gate)
    warm_ups = [request(2, "warm"), request(1, "refuse"), request(1, "crash")]
    with JobQueue(system, RELEASE, project, warm_ups=warm_ups) as queue:
        until(lambda: system.prompts_made == ["warm"])
        assert not queue.stats().warm
        job = queue.submit(request(1, "job"), client="page")
        gate.release(1)  # the window of the warm-up that is being made
        until_running(queue, job)
        gate.release(100)
        assert queue.wait(job.id, PATIENCE).state == JobState.DONE
        until(lambda: queue.stats().warm)
        assert system.prompts_made == ["warm", "job", "warm", "refuse", "crash"]
    assert len(project) == 1


def test_warm_ups_of_a_release(melody: Melody) -> None:
    plain, longer, *edits = default_warm_ups(melody, request(1))
    assert plain.seconds == 1
    melody.check_inputs(longer)
    assert longer.seconds > melody.window_seconds
    assert not edits  # the tokenizer was not loaded


def test_warm_ups_of_a_release_that_reads_sounds(releases: Path) -> None:
    reading = load("tiny", folder=releases, networks=(*NETWORKS, "tokenizer"))
    requests = default_warm_ups(reading, request(10))
    assert [kind_of(entry) for entry in requests] == ["prompt"] * 2 + [
        "continuation",
        "mend",
        "variation",
        "restyle",
    ]
    for entry in requests:
        reading.check_inputs(entry)


def test_a_take_is_the_clip_of_the_command_line(
    melody: Melody, releases: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A streamed piece of several windows, its file compared byte by byte."""
    settings = {"steps": 1, "guidance_scale": 1.0, "lm_guidance_scale": 1.0, "seed": 3, "seconds": 6.03}
    with JobQueue(melody, Release(name="tiny"), project) as queue:
        job = queue.submit(Request(prompt="a calm solo piano piece", **settings), client="page")
        assert len(list(queue.blocks(job.id))) > 1
        status = queue.wait(job.id, PATIENCE)
    assert status.error is None
    take = project.take(status.take_id or "")
    assert take.similarity is not None
    out = tmp_path / "again.flac"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    monkeypatch.setattr("melody_jax.runtime.enable_compile_cache", lambda: None)
    cli.run(
        [
            "sample",
            "a calm solo piano piece",
            *words,
            "--model",
            "tiny",
            "--folder",
            str(releases),
            "--out",
            str(out),
        ]
    )
    assert out.read_bytes() == project.path(take.id).read_bytes()
