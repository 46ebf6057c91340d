"""What a run tells: one JSON line a log interval in metrics.jsonl, TensorBoard's curves, and a progress bar."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from melody_jax.errors import UserError
from melody_jax.training.stage import Metrics


class MetricLog:
    """Appends rows to `<workdir>/metrics.jsonl` and moves the bar (rate, time left, loss).

    Step metrics stay on the device until the log interval, so that the device never waits for the log; a row is
    their mean. Rows past `start` are dropped first: a resumed run repeats those steps and would write them twice.
    Of several processes the first one writes and shows. The same numbers go to `<workdir>/tensorboard`.

    Besides what the stage measures, a row has `learning_rate`, `time/steps_per_second`, and `time/data_wait`, the share
    of the time spent waiting for batches: more than a few percent asks for more `data.threads`.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        name: str,
        every: int,
        rate: Callable[[int], Any],
        quiet: bool = False,
    ) -> None:
        self._path, self._every, self._first = workdir / "metrics.jsonl", every, jax.process_index() == 0
        self._curves = _curves(workdir / "tensorboard", start) if self._first else None
        self._rate, self._waited, self._flushed = rate, 0.0, time.monotonic()
        if self._first and self._path.exists():
            rows = [line for line in self._path.read_text().splitlines() if _step(line) <= start]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(f"{row}\n" for row in rows))
            temporary.replace(self._path)  # a kill, or a full disk, here loses no row
        self._began = time.monotonic()
        self._bar = tqdm(
            total=steps, initial=start, desc=name, unit="step", disable=quiet or not self._first, mininterval=0.5
        )
        self._shown: dict[str, str] = {}
        self._pending: list[tuple[int, Metrics]] = []

    def waited(self, seconds: float) -> None:
        """So long did the last batch let the loop wait."""
        self._waited += seconds

    def add(self, step: int, metrics: Metrics) -> None:
        """One step done, with its metrics still on the device."""
        self._pending.append((step, metrics))
        self._bar.update()
        if step % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Fetches and writes what is pending.

        Raises:
            UserError: a loss is not finite; names the first such step.
        """
        rows = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        for step, metrics in rows:
            if not math.isfinite(metrics["loss"]):
                raise UserError(f"the loss is {metrics['loss']} at step {step}; resume with a lower learning rate")
        if rows:
            step, passed = rows[-1][0], time.monotonic() - self._flushed
            speed = {"time/steps_per_second": len(rows) / passed, "time/data_wait": self._waited / passed}
            row = {"learning_rate": float(self._rate(step - 1))} | speed
            self.write(step, mean([metrics for _, metrics in rows]) | row)
        self._waited, self._flushed = 0.0, time.monotonic()

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

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
        if self._curves is not None:
            self._curves.close()


def mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each metric over rows of equal keys; empty for no rows."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _curves(folder: Path, start: int) -> SummaryWriter:
    """A writer that is flushed at every row and never by itself: its own thread would die of a full disk unheard."""
    return SummaryWriter(str(folder), purge_step=start + 1, max_queue=10_000, flush_secs=10**6)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a killed process may be cut
        return math.inf
