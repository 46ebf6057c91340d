"""JSON that a training keeps: config.json of a run folder, and metrics.jsonl, with changed bytes or of other shapes."""

import functools
import json
from pathlib import Path

from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.kind import Kind
from melody_jax.config import load_config
from melody_jax.config_json import to_dict
from melody_jax.training.metric_log import read_rows
from melody_jax.training.run_folder import check_resume, read_run

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


KINDS = {
    "run folders, config.json": Kind(strategy=_records, run=resume),
    "run folders, metrics.jsonl": Kind(strategy=_rows, run=rows_of),
}
