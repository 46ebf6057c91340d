"""Where a fresh run's weights may come from, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_same
from helpers.stages import STAGES
from helpers.toy import ToyModel, ToyStage, run, toy_config

from melody_jax import release, release_folder
from melody_jax.composer.facts import VOCABULARY
from melody_jax.config import LoRAConfig, TrainConfig
from melody_jax.errors import UserError
from melody_jax.models import denoiser, lm, mulan
from melody_jax.sharding import make_mesh
from melody_jax.training.init_from import load_initial_weights
from melody_jax.training.lora import merge
from melody_jax.training.stages.lm import LMStage
from melody_jax.training.state import TrainState

LORA = LoRAConfig(rank=2, kernels="dense/kernel")


def fresh(stage: Any, value: float = 0.0) -> TrainState:
    """A state before its first step, every number of the network `value`."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0))["model"]
    model = jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), shapes)
    return TrainState(jnp.int32(0), {"model": model}, (), model, jnp.zeros((), bool))


def start(config: TrainConfig, hashes: dict[str, str] | None = None) -> TrainState:
    return load_initial_weights(
        config, fresh(config.stage), hashes or {}, make_mesh((1, 1, 1), jax.devices()[:1])
    )


def save(folder: Path, stage: Any, model: Any, hashes: dict[str, str] | None = None) -> None:
    release.save_network(folder, stage.name, model, stage.model, hashes or {})


def test_from_the_packaged_release() -> None:
    """Through `read_network`: what training starts from is what sampling loads."""
    stage = STAGES["lm"]
    _, model, hashes = release.load_network(release_folder.WEIGHTS / "mini", "lm")
    stage = dataclasses.replace(stage, model=dataclasses.replace(model, dtype="bfloat16", dropout=0.1))
    state = start(TrainConfig(stage=stage, init_from="mini"), hashes)
    assert_same(state.params["model"], release.load_network(release_folder.WEIGHTS / "mini", "lm")[0])
    assert_same(state.ema, state.params["model"])
    assert state.ema["head"] is not state.params["model"]["head"]


@pytest.mark.parametrize("name", ["mulan", "tokenizer"])
def test_what_finishing_changed_is_left_out(name: str, tmp_path: Path) -> None:
    """MuLan gains codebooks and means, the tokenizer loses its upper blocks: `finish` will make them again."""
    stage = STAGES[name]
    if name == "tokenizer":
        encoder = dataclasses.replace(stage.model.encoder, layers=3)
        stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, encoder=encoder))
    finished = fresh(stage, 1.0).params["model"]
    if name == "mulan":
        shapes = mulan.shapes(stage.model)
        finished |= {part: jnp.zeros(shapes[part].shape) for part in ("codebooks", "music_mean", "text_mean")}
    else:
        finished["blocks"] = jax.tree.map(lambda leaf: leaf[:1], finished["blocks"])
    save(tmp_path, stage, finished)
    model = start(TrainConfig(stage=stage, init_from=str(tmp_path))).params["model"]
    assert jax.tree.structure(model) == jax.tree.structure(fresh(stage).params["model"])
    for path, leaf in release.flatten(model).items():
        blocks = leaf[1:] if name == "tokenizer" and path.startswith("blocks") else leaf[:0]
        np.testing.assert_array_equal(blocks, 0.0)
        np.testing.assert_array_equal(leaf[: len(leaf) - len(blocks)] if leaf.ndim else leaf, 1.0)


def test_from_a_run_with_adapters(tmp_path: Path) -> None:
    """Its adapters are merged: the next run has them in its weights, or in the base of its own adapters."""
    first = run(toy_config(tmp_path / "first", steps=5))
    second_config = toy_config(tmp_path / "second", steps=5, init_from=str(tmp_path / "first"), lora=LORA)
    second = run(second_config)
    assert_same(second.params["base"], first.ema)
    assert float(jnp.abs(second.ema["dense"]["kernel"]["lora_b"]).max()) > 0
    third = start(toy_config(tmp_path / "third", init_from=str(tmp_path / "second")))
    merged = jax.jit(lambda base, adapters: merge(base, adapters, LORA))(second.params["base"], second.ema)
    assert_same(third.ema, merged)


def test_what_does_not_belong_together_is_refused_in_one_line(tmp_path: Path) -> None:
    language, dpd = STAGES["lm"], STAGES["dpd"]
    made_with = {"mulan": "a" * 64, "vae": "b" * 64}
    save(tmp_path / "release", language, fresh(language).params["model"], made_with)
    run(toy_config(tmp_path / "run", steps=1))
    deeper = dataclasses.replace(language, model=dataclasses.replace(language.model, layers=2, width=64))
    cases: list[tuple[Any, str, dict[str, str], str]] = [
        (language, "release", made_with | {"mulan": "c" * 64}, "features of another mulan than"),
        (language, "release", {}, "features of another mulan than"),
        (deeper, "release", made_with, "layers is 1 there and 2 here; width is 32 there and 64 here"),
        (dpd, "release", made_with, r"a release \(with dpd\.json\) or a packaged release \(.*\bmini\b.*\)"),
        (language, "run", {}, "is a run of ToyStage; it must be a run of LMStage"),
        (ToyStage(model=ToyModel(width=4)), "run", {}, "width is 8 there and 4 here"),
        (language, "nowhere", {}, "it must be a run folder"),
    ]
    for stage, source, hashes, reason in cases:
        with pytest.raises(UserError, match=reason) as caught:
            start(TrainConfig(stage=stage, init_from=str(tmp_path / source)), hashes)
        assert "\n" not in str(caught.value)
    others = made_with | {"vae": "c" * 64}  # a language model has nothing from the autoencoder
    start(TrainConfig(stage=language, init_from=str(tmp_path / "release")), others)


def test_a_release_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    stage = STAGES["lm"]
    model = fresh(stage).params["model"]
    save(tmp_path, stage, {name: part for name, part in model.items() if name != "head"})
    with pytest.raises(UserError, match="lacks the tensor head"):
        start(TrainConfig(stage=stage, init_from=str(tmp_path)))
    save(tmp_path, stage, model | {"head": jnp.zeros((3, 3))})
    with pytest.raises(UserError, match=r"head is float32 \(3, 3\); by its config it is float32"):
        start(TrainConfig(stage=stage, init_from=str(tmp_path)))


def without_controls(folder: Path) -> tuple[LMStage, dict[str, str]]:
    """Writes a release with `mini`'s language model without its control tokens: its stage, and its hashes."""
    weights, model, hashes = release.load_network(release_folder.WEIGHTS / "mini", "lm")
    plain = dataclasses.replace(model, controls=None)
    rows = sum(plain.prefix_sizes) + plain.prompt_length
    weights = weights | {"prefix": weights["prefix"][:rows]}
    release.save_network(folder, "lm", weights, plain, hashes)
    return LMStage(model=plain), hashes


def test_a_network_gains_control_tokens_without_effect(tmp_path: Path) -> None:
    """The release's network and one with control tokens that are absent nearly agree; the new tokens are zero."""
    plain, hashes = without_controls(tmp_path)
    weights = release.load_network(tmp_path, "lm")[0]
    stage = dataclasses.replace(plain, model=dataclasses.replace(plain.model, controls=VOCABULARY))
    model = start(TrainConfig(stage=stage, init_from=str(tmp_path)), hashes).params["model"]
    rows = len(weights["prefix"])
    np.testing.assert_array_equal(model["prefix"][:rows], weights["prefix"])
    assert len(model["prefix"]) > rows
    np.testing.assert_array_equal(model["prefix"][rows:], 0.0)
    assert_same(model | {"prefix": weights["prefix"]}, weights)
    prefix = jnp.arange(24).reshape(2, 12)
    tokens = jax.random.randint(jax.random.key(0), (2, 40), 0, 1024)
    logits = jax.jit(lm.logits, static_argnums=1)
    before = jax.nn.log_softmax(
        logits(weights, dataclasses.replace(stage.model, controls=None), prefix, tokens)
    )
    after = jax.nn.log_softmax(logits(model, stage.model, prefix, tokens))
    assert (jnp.exp(before) * (before - after)).sum(axis=-1).mean() < 0.05  # their places take some attention


def test_a_network_gains_a_melody_without_effect(tmp_path: Path) -> None:
    plain, hashes = without_controls(tmp_path)
    weights = release.load_network(tmp_path, "lm")[0]
    stage = dataclasses.replace(plain, model=dataclasses.replace(plain.model, melody_span=1))
    model = start(TrainConfig(stage=stage, init_from=str(tmp_path)), hashes).params["model"]
    assert not model["melody"].any()
    assert_same({name: value for name, value in model.items() if name != "melody"}, weights)


def test_a_diffusion_gains_control_tokens_without_effect(tmp_path: Path) -> None:
    stage = STAGES["dpd"]
    weights = stage.init(jax.random.key(0))["model"]
    save(tmp_path, stage, weights)
    changed = dataclasses.replace(stage.model, controls=VOCABULARY)
    grown = dataclasses.replace(stage, model=changed)
    state = start(TrainConfig(stage=grown, init_from=str(tmp_path)))
    model = state.params["model"]
    noisy = jax.random.normal(jax.random.key(1), (2, changed.frames, changed.latent_dim))
    angle = jnp.ones((2, changed.frames))
    tokens = jnp.zeros((2, changed.tokens(changed.frames)), jnp.int32)
    prefix = jnp.concatenate(
        [jnp.zeros((2, changed.prefix_levels), jnp.int32), jnp.ones((2, 5), jnp.int32)], axis=1
    )
    stored = release.load_network(tmp_path, "dpd")[0]
    before = denoiser.velocity(stored, stage.model, noisy, angle, tokens, 2, prefix)
    after = denoiser.velocity(model, changed, noisy, angle, tokens, 2, prefix)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_adapters_gain_no_control_tokens(tmp_path: Path) -> None:
    """They would stay without effect, because the base does not learn."""
    plain, hashes = without_controls(tmp_path)
    stage = dataclasses.replace(plain, model=dataclasses.replace(plain.model, controls=VOCABULARY))
    config = TrainConfig(stage=stage, init_from=str(tmp_path), lora=LoRAConfig(rank=2))
    state = fresh(stage)
    state = state._replace(params={"base": state.params["model"], "model": {}})
    with pytest.raises(UserError, match=r"controls is None there"):
        load_initial_weights(config, state, hashes, make_mesh((1, 1, 1), jax.devices()[:1]))
