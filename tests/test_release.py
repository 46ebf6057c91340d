"""Released networks: how they are stored, how they come back, and how damage is told."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from melody_jax import release
from melody_jax.errors import UserError
from melody_jax.models.dpd import DPDConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.roles import BIAS, CODEBOOK, EMBEDDING, STATISTIC, VECTOR, WEIGHT, Role


def parameters() -> dict:
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "blocks": {
            "dense": {
                "kernel": normal(3, 64, 96) * np.array([1, 100, 1e-3])[:, None, None].astype(np.float32)
            }
        },
        "word_embedding": normal(200, 32) * rng.uniform(0.01, 10, (200, 1)).astype(np.float32),
        "norm": {"scale": normal(3, 4000), "bias": normal(5)},
        "small": normal(8, 8),
        "large": {"value": np.array([1e6], np.float32)},
        "codebook": normal(128, 64),
        "latent_mean": normal(64),
        "zero": np.zeros((64, 64), np.float32),
        "count": np.arange(3, dtype=np.int32),
    }


ROLES = {
    "blocks": {"dense": {"kernel": Role("column", stacked=True)}},
    "word_embedding": EMBEDDING,
    "norm": {"scale": Role("norm", stacked=True), "bias": BIAS},
    "small": WEIGHT,
    "large": {"value": VECTOR},
    "codebook": CODEBOOK,
    "latent_mean": STATISTIC,
    "zero": WEIGHT,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    release.save_network(
        tmp_path,
        "vae",
        parameters(),
        VAEConfig(latent_width=8),
        {"mulan": "a" * 64},
        {"loss": 1.5},
        ROLES,
    )
    return tmp_path


def test_round_trip(folder: Path) -> None:
    params, config, hashes = release.load_network(folder, "vae")
    assert config == VAEConfig(latent_width=8)
    assert hashes == {"mulan": "a" * 64}
    assert jax.tree.structure(params) == jax.tree.structure(parameters())
    for name, value in release.flatten(parameters()).items():
        loaded = np.asarray(release.flatten(params)[name])
        assert loaded.dtype == value.dtype
        axis = -1 if "embedding" in name else min(-2, -1) if value.ndim > 1 else 0
        step = np.max(np.abs(value), axis=axis, keepdims=True) / 127
        assert np.all(np.abs(loaded - value) <= 0.501 * step + 1e-9), name


def test_storage_types(folder: Path) -> None:
    stored = safetensors.numpy.load((folder / "vae.safetensors").read_bytes())
    types = {name: str(value.dtype) for name, value in stored.items()}
    assert types["blocks/dense/kernel"] == "int8"
    assert stored["blocks/dense/kernel:scale"].shape == (3, 1, 96)
    assert stored["word_embedding:scale"].shape == (200, 1)
    assert types["norm/scale"] == "float16"
    assert types["large/value"] == "float32"
    assert types["codebook"] == "float16"
    assert types["latent_mean"] == "float32"
    assert types["count"] == "int32"


def test_a_role_says_what_is_stored_in_float32(tmp_path: Path) -> None:
    chosen = {"blocks": {"dense": {"kernel": STATISTIC}}}
    release.save_network(tmp_path, "vae", parameters(), VAEConfig(), {}, roles=chosen)
    params, _, _ = release.load_network(tmp_path, "vae")
    np.testing.assert_array_equal(
        params["blocks"]["dense"]["kernel"], parameters()["blocks"]["dense"]["kernel"]
    )


def test_hash_is_that_of_the_file_and_repeats(folder: Path, tmp_path: Path) -> None:
    release.save_network(tmp_path / "again", "vae", parameters(), VAEConfig(latent_width=8), {}, roles=ROLES)
    assert release.network_hash(folder, "vae") == release.network_hash(tmp_path / "again", "vae")
    assert release.network_hash(folder, "vae") == release.read_description(folder, "vae")["sha256"]


@pytest.mark.parametrize(
    "damage", ["cut", "foreign", "gone", "json_gone", "json_cut", "json_other", "version", "field"]
)
def test_damage_is_one_line(folder: Path, damage: str) -> None:
    tensors, description = folder / "vae.safetensors", folder / "vae.json"
    content = json.loads(description.read_text())
    match damage:
        case "cut":
            tensors.write_bytes(tensors.read_bytes()[:-10])
        case "foreign":
            tensors.write_bytes(b"RIFF" * 100)
        case "gone":
            tensors.unlink()
        case "json_gone":
            description.unlink()
        case "json_cut":
            description.write_text(description.read_text()[:40])
        case "json_other":
            description.write_text(json.dumps(content | {"network": "lm"}))
        case "version":
            description.write_text(json.dumps(content | {"format_version": 99}))
        case "field":
            content["config"]["colour"] = 3
            description.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        release.load_network(folder, "vae")
    assert "\n" not in str(caught.value)


def test_unknown_network_and_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the folder cannot be made"):
        release.save_network(tmp_path / "file", "vae", {"a": np.zeros(2, np.float32)}, VAEConfig(), {})


def test_a_difference_is_stored_in_four_bits_and_added_on_loading(tmp_path: Path) -> None:
    rng, config = np.random.default_rng(1), DPDConfig()
    base = {
        "table": rng.normal(size=(64, 64)),
        "dense": {"kernel": rng.normal(size=(2, 64, 96)), "bias": np.ones(96)},
    }
    base = jax.tree.map(lambda leaf: leaf.astype(np.float32), base)
    release.save_network(tmp_path, "dpd", base, config, {})
    base = release.load_network(tmp_path, "dpd")[0]
    base_hashes = {"dpd": release.network_hash(tmp_path, "dpd")}
    codes = rng.integers(-7, 8, (2, 64, 96))
    codes[:, 0] = 7
    difference = {
        "table": np.zeros((64, 64), np.float32),
        "dense": {"kernel": codes.astype(np.float32) / 7, "bias": np.full(96, 0.5, np.float32)},
        "guidance": np.full((3, 3), 0.25, np.float32),
    }
    file = release.save_network(tmp_path, "dpd_distilled", difference, config, base_hashes)
    stored = safetensors.numpy.load(file.read_bytes())
    assert stored["dense/kernel"].nbytes == codes.size // 2
    params, loaded_config, hashes = release.load_network(tmp_path, "dpd_distilled")
    assert (loaded_config, hashes) == (config, base_hashes)
    np.testing.assert_array_equal(params["table"], base["table"])
    np.testing.assert_array_equal(params["guidance"], difference["guidance"])
    added = jax.tree.map(lambda a, b: a - b, params["dense"], base["dense"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), added, difference["dense"])

    release.save_network(tmp_path, "dpd", {**base, "table": base["table"] + 1}, config, {})
    with pytest.raises(UserError, match="dpd_distilled was made from another dpd than the one here"):
        release.load_network(tmp_path, "dpd_distilled")
