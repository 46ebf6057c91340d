"""Does a run that is killed many times end with the same bits? Two processes with four virtual devices,
SIGKILL.

    python benchmarks/kill.py

Trains the language model of the tests twice: undisturbed, and with one or both processes killed at random
moments (at the start, between saves, during a save) and started again. Compares the last checkpoint (state,
average, data position) bit by bit and every number in metrics.jsonl; writes docs/evaluation/kills.md. Takes
about ten minutes on two cores.
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

    kills: int = 20
    """Number of kills."""
    steps: int = 400
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


def main() -> None:
    """Trains, kills, compares and writes the report."""
    arguments = tyro.cli(Arguments, description=__doc__)
    options = [
        "--steps",
        str(arguments.steps),
        "--save_every",
        str(arguments.save_every),
        "--eval_every",
        "50",
    ]
    rng = np.random.default_rng(arguments.seed)
    rows = [
        ["kill", "moment", "killed", "last step", "checkpoint", "lost steps", "the other process ended after"]
    ]
    rows.append(["---"] * len(rows[0]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "features").mkdir()
        features = write_features(Path(folder) / "features")
        undisturbed, killed = (
            Run(features, Path(folder) / name, options) for name in ("undisturbed", "killed")
        )
        undisturbed.train()
        for number in tqdm(range(1, arguments.kills + 1), desc="kills"):
            moment = str(rng.choice(["starting", "saving", "training"], p=[0.2, 0.45, 0.35]))
            victims = ((0,), (1,), (0, 1))[rng.integers(3)]
            killed.start()
            wait(killed, moment, rng)
            writing = killed.saving()
            passed = killed.kill(victims, PATIENCE)
            reached = killed.reached()
            saved = killed.saved()
            words = {1: f"process {victims[0]}", 2: "both"}[len(victims)]
            ended = f"{passed:.1f} s" if passed < PATIENCE else "killed too"
            rows.append([str(number), moment + ", during a save" * writing, words, str(reached), str(saved)])
            rows[-1] += [str(max(reached - saved, 0)), "-" if len(victims) == 2 else ended]
            print(" | ".join(rows[-1]), flush=True)
        killed.train()
        assert_same_run(killed, undisturbed)
        steps = len([row for row in killed.rows() if "loss" in row])
    summary = (
        f"After {arguments.kills} kills the run of {steps} steps ended with the same bits as the undisturbed one: "
        "parameters, optimiser, average, data position, and every number in metrics.jsonl.\n\n"
    )
    arguments.out.write_text(summary + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    print(summary)


if __name__ == "__main__":
    main()
