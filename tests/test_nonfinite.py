"""Steps whose numbers are not finite: named, kept, repeated, and survived as the config says."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.arrays import assert_same
from helpers.toy import ToyBatches, rows, run, toy_config, untimed

from melody_jax.errors import UserError
from melody_jax.training.metric_log import MetricLog
from melody_jax.training.nonfinite import BadStep, gradient_norms
from melody_jax.training.replay import ReplayConfig, replay


class Jumping(ToyBatches):
    """From batch 4 on the data goes on at batch 8."""

    def __next__(self) -> dict[str, np.ndarray]:
        if self.position == 4:
            self.position = 8
        return super().__next__()


@pytest.fixture
def toy_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melody_jax.training.replay.stage_from_dict", lambda _: toy_config("").stage)


def test_stopping_saves_the_state_before_the_step_and_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="after 7 steps the loss is nan") as caught:
        run(toy_config(tmp_path), ToyBatches(poison=7))
    said = str(caught.value)
    for part in (
        "discriminator/shift, model/dense",
        "process 0",
        "(records toy: 7.0)",
        f"{tmp_path}/nonfinite/7",
    ):
        assert part in said
    healthy = run(toy_config(tmp_path / "healthy"), ToyBatches(interrupt=7))
    assert int(healthy.step) == 8
    assert_same(run(toy_config(tmp_path), ToyBatches(interrupt=7)), healthy)


def test_skipping_goes_on_without_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = toy_config(tmp_path / "skips", on_nonfinite="skip", steps=20, save_every=4)
    skipped = run(config, ToyBatches(poison=7))
    assert "after 7 steps" in capsys.readouterr().err
    assert int(skipped.step) == 20
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(skipped.params))
    assert all(row["loss"] is not None for row in rows(tmp_path / "skips") if "loss" in row)
    with pytest.raises(UserError):
        run(toy_config(tmp_path / "stops", steps=20, save_every=4), ToyBatches(poison=7))
    resumed = toy_config(tmp_path / "stops", on_nonfinite="skip", steps=20, save_every=4)
    assert_same(run(resumed, ToyBatches(poison=7)), skipped)


def test_rolling_back_repeats_steps_on_later_data(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 20, "save_every": 4, "log_every": 3, "eval_every": 4}
    back = run(toy_config(tmp_path / "a", on_nonfinite="rollback", **options), ToyBatches(poison=7))
    assert_same(back, run(toy_config(tmp_path / "b", **options), Jumping()))
    assert [untimed(row) for row in rows(tmp_path / "a")] == [untimed(row) for row in rows(tmp_path / "b")]


def test_rolling_back_needs_a_checkpoint_and_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to roll back to"):
        run(toy_config(tmp_path / "a", on_nonfinite="rollback"), ToyBatches(poison=7))
    with pytest.raises(UserError, match="exceeds nonfinite_limit 0"):
        run(toy_config(tmp_path / "b", on_nonfinite="skip", nonfinite_limit=0), ToyBatches(poison=7))


def test_replay_gives_the_same_numbers(
    tmp_path: Path, toy_is_known: None, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError):
        run(toy_config(tmp_path, accumulate=2), ToyBatches(poison=7))
    metrics = replay(ReplayConfig(bundle=str(tmp_path / "nonfinite" / "7")))
    assert np.isnan(metrics["loss"])
    said = capsys.readouterr().out
    assert "after 7 steps: the same metrics as in the run" in said
    assert "records with values not finite: toy: 7.0\n" in said
    assert "first: invalid value (nan) encountered" in said
    file = tmp_path / "nonfinite" / "7" / "bundle.json"
    bundle = json.loads(file.read_text())
    assert bundle["groups"] == ["discriminator/shift", "model/dense"]
    assert len(bundle["records"]) == 8
    bundle["metrics"]["digest/batch"] = 1.0  # as `watch.digests` notes it
    file.write_text(json.dumps(bundle))
    replay(ReplayConfig(bundle=str(file.parent), locate=False))
    assert "after 7 steps: the same metrics as in the run" in capsys.readouterr().out


def test_replay_multiplies_as_the_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_is_known: None
) -> None:
    settings = []
    monkeypatch.setattr(
        "melody_jax.training.replay.product_precision", lambda name: settings.append(name) or nullcontext()
    )
    with pytest.raises(UserError):
        run(toy_config(tmp_path, matmul_precision="bfloat16"), ToyBatches(poison=7))
    replay(ReplayConfig(bundle=str(tmp_path / "nonfinite" / "7"), locate=False))
    assert settings == ["bfloat16"]


def test_damaged_bundles_are_one_line(tmp_path: Path) -> None:
    for bundle, match in (("", "--bundle is missing"), (str(tmp_path), "is not the bundle of a step")):
        with pytest.raises(UserError, match=match):
            replay(ReplayConfig(bundle=bundle))


def test_groups_are_the_innermost() -> None:
    grads = {"model": {"a": np.ones(3), "b": np.array([np.inf])}, "heads": {"c": np.ones(2)}}
    norms = {name: float(value) for name, value in gradient_norms(grads).items()}
    assert BadStep(3, norms | {"loss": 1.0}).groups == ["model/b"]
    assert norms["gradient_norm/heads"] == pytest.approx(2**0.5)


def test_rows_before_a_bad_step_are_kept(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, 0, 10, "toy", lambda _: 0.1, quiet=True)
    for step, loss in ((1, 1.0), (2, 3.0), (3, np.inf), (4, 5.0)):
        log.add(step, {"loss": loss, "gradient_norm": 1.0})  # type: ignore[dict-item]
    bad: Any = log.flush()
    log.close()
    assert (bad.step, bad.metrics["loss"]) == (2, np.inf)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(2, 2.0)]
