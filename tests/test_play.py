"""`play.py` of an exported sampler, here of programs without networks: what it refuses, and how it writes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import soundfile

from melody_jax import text
from melody_jax.sampling import export_sampler

LENGTH = 6
"""Word pieces of a prompt, [CLS] and [SEP] included."""
INPUTS = {"ids": "int32", "mask": "float32", "seeds": "uint32"}
SAMPLES = 2_400


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sampler that repeats the lower half of the seed, in hundredths, as a clip."""
    folder = tmp_path_factory.mktemp("exported")
    inputs = {
        name: jax.ShapeDtypeStruct((1, 2 if name == "seeds" else LENGTH), dtype)
        for name, dtype in INPUTS.items()
    }
    latents = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    programs: dict[str, tuple[Callable[..., Any], Any]] = {
        "sampler": (lambda _, given: {"latents": given["seeds"][:, 1:] / jnp.float32(100)}, inputs),
        "decoder": (lambda _, window: jnp.repeat(window, SAMPLES, axis=1), latents),
    }
    for name, (function, arguments) in programs.items():
        exported = jax.export.export(jax.jit(function), platforms=("cpu",))({}, arguments)
        (folder / f"{name}.cpu.jax").write_bytes(bytes(exported.serialize()))
    description = {
        "sample_rate": 8_000,
        "channels": 1,
        "batch": 1,
        "seed": 0,
        "programs": {name: {"cpu": f"{name}.cpu.jax"} for name in programs},
        "weights": {"sampler": [], "decoder": []},
        "inputs": {
            name: {"shape": shape.shape, "default": 0, "dtype": INPUTS[name]}
            for name, shape in inputs.items()
        },
    }
    (folder / "sampler.json").write_text(json.dumps(description))
    (folder / "weights.safetensors").write_bytes(safetensors.numpy.save({"unused": np.zeros(1)}))
    (folder / "tokenizer.json").write_text(export_sampler._fixed_length(text.tokenizer(), LENGTH).to_str())
    shutil.copy(Path(export_sampler.__file__).with_name("play.py"), folder)
    return folder


def play(player: Path, *arguments: str, cwd: Path, limit: str = "unlimited") -> subprocess.CompletedProcess:
    """Runs the script; `limit` is the size in kilobytes that files may reach."""
    return subprocess.run(
        ["bash", "-c", f'ulimit -f {limit}; exec "$0" "$@"', sys.executable, str(player / "play.py"), *arguments],
        cwd=cwd, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_clip_is_written(player: Path, tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"old")
    done = play(player, "slow sad cello", "--seed", "50", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    samples, rate = soundfile.read(tmp_path / "song.wav")
    assert rate == 8_000
    np.testing.assert_allclose(samples, np.full(SAMPLES, 0.5), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["piano", "--out", "song.mp3"], "song.mp3: the name must end in .wav"),
        (["piano", "--out", "no/song.wav"], "no/song.wav: the folder no does not exist or cannot be written"),
        (["a slow sad cello piece"], "the prompt has more than 4 word pieces; shorten it"),
    ],
)
def test_mistakes_are_one_line(player: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = play(player, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert not list(tmp_path.iterdir())


def test_a_clip_that_cannot_be_written_leaves_the_old_one(player: Path, tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"old")
    done = play(player, "slow sad cello", cwd=tmp_path, limit="1")
    assert (done.returncode, done.stderr) == (2, "error: song.wav: cannot be written (File too large)\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"song.wav": b"old"}
