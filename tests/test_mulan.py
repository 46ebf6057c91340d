import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax.errors import UserError
from melody_jax.models import functional, mulan, rvq
from melody_jax.models.mulan import PAPER, TINY, MuLanConfig
from melody_jax.models.music_tower import MusicTowerConfig
from melody_jax.text import tokenize, tokenizer
from melody_jax.training.stage import Stage
from melody_jax.training.stages import mulan as stages
from melody_jax.training.stages.mulan import MuLanStage

SAMPLES = 24_000
STAGE = MuLanStage(
    model=TINY, genres=4, moods=3, modes=2, instruments=5, tempo_bins=8, fit_batches=8, fit_iterations=4
)
GRADIENTS = jax.jit(STAGE.gradients)
EVALUATE = jax.jit(STAGE.evaluate)
WORDS = ("deep", "low", "high", "bright")


def make_batch(seed: int, size: int = 16) -> dict:
    """Clips whose pitch is the genre and whose pulse is the tempo, with captions that name them."""
    rng = np.random.default_rng(seed)
    genre, tempo = rng.integers(0, 4, size), rng.choice([60.0, 120.0], size)
    time = np.arange(SAMPLES) / 24_000
    pitch = 110.0 * 3.0 ** genre[:, None] * (1 + 0.05 * rng.uniform(-1, 1, (size, 1)))
    pulse = np.sin(np.pi * 4 * tempo[:, None] / 60 * (time + rng.uniform(0, 1, (size, 1)))) > 0
    audio = 0.1 * np.sin(2 * np.pi * pitch * time) * pulse + 0.003 * rng.standard_normal((size, SAMPLES))
    ids, mask = tokenize(
        [f"{WORDS[g]} sounds at {t:.0f} bpm" for g, t in zip(genre, tempo, strict=True)], 12, tokenizer()
    )
    facts = {
        "genre": genre.astype(np.int32),
        "mood": np.full(size, -1, np.int32),
        "mode": rng.integers(-1, 2, size).astype(np.int32),
        "key": rng.integers(0, 12, size).astype(np.int32),
        "tempo": np.where(rng.random(size) < 0.2, np.nan, tempo).astype(np.float32),
        "instruments": np.where(rng.random((size, 1)) < 0.2, -1.0, rng.random((size, 5)) < 0.3).astype(
            np.float32
        ),
    }
    return {"audio": audio.astype(np.float32), "text_ids": ids, "text_mask": mask, "facts": facts}


@pytest.fixture(scope="module")
def params():
    return jax.jit(STAGE.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def finished(params):
    return STAGE.finish(params["model"], iter([make_batch(i) for i in range(8)]), jax.random.key(1))


@pytest.fixture(scope="module")
def fitted(finished):
    return finished[0]


def test_mini_fits_its_budget():
    shapes = jax.eval_shape(lambda: mulan.init(MuLanConfig(), jax.random.key(0)))
    codebooks = MuLanConfig().levels * MuLanConfig().codes * MuLanConfig().embedding
    assert functional.count(shapes) == 15_978_432
    assert functional.count(shapes) + codebooks < 17_000_000
    with pytest.raises(UserError, match="multiple of twice"):
        MusicTowerConfig(heads=5)
    with pytest.raises(UserError, match="128 mel bands do not divide into rhythm_bands 5"):
        MusicTowerConfig(rhythm_bands=5)


def test_paper_size_is_the_published_one():
    shapes = jax.eval_shape(lambda: mulan.init(PAPER, jax.random.key(0)))
    assert round(functional.count(shapes) / 1e6, 1) == 195.3
    wave = jax.ShapeDtypeStruct((2, 240_000), jnp.float32)
    assert jax.eval_shape(lambda p, w: mulan.embed_music(p, PAPER, w), shapes, wave).shape == (2, 128)


def test_clap_has_the_size_of_its_checkpoints():
    for config, size in ((mulan.CLAP, 193_911_576), (mulan.CLAP_UNFUSED, 153_490_584)):
        shapes = jax.eval_shape(partial(mulan.init, config), jax.random.key(0))
        assert functional.count(shapes) == size


def test_embeddings_have_unit_length_whatever_the_duration(params):
    embed = jax.jit(lambda audio: mulan.embed_music(params["model"], TINY, audio))
    batch = make_batch(0, 4)
    for samples in (12_000, 24_000):
        music = embed(batch["audio"][:, :samples])
        assert music.shape == (4, TINY.embedding)
        np.testing.assert_allclose(jnp.linalg.norm(music, axis=-1), 1.0, atol=1e-5)
    words = mulan.embed_text(params["model"], TINY, batch["text_ids"], batch["text_mask"])
    np.testing.assert_allclose(jnp.linalg.norm(words, axis=-1), 1.0, atol=1e-5)


def test_batch_and_level_do_not_matter(params):
    batch = make_batch(0, 4)
    embed = jax.jit(lambda audio: mulan.embed_music(params["model"], TINY, audio))
    together = embed(batch["audio"])
    alone = jnp.concatenate([embed(batch["audio"][i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, embed(batch["audio"] * 0.5), atol=1e-3)
    assert jnp.isfinite(embed(jnp.zeros((1, SAMPLES)))).all()


def test_quantise_centres_each_modality(params, fitted):
    batch = make_batch(3, 4)
    words = jax.jit(lambda ids, mask: mulan.embed_text(params["model"], TINY, ids, mask))(
        batch["text_ids"], batch["text_mask"]
    )
    codes = mulan.quantise(fitted, TINY, words, "text")
    assert codes.shape == (4, TINY.levels)
    centred = np.asarray(words - fitted["text_mean"])
    centred = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    np.testing.assert_array_equal(codes, rvq.quantise(fitted["codebooks"], jnp.asarray(centred)))
    with pytest.raises(UserError, match="modality 'audio'"):
        mulan.quantise(fitted, TINY, words, "audio")


def test_finish_fits_means_and_codebooks_that_are_used(finished, params):
    fitted, metrics = finished
    assert fitted["codebooks"].shape == (TINY.levels, TINY.codes, TINY.embedding)
    assert fitted["music_mean"].shape == fitted["text_mean"].shape == (TINY.embedding,)
    assert metrics["smallest_usage"] == metrics["usage"] == 1
    assert 0 < metrics["left"] < 0.2
    with pytest.raises(UserError, match="no batches"):
        STAGE.finish(params["model"], iter(()), jax.random.key(0))


def test_training_lowers_the_held_out_loss(params):
    stage: Stage = STAGE
    assert stage.name == "mulan"
    optimizer = optax.adam(3e-3)

    @jax.jit
    def apply(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    held_out = make_batch(1000)
    before = EVALUATE(params, held_out, jax.random.key(0))
    state, trained = jax.jit(optimizer.init)(params), params
    for i in range(50):
        grads, metrics = GRADIENTS(trained, make_batch(i), jax.random.key(i), jnp.int32(i))
        trained, state = apply(trained, state, grads)
    after = EVALUATE(trained, held_out, jax.random.key(0))
    assert all(bool(jnp.isfinite(value)) for value in metrics.values())
    assert float(after["loss"]) < 0.8 * float(before["loss"])
    assert float(after["genre_accuracy"]) > 0.8
    assert float(after["median_rank"]) <= float(before["median_rank"])


def test_equal_captions_are_equally_right():
    ids = jnp.array([[2, 9, 3], [2, 9, 3], [2, 8, 3]])
    perfect = 100.0 * jnp.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert float(stages.contrastive_loss(perfect, ids)) == pytest.approx(2 / 3 * np.log(2), abs=1e-4)


def test_retrieval_ranks():
    similarity = jnp.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1], [0.9, 0.8, 0.7]])
    metrics = stages.retrieval(similarity)
    assert float(metrics["text_recall"]) == pytest.approx(1 / 3)
    assert float(metrics["music_recall"]) == pytest.approx(2 / 3)
    assert float(metrics["median_rank"]) == 2.0


def test_unknown_facts_cost_nothing(params):
    batch = make_batch(0)
    unknown = {
        name: np.full_like(value, np.nan if name == "tempo" else -1) for name, value in batch["facts"].items()
    }
    gradient, metrics = GRADIENTS(params, {**batch, "facts": unknown}, jax.random.key(0), jnp.int32(0))
    assert float(metrics["music_facts"]) == float(metrics["text_facts"]) == 0.0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_augmentation_masks_a_bounded_share_and_spares_special_pieces():
    masked = stages.mask_frames(jnp.ones((64, 50, 20)), 0.2, jax.random.key(0))
    shares = 1 - masked.mean((1, 2))
    assert 0.0 < float(shares.mean()) < 0.6
    ids = jnp.tile(jnp.array([2, 70, 80, 90, 3, 0]), (200, 1))
    dropped = stages.drop_words(ids, ids > 0, 0.5, 4, jax.random.key(0))
    np.testing.assert_array_equal(dropped[:, jnp.array([0, 4, 5])], ids[:, jnp.array([0, 4, 5])])
    assert 0.4 < float((dropped[:, 1:4] == 4).mean()) < 0.6
    assert dataclasses.is_dataclass(STAGE)
    assert hash(STAGE) == hash(dataclasses.replace(STAGE))
