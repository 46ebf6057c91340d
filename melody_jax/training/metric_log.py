"""What a run tells: one JSON line a log interval in metrics.jsonl, TensorBoard's curves, and a progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from melody_jax.audio import SAMPLE_RATE
from melody_jax.flops import matmul_cost
from melody_jax.training.sentinel import NORM, BadStep
from melody_jax.training.stage import Metrics
from melody_jax.training.utilisation import peak_flops

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricLog:
    """Appends rows to `<workdir>/metrics.jsonl` and moves the bar (rate, time left, loss).

    Step metrics stay on the device until the loop looks, so that the device never waits for the log; a row is their
    mean. Rows past `start` are dropped first: a resumed run repeats those steps and would write them twice. Of several
    processes the first one writes and shows. The same numbers go to `<workdir>/tensorboard`.

    Besides what the stage measures a row of training has `learning_rate`, `time/steps_per_second`, and
      time/data_wait  share of the time spent waiting for batches: more than a few percent asks for more `data.threads`
      time/mfu        FLOPs of the networks' matrix products and convolutions over what the devices could have done
                      meanwhile; what remat computes again counts too
      time/useful     seconds spent in the steps of this row: not for data, compiling, evaluating, previews or saving
      time/goodput    useful seconds of all rows kept so far, over the time since the run first began: what was lost to
                      interruptions, and steps done twice because of them, is missing from it
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        name: str,
        rate: Callable[[int], Any],
        quiet: bool = False,
    ) -> None:
        self._path, self._first = workdir / "metrics.jsonl", jax.process_index() == 0
        self._curves = _curves(workdir / "tensorboard", start) if self._first else None
        self._rate, self._spent, self._flushed = rate, _nothing_spent(), time.monotonic()
        self._capacity = math.inf  # steps a second that all FLOP/s of a device would allow
        self._began = time.monotonic()
        self._run_began, self._useful = self._keep(start)
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit="step",
            disable=quiet or not self._first,
            mininterval=0.5,
        )
        self._shown: dict[str, str] = {}
        self._pending: list[tuple[int, Metrics]] = []

    @contextlib.contextmanager
    def spent(self, what: str) -> Iterator[None]:
        """Counts the time inside as "data" (waiting for batches) or "other" (neither that nor steps)."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - began

    def measure_utilisation(self, step: Any, devices: int, peak_tflops: float) -> None:
        """Says what a step costs: its jaxpr, the devices that share it, and the peak of one (0: found out)."""
        if self._first:
            self._capacity = (peak_tflops * 1e12 or peak_flops()) * devices / matmul_cost(step)[0]

    def add(self, step: int, metrics: Metrics) -> None:
        """One step done, with its metrics still on the device."""
        self._pending.append((step, metrics))
        self._bar.update()

    def flush(self) -> BadStep | None:
        """Fetches and writes what is pending, up to the first step that is not finite, which is returned."""
        rows = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        finite = [math.isfinite(metrics["loss"]) and math.isfinite(metrics[NORM]) for _, metrics in rows]
        count = finite.index(False) if False in finite else len(rows)
        good, bad = rows[:count], rows[count] if count < len(rows) else None
        if good:
            self.write(
                good[-1][0], mean([metrics for _, metrics in good]) | self._timing(good[-1][0], len(good))
            )
        self._spent, self._flushed = _nothing_spent(), time.monotonic()
        return BadStep(bad[0] - 1, {name: float(value) for name, value in bad[1].items()}) if bad else None

    def went_back(self, step: int) -> None:
        """Training goes on from `step`: later rows are dropped, as on resuming."""
        self._run_began, self._useful = self._keep(step)
        self._bar.n = step
        self._bar.refresh()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row; the loss and the held-out loss are shown beside the bar."""
        if not self._first:
            return
        row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self._began, 3)}
        row |= {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._curves is not None:
            self._curves.flush()
            for key, value in metrics.items():
                self._curves.add_scalar(key if "/" in key else f"train/{key}", value, step)
        for key, label in (("loss", "loss"), ("eval/loss", "held_out")):
            if key in metrics:
                self._shown[label] = f"{metrics[key]:.4g}"
        self._bar.set_postfix(self._shown, refresh=False)

    def show(self, step: int, previews: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Players and spectrograms for TensorBoard: name -> (audio (T,) at 24 kHz, image (height, width) in [0, 1])."""
        if self._curves is not None:
            for name, (audio, image) in previews.items():
                self._curves.add_audio(name, audio, step, SAMPLE_RATE)
                self._curves.add_image(name, image, step, dataformats="HW")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
        if self._curves is not None:
            self._curves.close()

    def _timing(self, step: int, steps: int) -> dict[str, float]:
        """The figures of a row that are about time."""
        passed = time.monotonic() - self._flushed
        trained = max(passed - self._spent["other"], 1e-9)  # waiting for data included
        useful = max(trained - self._spent["data"], 0.0)
        self._useful += useful
        now = time.time()
        return {
            "learning_rate": float(self._rate(step - 1)),
            "time/steps_per_second": steps / passed,
            "time/data_wait": self._spent["data"] / passed,
            "time/mfu": steps / trained / self._capacity,
            "time/useful": useful,
            "time/goodput": self._useful / max(now - self._run_began, 1e-9),
            "time/unix": now,
        }

    def _keep(self, step: int) -> tuple[float, float]:
        """Drops rows past `step`; gives when the run first began, Unix time, and the useful seconds of what stays."""
        began = time.time() - (time.monotonic() - self._began)
        if not self._first or not self._path.exists():
            return began, 0.0
        lines = [(_row(line), line) for line in self._path.read_text().splitlines()]
        kept = [(row, line) for row, line in lines if step and row["step"] <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for _, line in kept))
        temporary.replace(self._path)  # a kill, or a full disk, here loses no row
        timed = [row for row, _ in kept if "time/unix" in row]
        useful = sum(row["time/useful"] for row in timed)
        return (timed[0]["time/unix"] - timed[0]["seconds"] if timed else began), useful


class Profile:
    """A `jax.profiler` trace of a few steps, in `<workdir>/profile`."""

    def __init__(self, workdir: Path, first: int, steps: int) -> None:
        self._folder, self._steps, self.running = workdir / "profile", range(first, first + steps), False

    @contextlib.contextmanager
    def step(self, n: int) -> Iterator[None]:
        """Around step n."""
        if n in self._steps and not self.running:
            jax.profiler.start_trace(str(self._folder))
            self.running = True
        elif n not in self._steps:
            self.close()
        with jax.profiler.StepTraceAnnotation("train", step_num=n):
            yield

    def close(self) -> None:
        """Ends and writes the trace, if one is running."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


def mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each metric over rows of equal keys; empty for no rows."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _curves(folder: Path, start: int) -> "SummaryWriter":
    """A writer that is flushed at every row and never by itself: its own thread would die of a full disk unheard."""
    from tensorboardX import SummaryWriter  # an extra: the options of commands are shown without it

    return SummaryWriter(str(folder), purge_step=start + 1, max_queue=10_000, flush_secs=10**6)


def _nothing_spent() -> dict[str, float]:
    return {"data": 0.0, "other": 0.0}


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        return row if "step" in row else {"step": math.inf}
    except (ValueError, TypeError):  # the last line of a killed process may be cut
        return {"step": math.inf}
