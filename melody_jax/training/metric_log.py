"""The metrics of a run: rows of JSON in metrics.jsonl, curves in TensorBoard and W&B, and a progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from melody_jax import files
from melody_jax.flops import matmul_cost
from melody_jax.training.nonfinite import NORM, BadStep
from melody_jax.training.notes import print_note
from melody_jax.training.stage import Metrics
from melody_jax.training.utilisation import peak_flops
from melody_jax.training.wandb_log import WandbLog

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricLog:
    """Appends rows to `<workdir>/metrics.jsonl` and moves the progress bar (rate, time left, loss).

    Step metrics stay on the device until `flush`, so that the device never waits for the log; a row is their mean. Rows
    past `start` are dropped first: a resumed run repeats those steps and would write them twice. Of several processes
    the first one writes and shows. The same numbers go to `<workdir>/tensorboard` and to `wandb`. The bar is shown on
    terminals only.

    In addition to the stage's metrics, a row of training has `learning_rate`, `time/steps_per_second`, and
      time/data_wait  share of the time spent waiting for batches; if above a few percent, increase `data.threads`
      time/mfu        FLOPs of the networks' matrix products and convolutions, over the devices' peak in the same time;
                      recomputation by remat counts too
      time/useful     seconds spent in the steps of this row, without data, compiling, evaluating, previews and saving
      time/goodput    useful seconds of all rows up to this one, over the time since the run first began: interruptions
                      and the steps repeated because of them lower it
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        name: str,
        rate: Callable[[int], Any],
        quiet: bool = False,
        wandb: WandbLog | None = None,
    ) -> None:
        self._path = workdir / "metrics.jsonl"
        self._wandb = wandb
        self._writes = jax.process_index() == 0
        self._quiet = quiet or not self._writes
        self._curves = _curves(workdir / "tensorboard", start) if self._writes else None
        self._rate = rate
        self._seconds = _no_seconds()
        self._flushed = time.monotonic()
        self._peak_steps_per_second = math.inf  # at the devices' peak FLOP/s
        self._began = time.monotonic()
        self._run_began, self._useful = self._drop_rows(start)
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit="step",
            disable=self._quiet or None,  # None: unless stderr is a terminal
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._postfix: dict[str, str] = {}
        self._pending: list[tuple[int, Metrics]] = []

    @contextlib.contextmanager
    def timer(self, activity: Literal["data", "other"]) -> Iterator[None]:
        """Counts the time inside as "data" (waiting for batches) or "other" (neither that nor steps)."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[activity] += time.monotonic() - began

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Shows what the bar waits for while the context lasts."""
        self._bar.set_postfix_str(text)
        yield
        self._bar.set_postfix(self._postfix)

    def note(self, line: str) -> None:
        """Prints one line above the bar."""
        if not self._quiet:
            print_note(line)

    def measure_utilisation(self, step: Any, devices: int, peak_tflops: float) -> None:
        """Sets the cost of a step: its jaxpr, the devices that share it, and the peak of one device (0: measured)."""
        if self._writes:
            peak = peak_tflops * 1e12 or peak_flops()
            self._peak_steps_per_second = peak * devices / matmul_cost(step)[0]

    def add(self, step: int, metrics: Metrics) -> None:
        """Records a completed step, with its metrics still on the device."""
        self._pending.append((step, metrics))
        self._bar.update()

    def flush(self) -> BadStep | None:
        """Fetches and writes the pending metrics, up to the first step that is not finite, which is returned."""
        rows = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        finite = [math.isfinite(metrics["loss"]) and math.isfinite(metrics[NORM]) for _, metrics in rows]
        count = finite.index(False) if False in finite else len(rows)
        if count:
            last_step = rows[count - 1][0]
            metrics = mean([metrics for _, metrics in rows[:count]])
            self.write(last_step, metrics | self._timing(last_step, count))
        self._seconds = _no_seconds()
        self._flushed = time.monotonic()
        if count == len(rows):
            return None
        step, metrics = rows[count]
        return BadStep(step - 1, {name: float(value) for name, value in metrics.items()})

    def rewind(self, step: int) -> None:
        """Training continues from `step`: later rows are dropped, as on resuming."""
        self._run_began, self._useful = self._drop_rows(step)
        self._bar.n = step
        self._bar.refresh()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row; the bar shows the loss and the held-out loss."""
        if not self._writes:
            return
        row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self._began, 3)}
        row |= {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        curves = {key if "/" in key else f"train/{key}": value for key, value in metrics.items()}
        if self._curves is not None:
            self._curves.flush()
            for key, value in curves.items():
                self._curves.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.write(step, curves)
        for key, label in (("loss", "loss"), ("eval/loss", "held_out")):
            if key in metrics:
                self._postfix[label] = f"{metrics[key]:.4g}"
        self._bar.set_postfix(self._postfix, refresh=False)

    def show(self, step: int, previews: Mapping[str, tuple[np.ndarray, int, np.ndarray]]) -> None:
        """Adds players and spectrograms to TensorBoard and W&B.

        `previews` maps names to (audio (T,) or (T, C), its sample rate, image (height, width) in [0, 1]).
        """
        if self._curves is not None:
            for name, (audio, sample_rate, image) in previews.items():
                self._curves.add_audio(name, audio, step, sample_rate)
                self._curves.add_image(name, image, step, dataformats="HW")
        if self._wandb is not None:
            self._wandb.show(step, previews)

    def close(self) -> None:
        """Closes the bar and TensorBoard's file."""
        self._bar.close()
        if self._curves is not None:
            self._curves.close()

    def _timing(self, step: int, steps: int) -> dict[str, float]:
        """The time figures of a row of `steps` steps that ends with `step`."""
        elapsed = time.monotonic() - self._flushed
        training = max(elapsed - self._seconds["other"], 1e-9)  # waiting for data included
        useful = max(training - self._seconds["data"], 0.0)
        self._useful += useful
        now = time.time()
        return {
            "learning_rate": float(self._rate(step - 1)),
            "time/steps_per_second": steps / elapsed,
            "time/data_wait": self._seconds["data"] / elapsed,
            "time/mfu": steps / training / self._peak_steps_per_second,
            "time/useful": useful,
            "time/goodput": self._useful / max(now - self._run_began, 1e-9),
            "time/unix": now,
        }

    def _drop_rows(self, step: int) -> tuple[float, float]:
        """Drops rows past `step`. Returns when the run first began, Unix time, and the useful seconds of the others."""
        began = time.time() - (time.monotonic() - self._began)
        if not self._writes or not self._path.exists():
            return began, 0.0
        lines = [(_row(line), line) for line in files.split_lines(files.read_text(self._path))]
        remaining = [(row, line) for row, line in lines if step and row["step"] <= step]
        files.write_bytes(self._path, "".join(f"{line}\n" for _, line in remaining).encode())
        timed = [row for row, _ in remaining if "time/unix" in row]
        useful = sum(row["time/useful"] for row in timed)
        return (timed[0]["time/unix"] - timed[0]["seconds"] if timed else began), useful


class Profile:
    """A `jax.profiler` trace of a few steps, in `<workdir>/profile`."""

    def __init__(self, workdir: Path, first: int, steps: int) -> None:
        self._folder = workdir / "profile"
        self._steps = range(first, first + steps)
        self.running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """The context of one step."""
        if step in self._steps and not self.running:
            jax.profiler.start_trace(str(self._folder))
            self.running = True
        elif step not in self._steps:
            self.close()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def close(self) -> None:
        """Ends and writes the trace, if one is running."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


def mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each metric over rows with the same keys; empty without rows."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _curves(folder: Path, start: int) -> "SummaryWriter":
    """A writer that only `MetricLog.write` flushes: its own thread would fail silently on a full disk."""
    from tensorboardX import SummaryWriter  # an extra: the options of commands are shown without it

    return SummaryWriter(str(folder), purge_step=start + 1, max_queue=10_000, flush_secs=10**6)


def _no_seconds() -> dict[str, float]:
    return {"data": 0.0, "other": 0.0}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without lines that are cut short; empty if there is no such file."""
    if not path.is_file():
        return []
    rows = (_row(line) for line in files.split_lines(files.read_text(path)))
    return [row for row in rows if math.isfinite(row["step"])]


def _row(line: str) -> dict[str, Any]:
    """The row of a line; its step is infinite if the line is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {"step": math.inf}
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row else {"step": math.inf}
