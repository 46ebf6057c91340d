"""Every stage at its tiny size: fifty steps lower the held-out loss, and resuming at 25 ends with the same bits."""

import shutil
from pathlib import Path

import pytest
from helpers.arrays import assert_same
from helpers.stages import STAGES, Batches
from helpers.toy import rows

from melody_jax.config import OptimizerConfig, TrainConfig
from melody_jax.training.loop import train


@pytest.mark.parametrize("name", STAGES)
def test_learns_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    stage = STAGES[name]
    config = TrainConfig(
        stage=stage,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        steps=50,
        save_every=25,
        eval_every=10,
        keep_last=5,
        workdir=str(tmp_path / "run"),
    )
    held_out_source = Batches(stage, 10_000)
    held_out = [next(held_out_source) for _ in range(2)]
    uninterrupted = train(config, Batches(stage), held_out, quiet=True)
    first, *_, last = [row for row in rows(tmp_path / "run") if "eval/loss" in row]
    assert last["eval/loss"] < first["eval/loss"]
    bits = [value for metric, value in last.items() if metric.endswith("/bits")]
    assert len(bits) == (3 if name == "codec" else 0)
    assert all(value > 1 for value in bits), "the codes of a quantiser stay in use"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "50")
    assert_same(train(config, Batches(stage), held_out, quiet=True), uninterrupted)
