"""The studio's server under load, killed, and fed with hostile requests: a real process with the release of the tests.

    python benchmarks/studio_load.py

Load: 1,000 jobs by 50 clients at a time, each of which asks again when it is refused, follows its job's events and
fetches its take. Kill: SIGKILL while takes are made, several times; the history afterwards must be that of all takes
that were reported as done. Hostile: uploads and JSON bodies from the strategies of tests/hostile.

Writes docs/evaluation/studio_load.md; what should not be ends the script with exit code 1.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import tyro
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from helpers.tiny import PROMPTS, tiny_networks  # noqa: E402  # of the tests
from hostile import audio_bytes, prompts  # noqa: E402

from melody_jax import release  # noqa: E402

START_SECONDS = 300.0
ANSWER_SECONDS = 120.0
QUEUED = 32
HUNDRED = 100
JSON = {"Content-Type": "application/json"}
OTHER_FIELDS = ("count", "title", "parent", "from_take", "melody", "constructor")


@dataclass(frozen=True)
class Arguments:
    """Puts load on a server, kills it, and sends it hostile requests."""

    requests: int = 1000
    """Jobs."""
    clients: int = 50
    """Requests at the same time."""
    kills: int = 10
    hostile: int = 500
    """Hostile uploads, and as many hostile JSON bodies."""
    seconds: float = 1.0
    """Length of the takes."""
    seed: int = 1
    out: Path = ROOT / "docs" / "evaluation" / "studio_load.md"


@dataclass
class Server:
    """A process of `melody studio`. Its temporary files and its working folder are in folders of their own."""

    folder: Path
    process: Any = None
    port: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    def start(self) -> None:
        for name in ("temporary", "cwd"):
            (self.folder / name).mkdir(exist_ok=True)
        code = "from melody_jax.cli import main; main()"
        words = [
            "studio",
            "--model",
            "tiny",
            "--folder",
            str(self.folder / "releases"),
            "--port",
            "0",
            "--no-browser",
        ]
        words += ["--project", str(self.project), "--queue.queued", str(QUEUED), "--queue.queued-per-client"]
        words += [str(QUEUED), "--clients.changes-per-minute", "1e6", "--clients.uploads-per-minute", "1e6"]
        words += ["--clients.requests-per-second", "1e6", "--uploads.min-seconds", "0"]
        environment = os.environ | {"TMPDIR": str(self.folder / "temporary"), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=self.folder / "cwd",
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if " serves the project " in line)
        self.port = int(line.split()[0].rpartition(":")[2])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.json("GET", "/api/info")["warm"]:
                    return
            time.sleep(0.2)
        raise RuntimeError("the server does not start")

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, value: Any = None) -> Any:
        """The value of a successful answer."""
        body = None if value is None else json.dumps(value).encode()
        status, _, data = self.request(method, path, body, JSON)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {data[:200]!r}")
        return json.loads(data)

    def memory(self) -> int:
        """Resident memory, bytes."""
        return int(self.json("GET", "/api/info")["memory_bytes"])

    def children(self) -> list[int]:
        """Processes that the server has started."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for path in children for child in path.read_text().split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(START_SECONDS)

    def check(self, good: bool, problem: str) -> None:
        if not good:
            self.problems.append(problem)
            print(f"PROBLEM: {problem}", file=sys.stderr, flush=True)


@dataclass
class Load:
    """What the load has done so far."""

    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    """After each take, bytes."""
    longest_queue: int = 0
    without_retry: int = 0
    done: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def make_one(server: Server, load: Load, number: int, seconds: float) -> None:
    """Asks for a take until it is taken, follows it to its end, and fetches its sound."""
    body = json.dumps({"prompt": PROMPTS[number % len(PROMPTS)], "seconds": seconds, "seed": number}).encode()
    while True:
        status, headers, data = server.request("POST", "/api/jobs", body, JSON)
        with load.lock:
            load.statuses[status] += 1
            load.without_retry += status == 429 and not headers.get("retry-after", "").isdigit()
        if status != 429:
            break
        time.sleep(random.uniform(0.2, 1.0))
    if status != 202:
        server.check(False, f"job {number}: {status} {data[:200]!r}")
        return
    job = json.loads(data)["jobs"][0]
    _, _, events = server.request("GET", f"/api/jobs/{job['id']}/events")
    last = json.loads(events.decode().strip().rpartition("data: ")[2])
    info = server.json("GET", "/api/info")
    status, _, sound = server.request("GET", f"/api/takes/{last['take_id']}/sound.flac")
    take = server.json("GET", f"/api/takes/{last['take_id']}")
    is_right = status == 200 and hashlib.sha256(sound).hexdigest() == take["sha256"]
    server.check(is_right and take["settings"]["seed"] == number, f"job {number}: {last['state']}, {status}")
    with load.lock:
        load.memory.append(info["memory_bytes"])
        load.longest_queue = max(load.longest_queue, info["queued"])
        load.done.add(last["take_id"])
        if len(load.done) % HUNDRED == 0:
            print(f"{len(load.done)} takes, {info['memory_bytes'] / 1e6:.0f} MB, {load.statuses}", flush=True)


def run_load(server: Server, arguments: Arguments) -> Load:
    load = Load()
    with ThreadPoolExecutor(arguments.clients) as pool:
        list(
            pool.map(
                lambda number: make_one(server, load, number, arguments.seconds), range(arguments.requests)
            )
        )
    takes = server.json("GET", "/api/info")["takes"]
    server.check(len(load.done) == arguments.requests == takes, f"{len(load.done)} takes are done")
    server.check(load.longest_queue <= QUEUED, f"{load.longest_queue} jobs waited")
    server.check(not load.without_retry, f"{load.without_retry} refusals without Retry-After")
    server.check(set(load.statuses) <= {202, 429}, f"statuses {load.statuses}")
    server.check(abs(growth(load) - 1) <= 0.05, f"memory grew by {growth(load):.3f}")
    return load


def growth(load: Load) -> float:
    """Mean memory of the last hundred takes relative to that of the first hundred."""
    count = min(HUNDRED, len(load.memory))
    return sum(load.memory[-count:]) / sum(load.memory[:count])


def run_kills(server: Server, arguments: Arguments) -> int:
    """Kills the server while it makes takes; returns the takes that were done before."""
    draws = random.Random(arguments.seed)
    before = set(take_ids(server))
    for _ in range(arguments.kills):
        jobs = [
            server.json("POST", "/api/jobs", {"prompt": "bossa nova", "seconds": 3, "count": 4})["jobs"]
            for _ in range(4)
        ]
        ids = [job["id"] for job in itertools.chain(*jobs)]
        time.sleep(draws.uniform(0.5, 6.0))
        states = [server.json("GET", f"/api/jobs/{job_id}") for job_id in ids]
        before |= {state["take_id"] for state in states if state["take_id"]}
        server.stop(signal.SIGKILL)
        server.start()
        after = set(take_ids(server))
        server.check(before <= after, f"{len(before - after)} takes are lost")
        for problem in damaged(server.project):
            server.check(False, problem)
        before = after
    return len(before)


def take_ids(server: Server) -> Iterator[str]:
    """The ids of the whole history."""
    query = "?limit=100"
    while query:
        page = server.json("GET", f"/api/takes{query}")
        yield from (take["id"] for take in page["takes"])
        query = page["next"] and f"?limit=100&before={page['next']!r}"


def damaged(project: Path) -> Iterator[str]:
    """What a project has that it should not have."""
    for path in project.rglob("*"):
        if path.name.endswith(".part"):
            yield f"{path} is left"
    for path in (project / "takes").glob("*.json"):
        take = json.loads(path.read_text())
        if hashlib.sha256((project / "takes" / take["file"]).read_bytes()).hexdigest() != take["sha256"]:
            yield f"{take['file']} is damaged"
    for path in (project / "takes").iterdir():
        if not path.with_suffix(".json").exists():
            yield f"{path} has no take"


def run_hostile(server: Server, arguments: Arguments) -> dict[str, Counter[int]]:
    """Sends hostile uploads and bodies; status -> count for each."""
    uploads = draw(st.one_of(*(kind.strategy() for kind in audio_bytes.KINDS.values())), arguments)
    bodies = draw(_bodies(), arguments)
    outside = files_outside(server)
    statuses = {
        "uploads": _send_all(server, "/api/uploads", uploads, {"Content-Type": "audio/wav"}),
        "JSON bodies": _send_all(server, "/api/jobs", bodies, JSON),
    }
    for job in server.json("GET", "/api/jobs")["jobs"]:
        server.json("DELETE", f"/api/jobs/{job['id']}")
    deadline = time.monotonic() + ANSWER_SECONDS
    while (server.children() or server.json("GET", "/api/info")["running"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    server.check(not server.children(), f"workers are left: {server.children()}")
    server.check(files_outside(server) == outside, f"written outside: {files_outside(server) - outside}")
    left = [path for path in (server.project / "uploads").rglob("*") if path.is_file()]
    server.check(not left, f"left: {left}")
    server.check(server.json("GET", "/healthz") == {"status": "ok"}, "the worker has ended")
    return statuses


def draw(strategy: st.SearchStrategy[bytes], arguments: Arguments) -> list[bytes]:
    """Cases of a strategy."""
    cases: list[bytes] = []

    @hypothesis.seed(arguments.seed)
    @hypothesis.settings(
        max_examples=arguments.hostile,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: bytes) -> None:
        cases.append(case)

    collect()
    return cases[: arguments.hostile]


def _bodies() -> st.SearchStrategy[bytes]:
    """Objects with fields of any value, broken JSON, and what is nested deeply."""
    fields = st.sampled_from((*prompts.FIELDS, *OTHER_FIELDS))
    objects = st.dictionaries(fields, prompts.VALUES, min_size=1, max_size=3)
    texts = objects.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    valid = b'{"prompt": [{"text": "piano", "weight": 2}], "story": [{"at": 2, "prompt": "techno"}], "seconds": 3}'
    deep = st.sampled_from((b"[" * 100_000, b'{"prompt": ' * 10_000, b'{"seed": ' + b"9" * 5000 + b"}"))
    return st.one_of(texts, texts, audio_bytes.mutated(valid, len(valid)), deep)


def _send_all(server: Server, path: str, bodies: list[bytes], headers: dict[str, str]) -> Counter[int]:
    """Sends each body; an answer that is neither a success nor a refusal of one line is a problem."""
    statuses: Counter[int] = Counter()
    for number, body in enumerate(bodies):
        while True:
            status, _, data = server.request("POST", path, body, headers)
            if status != 429:
                break
            time.sleep(0.5)
        statuses[status] += 1
        if status in (201, 202):
            continue
        lines = json.loads(data).get("error", "").splitlines() if 400 <= status < 500 else []
        server.check(len(lines) == 1, f"{path} {number}: {status} {data[:200]!r} for {body[:80]!r}")
        server.check(
            str(server.folder).encode() not in data, f"{path} {number} names a folder: {data[:200]!r}"
        )
        if (number + 1) % HUNDRED == 0:
            print(f"{path}: {number + 1} sent, {statuses}", flush=True)
    return statuses


def files_outside(server: Server) -> set[str]:
    """The files in the folders where the server may not write."""
    folders = [server.folder / name for name in ("temporary", "cwd", "releases")]
    return {str(path) for folder in folders for path in folder.rglob("*")}


def report(arguments: Arguments, load: Load, takes: int, statuses: dict[str, Counter[int]]) -> str:
    rows = [
        f"| {name} | {sum(counts.values())} | {sum(n for s, n in counts.items() if s < 300)} | "
        f"{sum(n for s, n in counts.items() if 400 <= s < 500)} |"
        for name, counts in statuses.items()
    ]
    taken, refused = (load.statuses[status] for status in (202, 429))
    first = sum(load.memory[:HUNDRED]) / len(load.memory[:HUNDRED]) / 1e6
    return f"""# The studio's server under load

`python benchmarks/studio_load.py` starts `melody studio` with the release of the tests (random weights), for which the
networks take little time.

- {arguments.requests:,} jobs by {arguments.clients} clients at a time: {len(load.done):,} takes, none lost.
  {taken:,} requests were taken, {refused:,} were answered 429 with Retry-After. At most {load.longest_queue}
  jobs waited, of {QUEUED}.
- Memory: {first:.0f} MB over the first {HUNDRED} takes, {100 * (growth(load) - 1):+.1f} % over the last.
- {arguments.kills} times SIGKILL while takes were made: all {takes:,} takes that were done are still listed, each sound
  has the sha256 of its JSON, and no unfinished file is left.

| hostile | sent | accepted | refused in one line |
| --- | ---: | ---: | ---: |
{chr(10).join(rows)}

Nothing was written outside the project folder, and no worker was left.
"""


def main(arguments: Arguments) -> int:
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name))
        for network, (params, config) in tiny_networks().items():
            release.save_network(server.folder / "releases" / "tiny", network, params, config, {})
        server.start()
        try:
            load = run_load(server, arguments)
            takes = run_kills(server, arguments)
            statuses = run_hostile(server, arguments)
            code = server.stop()
            server.check(code == 0, f"SIGTERM: exit code {code}")
        finally:
            server.process.kill()
    text = report(arguments, load, takes, statuses)
    print(text)
    if server.problems:
        return 1
    arguments.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
