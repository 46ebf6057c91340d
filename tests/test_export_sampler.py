"""An exported sampler makes the same clips without this package."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
import safetensors.numpy
import soundfile
from helpers.tiny import tiny_networks

from melody_jax import load, loudness, release
from melody_jax.cli import run
from melody_jax.errors import UserError
from melody_jax.sampling import export_sampler

ALONE = (
    "import runpy, sys; sys.modules['melody_jax'] = None; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], {}, '__main__')"
)
"""Runs a script where `import melody_jax` fails."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    for name, (params, config) in tiny_networks().items():
        release.save_network(root / "tiny", name, params, config, {})
    options = [
        "--model",
        "tiny",
        "--folder",
        str(root),
        "--out",
        str(root / "out"),
        "--batch",
        "2",
        "--steps",
        "2",
    ]
    run(["export-sampler", *options])
    return root


def test_plays_the_same_without_the_package(folder: Path) -> None:
    song = folder / "song.wav"
    script = [sys.executable, "-c", ALONE, str(folder / "out" / "play.py")]
    subprocess.run([*script, "slow sad cello", "--seed", "5", "--out", str(song)], check=True, timeout=300)
    melody = load("tiny", folder=folder)
    expected = melody.generate(["slow sad cello"] * 2, seed=5, steps=2, seconds=melody.window_seconds)
    for number, wave in enumerate(expected):
        samples, rate = soundfile.read(folder / f"song-{number}.wav", dtype="float32")
        assert rate == melody.sample_rate
        np.testing.assert_allclose(samples, wave, rtol=0, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_the_description_matches_the_files(folder: Path) -> None:
    about = json.loads((folder / "out" / "sampler.json").read_text())
    assert about["batch"] == 2
    assert about["hash"] == load("tiny", folder=folder).hash
    assert about["settings"] == {
        "steps": 2, "schedule": "paper", "solver": "ddim", "guided": True, "lm_guided": True, "controlled": False
    }  # fmt: skip
    stored = safetensors.numpy.load_file(folder / "out" / "weights.safetensors")
    assert {name.split("/")[0] for name in stored} == {
        name for names in about["weights"].values() for name in names
    }
    for name, targets in about["programs"].items():
        for target, file in targets.items():
            program = jax.export.deserialize(bytearray((folder / "out" / file).read_bytes()))
            assert program.platforms == tuple(about["platforms"][target])
            shapes = [list(value.shape) for value in program.out_avals]
            assert shapes == (
                list(about["outputs"].values())[::-1] if name == "sampler" else [[2, 24_000 * 80 // 25]]
            )


def test_limits_peaks_as_the_package_does() -> None:
    rng = np.random.default_rng(0)
    waves = (np.array([[0.2], [0.5]]) * rng.standard_normal((2, 4_000))).clip(-0.97, 3).astype(np.float32)
    waves[0] = waves[0].clip(-0.5, 0.5)
    optimised = {
        "xla_backend_optimization_level": 3,
        "xla_cpu_use_fusion_emitters": True,
    }  # as users compile it
    limit = jax.jit(export_sampler.limit_peaks, static_argnums=1, compiler_options=optimised)
    limited = np.asarray(limit(waves, 24_000))
    np.testing.assert_array_equal(limited[0], waves[0])
    np.testing.assert_allclose(limited[1], loudness.peak_limit(waves[1]), rtol=0, atol=1e-6)
    assert np.abs(limited[1] - waves[1]).max() > 0.01


def test_nothing_is_overwritten_or_half_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists"):
        run(["export-sampler", "--model", "tiny", "--folder", str(folder), "--out", str(folder / "out")])
    with pytest.raises(UserError, match="batch is 0"):
        run(["export-sampler", "--out", str(tmp_path / "out"), "--batch", "0"])
    with pytest.raises(UserError, match="steps"):
        run(["export-sampler", "--out", str(tmp_path / "out"), "--steps", "0"])
    assert not any(tmp_path.iterdir())


def test_a_control_scale_needs_control_tokens(folder: Path, tmp_path: Path) -> None:
    options = [
        "--model",
        "tiny",
        "--folder",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--control-scale",
        "3",
    ]
    with pytest.raises(
        UserError, match=r"control_scale is 3\.0; the language model of tiny has no control tokens"
    ):
        run(["export-sampler", *options])
    assert not (tmp_path / "out").exists()
