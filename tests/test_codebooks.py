"""Embeddings that start from the codebooks of MuLan and the tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax import release
from melody_jax.errors import UserError
from melody_jax.models import conformer, dpd, lm_config, mulan, tokenizer
from melody_jax.training.codebooks import prefix_embeddings, semantic_embeddings
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.stages.lm import LMStage

LEVELS, CODES, EMBEDDING = 12, 8, mulan.TINY.embedding
TOKENIZER = dataclasses.replace(
    tokenizer.TINY,
    encoder=dataclasses.replace(conformer.TINY, width=16),
    semantic_vocab=1024,
    spectral_share=0.0,
)
WIDTH = TOKENIZER.feature_width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("release")
    books = np.random.default_rng(0).standard_normal((LEVELS, CODES, EMBEDDING)).astype(np.float32)
    books *= 0.5 ** np.arange(LEVELS)[:, None, None]
    release.save_network(path, "mulan", {"codebooks": books}, mulan.TINY, {})
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tokenizer.shapes(TOKENIZER))
    centroids = 3 + np.random.default_rng(1).standard_normal((1024, WIDTH)).astype(np.float32)
    release.save_network(path, "tokenizer", params | {"codebook": centroids}, TOKENIZER, {})
    return str(path)


def test_they_are_one_linear_map_of_the_codebooks(folder):
    embeddings = np.asarray(prefix_embeddings(folder, (LEVELS, CODES, 64), jax.random.key(1)))
    books = np.asarray(release.load_network(folder, "mulan")[0]["codebooks"])
    rows, codes = embeddings.reshape(-1, 64), books.reshape(-1, EMBEDDING)
    linear, *_ = np.linalg.lstsq(codes, rows, rcond=None)
    np.testing.assert_allclose(codes @ linear, rows, atol=1e-4)
    assert np.mean(embeddings[0] ** 2) == pytest.approx(1.0, rel=1e-4)
    assert np.mean(embeddings[3] ** 2) < 0.1


def test_lm_and_dpd_start_from_them_and_keep_the_rest(folder):
    key = jax.random.key(2)
    size = dataclasses.replace(lm_config.TINY, prefix_codes=CODES)
    plain, seeded = (LMStage(model=size, mulan=m).init(key)["model"] for m in ("", folder))
    table = seeded["prefix"].reshape(LEVELS, CODES + 1, -1)
    np.testing.assert_array_equal(table[:, :-1], prefix_embeddings(folder, (LEVELS, CODES, size.width), key))
    np.testing.assert_array_equal(table[:, -1], plain["prefix"].reshape(table.shape)[:, -1])
    np.testing.assert_array_equal(plain["semantic"], seeded["semantic"])

    size = dataclasses.replace(dpd.TINY, prefix_codes=CODES)
    model = DPDStage(model=size, mulan=folder).init(key)["model"]
    expected = prefix_embeddings(folder, (LEVELS, CODES, size.prefix_width), key)
    np.testing.assert_array_equal(model["prefix_table"], expected.reshape(model["prefix_table"].shape))
    shapes = jax.eval_shape(lambda key: DPDStage(model=size, mulan=folder).init(key), key)  # as export does
    assert shapes["model"]["prefix_table"].shape == model["prefix_table"].shape


def test_dpd_tokens_start_from_the_centred_codebook(folder):
    key = jax.random.key(3)
    size = dataclasses.replace(dpd.TINY, semantic_tokens=1024)
    plain, seeded = (DPDStage(model=size, tokenizer=t).init(key)["model"] for t in ("", folder))
    table = np.asarray(seeded["token_table"])
    assert table.shape == plain["token_table"].shape
    assert np.mean(table**2) == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-4)
    assert np.linalg.matrix_rank(table, tol=1e-2) == WIDTH  # the codebook's width, whatever the table's
    np.testing.assert_array_equal(plain["prefix_table"], seeded["prefix_table"])
    with pytest.raises(UserError, match="1024 codes, the config 48"):
        semantic_embeddings(folder, (48, 8), key)


def test_other_codes_are_refused(folder):
    with pytest.raises(UserError, match="12 levels of 8 codes, the config 12 levels of 32"):
        prefix_embeddings(folder, (LEVELS, 32, 4), jax.random.key(0))


def test_a_corrupted_history_keeps_the_targets():
    stage = LMStage(
        model=dataclasses.replace(lm_config.TINY, dropout=0.0), prefix_dropout=0.0, level_dropout=0.0
    )
    params = stage.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1))
    batch = {
        "semantic_tokens": jax.random.randint(keys[0], (4, 40), 0, 64),
        "prefix_tokens": jax.random.randint(keys[1], (4, LEVELS), 0, CODES),
    }
    clean = stage.loss(params, batch, jax.random.key(2))[0]
    corrupted = dataclasses.replace(stage, history_corruption=0.5).loss(params, batch, jax.random.key(2))[0]
    evaluated = dataclasses.replace(stage, history_corruption=0.5).evaluate(params, batch, jax.random.key(2))[
        "loss"
    ]
    assert abs(corrupted - clean) > 1e-3
    np.testing.assert_allclose(evaluated, clean, rtol=1e-5)
    first_token_only = {k: v[:, :1] if k == "semantic_tokens" else v for k, v in batch.items()}
    always = dataclasses.replace(stage, history_corruption=1.0)
    np.testing.assert_allclose(  # the first token is predicted from the prefix alone, whatever the history
        always.loss(params, first_token_only, jax.random.key(2))[0],
        stage.loss(params, first_token_only, jax.random.key(2))[0],
        rtol=1e-5,
    )
    assert jnp.isfinite(corrupted)
