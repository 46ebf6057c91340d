"""The loop with a toy stage: learning, resuming bit for bit, refusing, stopping."""

import dataclasses
import shutil
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_same
from helpers.toy import ToyBatches, ToyModel, ToyStage, rows, run, toy_config, untimed

from melody_jax.config import OptimizerConfig
from melody_jax.errors import UserError
from melody_jax.training import checkpoint
from melody_jax.training.loop import accumulated, train
from melody_jax.training.stage import loss_gradients


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run(toy_config(workdir))


def test_learns_and_writes_metrics(finished: Any) -> None:
    workdir, _ = finished
    losses = [row["eval/loss"] for row in rows(workdir) if "eval/loss" in row]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    logged = [row for row in rows(workdir) if "loss" in row]
    assert [row["step"] for row in logged] == list(range(5, 51, 5))
    assert logged[0]["learning_rate"] == pytest.approx(0.03 * 4 / 5)
    assert all(row["time/steps_per_second"] > 0 and 0 <= row["time/data_wait"] < 1 for row in logged)
    assert all(row["time/mfu"] > 0 and 0 < row["time/goodput"] < 1 for row in logged)
    assert logged[0]["gradient_norm/model/dense"] > 0
    assert list((workdir / "tensorboard").glob("events.*"))


def test_resume_is_bit_identical(finished: Any, tmp_path: Any) -> None:
    workdir, uninterrupted = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "50")
    assert_same(run(toy_config(tmp_path / "run")), uninterrupted)
    assert [untimed(row) for row in rows(workdir)] == [untimed(row) for row in rows(tmp_path / "run")]
    first, last = rows(tmp_path / "run")[0], rows(tmp_path / "run")[-2]
    lived = last["time/unix"] - (first["time/unix"] - first["seconds"])
    useful = sum(row.get("time/useful", 0) for row in rows(tmp_path / "run"))
    assert last["time/goodput"] == pytest.approx(useful / lived, rel=0.01)


def test_accumulated_parts_equal_the_whole_batch(tmp_path: Any) -> None:
    whole, halves, singles = (
        run(toy_config(tmp_path / str(parts), stage=ToyStage(noise=0.0), steps=5, accumulate=parts))
        for parts in (1, 2, 8)
    )
    for other in (halves, singles):
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(UserError, match="batch_size 8 does not divide into accumulate 3"):
        toy_config(tmp_path, accumulate=3)


def test_parts_of_unequal_weight_equal_the_whole_batch() -> None:
    """A mean over the items that a mask names, of which the parts hold different numbers, one of them none."""

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        count = batch["mask"].sum()
        error = ((batch["x"] @ params["model"] - batch["y"]) ** 2).sum(axis=1)
        return (error * batch["mask"]).sum() / jnp.maximum(count, 1), {"weight": count}

    stage: Any = types.SimpleNamespace(
        gradients=lambda params, batch, key, step: loss_gradients(loss, params, batch, key)
    )
    batch = next(ToyBatches()) | {"mask": np.array([1, 1, 0, 1, 1, 0, 0, 1], np.float32)}
    params, key = {"model": jnp.eye(8)}, jax.random.key(0)
    whole, quarters = (accumulated(stage, parts, params, batch, key, jnp.int32(0)) for parts in (1, 4))
    np.testing.assert_allclose(quarters[0]["model"], whole[0]["model"], rtol=1e-5)
    np.testing.assert_allclose(quarters[1]["loss"], whole[1]["loss"], rtol=1e-6)


def test_sigterm_saves_and_resumes_identically(finished: Any, tmp_path: Any) -> None:
    config = toy_config(tmp_path)
    stopped = run(config, ToyBatches(interrupt=12))
    assert int(stopped.step) == 13
    assert_same(run(config), finished[1])


def test_resuming_is_announced(tmp_path: Any, capsys: Any) -> None:
    config = toy_config(tmp_path)
    run(config, ToyBatches(interrupt=12))
    assert "resuming" not in capsys.readouterr().err
    for lines in (1, 0):  # a finished run is not resumed
        train(config, ToyBatches(), [next(ToyBatches())], quiet=False)
        assert capsys.readouterr().err.count("resuming after step 13 of 50\n") == lines


def test_save_that_outlasts_the_time_after_sigterm_is_told(
    tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    def close(self: checkpoint.Checkpoints, close: Any = checkpoint.Checkpoints.close) -> None:
        time.sleep(0.3)
        close(self)

    monkeypatch.setattr(checkpoint.Checkpoints, "close", close)
    run(toy_config(tmp_path / "late", sigterm_seconds=0.05), ToyBatches(interrupt=12))
    assert "SIGTERM came over 0.05 s ago and the save is not done" in capsys.readouterr().err
    run(toy_config(tmp_path / "in_time"), ToyBatches(interrupt=12))
    assert "SIGTERM" not in capsys.readouterr().err


def test_finished_run_is_left_alone(finished: Any) -> None:
    assert_same(run(toy_config(finished[0])), finished[1])


def test_resume_with_another_config_names_the_fields(finished: Any) -> None:
    config = toy_config(finished[0], stage=ToyStage(noise=0.5), log_every=1, steps=60)
    with pytest.raises(UserError, match=r"stage\.noise differ"):
        run(config)


def test_resume_on_other_networks_is_refused(finished: Any) -> None:
    with pytest.raises(UserError, match="another vae"):
        train(toy_config(finished[0]), ToyBatches(), [], {"vae": "0" * 64}, quiet=True)


def test_damaged_checkpoint_is_one_line(finished: Any, tmp_path: Any) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "50" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read") as caught:
        run(toy_config(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_missing_item_is_one_line(finished: Any, tmp_path: Any) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "50" / "ema")
    with pytest.raises(UserError, match="ema"):
        run(toy_config(tmp_path / "run"))


def test_init_from_starts_at_the_average(finished: Any, tmp_path: Any) -> None:
    config = toy_config(tmp_path, init_from=str(finished[0]), steps=1, eval_every=0)
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(learning_rate=0.0, warmup_steps=0, weight_decay=0.0)
    )
    assert_same(run(config).params["model"], finished[1].ema)
    refused = {"nothing": ToyStage(), str(finished[0]): ToyStage(model=ToyModel(width=4))}
    for (source, stage), reason in zip(
        refused.items(), ("must be a run folder", "model.width|width is 8"), strict=True
    ):
        with pytest.raises(UserError, match=reason):
            run(toy_config(tmp_path / "other", init_from=source, stage=stage))


def test_average_is_restorable_alone(finished: Any) -> None:
    abstract = jax.eval_shape(lambda: finished[1].ema)
    checkpoints = checkpoint.Checkpoints(finished[0])
    assert_same(checkpoints.restore_ema(abstract), finished[1].ema)
    checkpoints.close()
