"""Does a run that is killed many times end with the same bits? One process with eight virtual devices, and two with
four, SIGKILL.

    python benchmarks/kill.py

For each number of processes it trains the language model of the tests twice: undisturbed, and with one or all
processes killed at random moments (at the start, between saves, during a save) and started again. Compares the last
checkpoint (state, average, data position) bit by bit and every number in metrics.jsonl; writes
docs/evaluation/kills.md. Takes about half an hour on two idle cores.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]
from helpers.hosts import Run, assert_same_run, write_features  # noqa: E402  # the tests' supervisor

PATIENCE = 60.0
"""Seconds within which a process must notice that the other one is gone."""


@dataclass(frozen=True)
class Arguments:
    """Kills a run and compares it with an undisturbed one."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes; each has runs of its own."""
    kills: int = 50
    """Number of kills of each run."""
    steps: int = 800
    """Steps of the run; enough for all kills."""
    save_every: int = 4
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of moments and victims."""
    out: Path = ROOT / "docs" / "evaluation" / "kills.md"
    """File of the report."""


def wait(run: Run, moment: str, rng: np.random.Generator) -> None:
    """Waits for a random moment after the last start."""
    first = run.reached()
    if moment == "starting":
        stop = time.monotonic() + rng.uniform(0, 10)
        run.until(lambda: time.monotonic() > stop)
        return
    steps = int(rng.integers(1, 16))
    run.until(lambda: run.reached() >= run.saved() + 1 and run.reached() >= first + steps)
    conditions: dict[str, Callable[[], bool]] = {"saving": run.saving, "training": lambda: not run.saving()}
    run.until(conditions[moment])
    time.sleep(rng.uniform(0, 0.02 if moment == "saving" else 0.2))


ROW = (
    "processes",
    "kill",
    "moment",
    "killed",
    "last step",
    "checkpoint",
    "lost steps",
    "the others ended after",
)


def kill_many(arguments: Arguments, count: int) -> tuple[str, list[list[str]]]:
    """Kills a run of `count` processes, compares it with an undisturbed one; a sentence, and the table's rows."""
    options = [
        "--steps",
        str(arguments.steps),
        "--save_every",
        str(arguments.save_every),
        "--eval_every",
        "50",
    ]
    rng = np.random.default_rng(arguments.seed)
    everyone = tuple(range(count))
    table = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "features").mkdir()
        features = write_features(Path(folder) / "features")
        undisturbed, killed = (
            Run(features, Path(folder) / name, options, count, timeout=3600)
            for name in ("undisturbed", "killed")
        )
        undisturbed.train()
        for number in tqdm(range(1, arguments.kills + 1), desc=f"kills, {count} processes"):
            moment = str(rng.choice(["starting", "saving", "training"], p=[0.2, 0.45, 0.35]))
            victims = (*((index,) for index in everyone), everyone)[rng.integers(count + 1)]
            killed.start()
            wait(killed, moment, rng)
            writing = killed.saving()
            passed = killed.kill(victims, PATIENCE)
            reached = killed.reached()
            saved = killed.saved()
            names = "all" if len(victims) == count else f"process {victims[0]}"
            ended = f"{passed:.1f} s" if passed < PATIENCE else "killed too"
            row = [
                str(count),
                str(number),
                moment + ", during a save" * writing,
                names,
                str(reached),
                str(saved),
            ]
            table.append([*row, str(max(reached - saved, 0)), "-" if len(victims) == count else ended])
            print(" | ".join(table[-1]), flush=True)
        killed.train()
        assert_same_run(killed, undisturbed)
        steps = len([row for row in killed.rows() if "loss" in row])
    summary = (
        f"After {arguments.kills} kills the run of {steps} steps by {count} process{'es' * (count > 1)} ended with the "
        "same bits as the undisturbed one: parameters, optimiser, average, data position, and every number in "
        "metrics.jsonl."
    )
    return summary, table


def main() -> None:
    """Trains, kills, compares, prints and writes the report."""
    arguments = tyro.cli(Arguments, description=__doc__)
    results = [kill_many(arguments, count) for count in arguments.processes]
    rows = [ROW, ["---"] * len(ROW), *(row for _, table in results for row in table)]
    report = "\n\n".join(summary for summary, _ in results) + "\n\n"
    report += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    arguments.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
