"""What stages draw: the same whatever the network, what the loss is made of, and digests that miss nothing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax import diffusion
from melody_jax.config import TrainConfig, WatchConfig
from melody_jax.errors import UserError
from melody_jax.models import denoiser, dpd, lm_config
from melody_jax.training.digests import digest, digests
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.stages.lm import LMStage

MODEL = dataclasses.replace(dpd.TINY, frames=8, blocks=1, segment=4)
STAGE = DPDStage(model=MODEL, shared_angle=0.3, clean_prefix=0.3, token_corruption=0.2)
KEY = jax.random.key(5)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "latents": rng.normal(size=(4, 8, MODEL.latent_dim)).astype(np.float32),
        "semantic_tokens": rng.integers(0, 1024, (4, 8)).astype(np.int32),
        "prefix_tokens": rng.integers(0, 1024, (4, 12)).astype(np.int32),
    }


def of(stage: DPDStage, seed: int = 0, key: jax.Array = KEY) -> dict[str, int]:
    return {name: int(value) for name, value in digests(stage, batch(seed), key).items()}


def test_another_network_draws_the_same() -> None:
    wide = dataclasses.replace(MODEL, width=64, blocks=2, segment=2, dtype="bfloat16")
    assert of(dataclasses.replace(STAGE, model=wide)) == of(STAGE)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (dataclasses.replace(STAGE, model=dataclasses.replace(MODEL, chunks=2)), "angle"),
        (dataclasses.replace(STAGE, shared_angle=0.0), "angle"),
        (dataclasses.replace(STAGE, condition_dropout=0.9), "has_condition"),
        (dataclasses.replace(STAGE, token_corruption=0.0), "tokens"),
        (dataclasses.replace(STAGE, prefix_dropout=0.9), "prefix"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_choice_changes_one_draw(changed: DPDStage, what: str) -> None:
    before, after = of(STAGE), of(changed)
    assert {name for name in before if before[name] != after[name]} == {f"digest/{what}"}


def test_other_batches_and_steps_differ_in_all() -> None:
    before = of(STAGE)
    assert before["digest/batch"] != of(STAGE, seed=1)["digest/batch"]
    other = of(STAGE, key=jax.random.fold_in(KEY, 1))
    assert all(
        other[name] != before[name] for name in before if name not in ("digest/batch", "digest/has_condition")
    )


def test_the_loss_is_of_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def velocity(
        params: dict, _: Any, noisy: Any, angle: Any, tokens: Any, has_condition: Any, prefix: Any
    ) -> Any:
        pooled = (tokens.mean(axis=1) + prefix.mean(axis=1)) * has_condition
        return params["gain"] * noisy + angle[..., None] + pooled[:, None, None]

    monkeypatch.setattr(denoiser, "velocity", velocity)
    params, rows = {"model": {"gain": jnp.float32(0.3)}}, batch()
    _, metrics = STAGE.gradients(params, rows, KEY, jnp.int32(0))
    drawn = STAGE.draw(rows, KEY)
    noisy, target = diffusion.corrupt(jnp.asarray(rows["latents"]), drawn.noise, drawn.angle)
    predicted = velocity(
        params["model"], MODEL, noisy, drawn.angle, drawn.tokens, drawn.has_condition, drawn.prefix
    )
    errors = np.asarray((predicted - target) ** 2)[np.asarray(drawn.angle) > 0]
    assert float(metrics["loss"]) == pytest.approx(errors.mean(), rel=1e-5)


def test_digests_see_every_bit_and_place() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    nudged, swapped = x.copy(), x.copy()
    nudged[2, 3] = np.nextafter(np.float32(11), np.float32(12))
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    trees = [
        x,
        nudged,
        swapped,
        {"a": x, "b": x},
        {"a": x, "b": nudged},
        {"a": nudged, "b": x},
        x[:2],
        x > 3,
        x > 4,
    ]
    assert len({int(digest(tree)) for tree in trees}) == len(trees)
    assert int(digest(jnp.asarray(x))) == int(jax.jit(digest)(x))


def test_refusals() -> None:
    with pytest.raises(UserError, match="stage lm does not report its draws"):
        digests(LMStage(model=lm_config.TINY), {}, KEY)
    with pytest.raises(UserError, match=r"watch\.digests with accumulate 2"):
        TrainConfig(stage=STAGE, accumulate=2, watch=WatchConfig(digests=True))
