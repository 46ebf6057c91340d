"""From a release to a fine-tuned one: adapters or the whole LM and DPD, on new features, exported, mixed."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.arrays import assert_same
from helpers.stages import STAGES
from helpers.toy import rows

from melody_jax import load, release
from melody_jax.config import DataConfig, LoRAConfig, OptimizerConfig, TrainConfig
from melody_jax.data import pipeline
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.functional import count
from melody_jax.release import add_difference
from melody_jax.sharding import make_mesh
from melody_jax.training.export import ExportConfig, export, run_network
from melody_jax.training.loop import train
from melody_jax.training.lora import adapted
from melody_jax.training.stages.consistency import ConsistencyStage

MADE_WITH = {
    "mulan": (mulan, mulan.TINY),
    "tokenizer": (tokenizer, STAGES["tokenizer"].model),
    "vae": (vae, vae.TINY),
}


def network(shapes: Any) -> Any:
    """Numbers of the size that a fresh network has, without compiling its `init`."""
    rng = np.random.default_rng(0)

    def fill(path: str, leaf: Any) -> np.ndarray:
        if leaf.ndim > 1:
            return rng.normal(size=leaf.shape).astype(np.float32) * leaf.shape[-2] ** -0.5
        return np.full(leaf.shape, float(path.endswith("scale")), np.float32)

    return release.unflatten({path: fill(path, leaf) for path, leaf in release.flatten(shapes).items()})


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release `base`: an LM and a DPD, and the networks that made their features, with random weights."""
    folder = tmp_path_factory.mktemp("releases") / "base"
    for name, (module, model) in MADE_WITH.items():
        release.save_network(folder, name, network(module.shapes(model)), model, {})
    for name in ("lm", "dpd"):
        shapes = jax.eval_shape(STAGES[name].init, jax.random.key(0))["model"]
        release.save_network(folder, name, network(shapes), STAGES[name].model, hashes(folder))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {name: release.network_hash(folder, name) for name in MADE_WITH}


@pytest.fixture(scope="module")
def features(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counting tokens whose latents are a code of the token, made with the release's networks."""
    folder = tmp_path_factory.mktemp("features")
    code = np.sin(np.arange(16)[:, None] * np.arange(1, 9)) * 1.4
    tokens = [(i * 7 + np.arange(120)) % 16 for i in range(16)]
    records = [
        {
            "meta": encode_json({"id": str(i)}),
            "semantic_tokens": row.astype(np.int16),
            "latents": code[row].astype(np.float16),
            "prefix_tokens": np.full((1, 1, 12), i % 8, np.int16),
            "window_starts": np.zeros(1, np.int32),
            "text_prefix_tokens": np.zeros((0, 12), np.int16),
        }
        for i, row in enumerate(tokens)
    ]
    shard = write_shard(folder / shard_name("features", 0, 1), records)
    settings = {"hashes": hashes(released)}
    write_manifest(
        folder, ShardManifest(kind="features", settings=settings, versions={}, shard_count=1, shards=(shard,))
    )
    return folder


def fine_tuning(name: str, released: Path, features: Path, workdir: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        stage=STAGES[name],
        data=DataConfig(folder=(str(features),), batch_size=4, window_tokens=80),
        optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=2),
        steps=20,
        save_every=10,
        eval_every=20,
        eval_batches=1,
        ema_decay=0.5,
        init_from=str(released),
        lora=LoRAConfig(rank=4),
        workdir=str(workdir),
    )
    return dataclasses.replace(config, **changes)


def run(config: TrainConfig, made_with: dict[str, str] | None = None) -> Any:
    made_with = pipeline.check_provenance(config.data, "features") if made_with is None else made_with
    held_out = pipeline.validation_batches(config.data, "features", config.eval_batches)
    return train(config, pipeline.TrainingBatches(config.data, "features"), held_out, made_with, quiet=True)


@pytest.mark.parametrize("name", ["lm", "dpd"])
def test_adapters_from_release_to_release(name: str, released: Path, features: Path, tmp_path: Path) -> None:
    config = fine_tuning(name, released, features, tmp_path / "run")
    state = run(config)
    base = release.load_network(released, name)[0]
    held_out = pipeline.validation_batches(config.data, "features", 1)[0]
    key = jax.random.fold_in(jax.random.key(config.seed + 1), 0)
    evaluate = jax.jit(config.stage.evaluate)

    before, after = (row["eval/loss"] for row in rows(tmp_path / "run") if "eval/loss" in row)
    assert before == pytest.approx(float(evaluate({"model": base}, held_out, key)["loss"]), rel=1e-6)
    assert after < 0.995 * before
    assert_same(state.params["base"], base)
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * count(state.params["model"]) < count(base)

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    assert_same(run(config), state)

    merged = run_network(
        tmp_path / "run", base, config.stage.roles["model"], make_mesh((1, 1, 1), jax.devices()[:1])
    )
    apart = jax.jit(adapted(config.stage, config.lora).evaluate)(
        state.params | {"model": state.ema}, held_out, key
    )
    together = evaluate({"model": merged}, held_out, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), apart, together)

    shutil.copytree(released, tmp_path / "mine")
    export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "mine")))
    assert load("mine", folder=tmp_path).configs[name] == config.stage.model
    exported = evaluate({"model": release.load_network(tmp_path / "mine", name)[0]}, held_out, key)
    np.testing.assert_allclose(exported["loss"], after, rtol=2e-3)  # stored in 8 bits
    for other in ("vae", "tokenizer"):
        foreign = shutil.copytree(tmp_path / "mine", tmp_path / f"other_{other}")
        params, model, _ = release.load_network(foreign, other)
        release.save_network(foreign, other, jax.tree.map(lambda leaf: leaf + 1, params), model, {})
        with pytest.raises(UserError, match=f"was trained with {other}"):
            load(foreign.name, folder=tmp_path, networks=("lm", "dpd", "vae", "tokenizer"))
        into_foreign = ExportConfig(run=str(tmp_path / "run"), out=str(foreign))
        if other in release.INDEPENDENT.get(name, ()):
            export(into_foreign)
            continue
        with pytest.raises(UserError, match=f"holds another {other}"):
            export(into_foreign)


def test_distilled_from_release_to_release(released: Path, features: Path, tmp_path: Path) -> None:
    told = dataclasses.replace(STAGES["dpd"].model, guidance_range=(1.0, 4.0))
    stage = ConsistencyStage(model=told, teacher_steps=2, points=1)
    config = fine_tuning("dpd", released, features, tmp_path / "run", stage=stage, lora=LoRAConfig(), steps=3)
    state = run(config)
    base = release.load_network(released, "dpd")[0]
    assert_same(state.params["base"], base)
    shutil.copytree(released, tmp_path / "mine")
    export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "mine")))
    melody = load("mine", folder=tmp_path, distilled=True)
    assert melody.configs["dpd"] == told
    assert_same(load("mine", folder=tmp_path).params["dpd"], base)
    loaded, learned = release.flatten(melody.params["dpd"]), release.flatten(add_difference(base, state.ema))
    for path, added in release.flatten(state.ema).items():  # in steps of a seventh of the largest
        assert np.abs(loaded[path] - learned[path]).max() <= 0.51 / 7 * np.abs(added).max() + 1e-6, path
    for path in ("inputs/kernel", "guidance/out/kernel", "blocks/1/film/out/out/kernel"):
        assert np.abs(release.flatten(state.ema)[path]).max() > 0

    shutil.copytree(released, tmp_path / "other")
    release.save_network(
        tmp_path / "other", "dpd", jax.tree.map(lambda leaf: 2 * leaf, base), STAGES["dpd"].model, {}
    )
    with pytest.raises(UserError, match="holds another dpd than the one this run started from"):
        export(ExportConfig(run=str(tmp_path / "run"), out=str(tmp_path / "other")))
