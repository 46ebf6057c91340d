"""What a training keeps: config.json, metrics.jsonl and checkpoints, with changed bytes or of other shapes."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.corpora import corpus
from hostile.kind import Kind
from melody_jax.config import DataConfig, load_config
from melody_jax.config_json import to_dict
from melody_jax.data.pipeline import TrainingBatches
from melody_jax.sharding import make_mesh
from melody_jax.training.checkpoint import Checkpoints
from melody_jax.training.metric_log import read_rows
from melody_jax.training.run_folder import check_resume, read_run
from melody_jax.training.state import TrainState

CONFIG = "lm_tiny"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
"""Any small JSON value."""


@functools.cache
def valid_record() -> bytes:
    """What `write_run` writes."""
    record = {"config": to_dict(load_config(CONFIG)), "hashes": {}, "layout": {"processes": 1}}
    return json.dumps(record).encode()


def _records() -> st.SearchStrategy[bytes]:
    parts = st.fixed_dictionaries(dict.fromkeys(("config", "hashes", "layout"), JSON))
    return st.one_of(
        mutated(valid_record(), header=4_000), parts.map(lambda value: json.dumps(value).encode())
    )


def resume(data: bytes, folder: Path) -> None:
    """Reads the description of a run and compares it with the config that resumes it."""
    (folder / "config.json").write_bytes(data)
    read_run(folder)
    check_resume(folder, load_config(CONFIG), {})


def _rows() -> st.SearchStrategy[bytes]:
    rows = b"".join(json.dumps({"step": i, "loss": 1.0, "eval/loss": 2.0}).encode() + b"\n" for i in range(5))
    return mutated(rows)


def rows_of(data: bytes, folder: Path) -> None:
    """Reads metrics; every row that is returned has a step."""
    path = folder / "metrics.jsonl"
    path.write_bytes(data)
    assert all(isinstance(row["step"], int) for row in read_rows(path))


@functools.cache
def valid_state() -> TrainState:
    """A small training state."""
    params = {"model": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    return TrainState(jnp.int32(3), params, (), params["model"], jnp.zeros((), bool))


@functools.cache
def valid_run() -> Path:
    """A run folder with one checkpoint, for the process."""
    folder = Path(tempfile.mkdtemp()) / "run"
    checkpoints = Checkpoints(folder, keep_last=1)
    checkpoints.save(valid_state(), {"next_index": 5})
    checkpoints.close()
    return folder


@st.composite
def _checkpoints(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name of one of the checkpoint's files, and its content with changed bytes."""
    files = sorted(path for path in valid_run().rglob("*") if path.is_file())
    path = draw(st.sampled_from(files))
    return str(path.relative_to(valid_run())), draw(mutated(path.read_bytes()))


def restore(case: tuple[str, bytes], folder: Path) -> None:
    """Restores a run with that file; a state that is accepted is the one that was saved, to the bit."""
    name, content = case
    run = folder / "run"
    shutil.copytree(valid_run(), run)
    (run / name).write_bytes(content)
    device = jax.NamedSharding(make_mesh((1, 1, 1), jax.devices()[:1]), jax.P())
    saved = valid_state()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved)
    checkpoints = Checkpoints(run)
    try:
        state, position = checkpoints.restore(abstract)
    finally:
        checkpoints.close()
    assert position == {"next_index": 5}
    jax.tree.map(np.testing.assert_array_equal, state, saved)


@functools.cache
def batches() -> TrainingBatches:
    """Batches of a corpus of two records, for the process."""
    return TrainingBatches(DataConfig(folder=(str(corpus()),), crop_samples=960, batch_size=2), "audio")


def move(position: object, folder: Path) -> None:
    """Moves the batches to a position from a checkpoint; where they are then is a position too."""
    batches().set_state(position)
    assert batches().get_state() == position


KINDS = {
    "run folders, config.json": Kind(strategy=_records, run=resume),
    "run folders, metrics.jsonl": Kind(strategy=_rows, run=rows_of),
    "run folders, checkpoints": Kind(strategy=_checkpoints, run=restore, cases=100),
    "run folders, positions in the data": Kind(
        strategy=lambda: JSON | st.fixed_dictionaries({"next_index": JSON}), run=move
    ),
}
