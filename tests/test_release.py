"""Released networks: how they are stored, how they come back, and how damage is told."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_dtypes import bfloat16

from melody_jax import release, release_folder, tensor_file
from melody_jax.errors import UserError
from melody_jax.models import denoiser, lm, lm_config, vae
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


def describe(monkeypatch: pytest.MonkeyPatch, module: Any, params: dict) -> None:
    """Has a network's module describe these parameters, whatever its config."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    monkeypatch.setattr(module, "shapes", lambda config: shapes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    describe(monkeypatch, vae, parameters())
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


def test_a_role_says_what_is_stored_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(monkeypatch, vae, parameters())
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
    ("damage", "message"),
    [
        ("cut", "truncated, or not the file"),
        ("foreign", "truncated, or not the file"),
        ("gone", "No such file"),
        ("json_gone", "No such file"),
        ("json_cut", "not JSON"),
        ("json_deep", "nested too deeply"),
        ("json_list", "not the description"),
        ("json_other", "describes network 'lm'"),
        ("version", "format 99"),
        ("field", "changed since it was written"),
    ],
)
def test_damage_is_one_line(folder: Path, damage: str, message: str) -> None:
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
        case "json_deep":
            description.write_text("[" * 100_000)
        case "json_list":
            description.write_text("[1]")
        case "json_other":
            description.write_text(json.dumps(content | {"network": "lm"}))
        case "version":
            description.write_text(json.dumps(content | {"format_version": 99}))
        case "field":
            content["config"]["colour"] = 3
            description.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        release.load_network(folder, "vae")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of a tiny language model."""
    folder = tmp_path_factory.mktemp("lm")
    release.save_network(
        folder,
        "lm",
        jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), lm.shapes(lm_config.TINY)),
        lm_config.TINY,
        {},
    )
    return folder


def rewritten(source: Path, target: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A copy of a release with other values of the config and other tensors, and hashes that agree with them."""
    description = json.loads((source / "lm.json").read_text())
    stored = tensor_file.parse_tensors((source / "lm.safetensors").read_bytes(), "lm")
    data = safetensors.numpy.save({name: value for name, value in (stored | tensors).items() if value.size})
    description |= {
        "config": description["config"] | config,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    del description[release.DESCRIPTION_HASH]
    target.mkdir(exist_ok=True)
    (target / "lm.safetensors").write_bytes(data)
    (target / "lm.json").write_text(json.dumps(description))
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 10**9}, "width is 1000000000; it must be at most"),
        ({"width": -8}, "no network has this config"),
        ({"width": 0}, "no network has this config"),
        ({"width": "abc"}, "width is 'abc'; it must be a whole number"),
        ({"width": 64.5}, "width is 64.5; it must be a whole number"),
        ({"width": True}, "width is True; it must be a whole number"),
        ({"width": None}, "width is None; it must be a whole number"),
        ({"width": 128}, r"by its config it is float32 \("),
        ({"heads": 5}, "no network has this config"),
        ({"layers": 10**6}, "layers is 1000000; it must be at most 1000"),
        ({"layers": 3}, r"by its config it is float32 \(3"),
        ({"rope_base": float("nan")}, "rope_base is nan"),
        ({"dropout": "0"}, "dropout is '0'; it must be a number"),
        ({"recall": 1}, "recall is 1; it must be true or false"),
        ({"recall": False}, "holds the foreign tensor"),
        ({"remat": "all"}, "remat is 'all'; it must be one of 'none'"),
        ({"dtype": "float31"}, "'float31' not understood"),
        ({"colour": 3}, "has no field 'colour'"),
    ],
)
def test_configs_of_other_networks_are_refused(
    language_model: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = rewritten(language_model, tmp_path, config, {})
    with pytest.raises(UserError, match=message) as caught:
        release.load_network(folder, "lm")
    assert "\n" not in str(caught.value)
    assert "lm.json" in str(caught.value) or "lm.safetensors" in str(caught.value)


def test_tensors_of_other_networks_are_refused(language_model: Path, tmp_path: Path) -> None:
    stored = tensor_file.parse_tensors((language_model / "lm.safetensors").read_bytes(), "lm")
    packed = next(name.removesuffix(":scale") for name in stored if name.endswith(":scale"))
    plain = next(name for name, value in stored.items() if value.dtype == np.float16)
    scale = stored[packed + ":scale"]
    cases = {
        "lacks the tensor": {plain: np.zeros(0, np.float16)},
        "holds the foreign tensor": {"foreign": np.zeros(3, np.float32)},
        "by its config it is": {plain: np.ascontiguousarray(stored[plain][None])},
        "not finite": {plain: np.full_like(stored[plain], np.nan)},
        "which do not fit": {packed + ":scale": np.zeros((*scale.shape, 2), np.float32)},
        "is int8": {packed + ":scale": np.zeros(0, np.float32)},
    }
    for message, tensors in cases.items():
        folder = rewritten(language_model, tmp_path, {}, tensors)
        with pytest.raises(UserError, match=message):
            release.load_network(folder, "lm")


def test_bfloat16_is_read(language_model: Path, tmp_path: Path) -> None:
    stored = tensor_file.parse_tensors((language_model / "lm.safetensors").read_bytes(), "lm")
    plain = next(name for name, value in stored.items() if value.dtype == np.float16)
    values = np.linspace(-1, 1, stored[plain].size).reshape(stored[plain].shape).astype(bfloat16)
    folder = rewritten(language_model, tmp_path, {}, {plain: values})
    loaded = release.flatten(release.load_network(folder, "lm")[0])[plain]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, values.astype(np.float32))


def test_the_descriptions_that_ship_have_their_hash() -> None:
    folder = release_folder.WEIGHTS / "mini"
    names = [name for name in release.NETWORKS if (folder / f"{name}.json").exists()]
    assert len(names) == 7
    for name in names:
        description = json.loads((folder / f"{name}.json").read_text())
        assert release.DESCRIPTION_HASH in description
        release.read_description(folder, name)


def test_unknown_network_and_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be a folder"):
        release.save_network(tmp_path / "file", "vae", {"a": np.zeros(2, np.float32)}, VAEConfig(), {})


def test_a_difference_is_stored_in_four_bits_and_added_on_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, config = np.random.default_rng(1), DPDConfig()
    base = {
        "table": rng.normal(size=(64, 64)),
        "dense": {"kernel": rng.normal(size=(2, 64, 96)), "bias": np.ones(96)},
    }
    base = jax.tree.map(lambda leaf: leaf.astype(np.float32), base)
    release.save_network(tmp_path, "dpd", base, config, {})
    describe(monkeypatch, denoiser, base)
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
    monkeypatch.setattr(release, "_read_base", lambda *_: release.flatten(base))
    describe(monkeypatch, denoiser, base | {"guidance": difference["guidance"]})
    params, loaded_config, hashes = release.load_network(tmp_path, "dpd_distilled")
    assert (loaded_config, hashes) == (config, base_hashes)
    np.testing.assert_array_equal(params["table"], base["table"])
    np.testing.assert_array_equal(params["guidance"], difference["guidance"])
    added = jax.tree.map(lambda a, b: a - b, params["dense"], base["dense"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), added, difference["dense"])

    monkeypatch.undo()
    release.save_network(tmp_path, "dpd", {**base, "table": base["table"] + 1}, config, {})
    with pytest.raises(UserError, match="dpd_distilled was made from another dpd than the one here"):
        release.load_network(tmp_path, "dpd_distilled")


def test_a_packaged_release_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such folder; a folder of that name comes first."""
    monkeypatch.chdir(tmp_path)
    assert release_folder.locate("mini") == release_folder.WEIGHTS / "mini"
    assert release.network_hash("mini", "vae") == release.network_hash(release_folder.WEIGHTS / "mini", "vae")
    assert release.read_description("mini", "lm")["network"] == "lm"
    assert release_folder.locate("maxi") == Path("maxi")
    assert release_folder.locate(tmp_path / "mini") == tmp_path / "mini"
    (tmp_path / "mini").mkdir()
    assert release_folder.locate("mini") == Path("mini")
