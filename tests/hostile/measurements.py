"""What evaluations and studies read: statistics of a reference, lists of composed prompts, and results of runs."""

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.kind import Kind
from hostile.prompts import VALUES
from melody_jax.ablation.results import RunResult, add_results, read_folder, read_results
from melody_jax.evaluation.composed_prompts import GROUPS, read_prompts
from melody_jax.evaluation.metrics import read_moments

SHAPES = st.sampled_from(((), (0,), (1,), (2,), (2, 2), (3, 3), (0, 0), (2, 2, 2)))
TYPES = st.sampled_from(("f2", "f4", "f8", "i4", "u1", "?", "c8", "U1", "S1", "M8[s]", "f4,f4"))
NUMBERS = st.sampled_from((0, 1, -1, 2, 1e308, -1e308, 1e-320, np.inf, np.nan))


@functools.cache
def valid_statistics() -> bytes:
    """What other tools write."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(3), sigma=np.eye(3))
    return buffer.getvalue()


@st.composite
def _arrays(draw: st.DrawFn) -> bytes:
    """Arrays of any shape and type under the right names."""
    buffer = io.BytesIO()
    arrays = {}
    for name in ("mu", "sigma"):
        with np.errstate(all="ignore"):
            array = np.full(draw(SHAPES), draw(NUMBERS))
            array = array.astype(draw(TYPES)) if draw(st.booleans()) and np.isfinite(array).all() else array
        arrays[name] = array
    draw(st.sampled_from((np.savez, np.savez_compressed)))(buffer, **arrays)
    return buffer.getvalue()


def _statistics() -> st.SearchStrategy[bytes]:
    valid = valid_statistics()
    return st.one_of(mutated(valid, len(valid)), _arrays())


def read_statistics(data: bytes, folder: Path) -> None:
    """Reads the statistics of a reference; what is accepted is finite and of one width."""
    path = folder / "a.npz"
    path.write_bytes(data)
    moments = read_moments(path)
    assert moments.covariance.shape == (len(moments.mean),) * 2
    assert np.isfinite(moments.mean).all()


FIELDS = {"group": "jazz", "text": "slow jazz", "seed": 1, "tempo_bpm": 60.5, "rhythmic": True}


def _prompts() -> st.SearchStrategy[bytes]:
    names = st.sampled_from((*FIELDS, "other"))
    changed = st.dictionaries(names, VALUES, max_size=2).map(lambda changes: FIELDS | changes)
    lines = st.lists(changed.map(json.dumps), max_size=3).map("\n".join)
    valid = json.dumps(FIELDS).encode()
    return st.one_of(
        lines.map(lambda text: text.encode("utf-8", "surrogatepass")), mutated(valid, len(valid))
    )


def read_list(data: bytes, folder: Path) -> None:
    """Reads a list of composed prompts; what is accepted says what music it is."""
    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    for prompt in read_prompts(path):
        assert prompt.facts.group in {group.name for group in GROUPS}
        assert prompt.tempo_bpm > 0
        prompt.text.encode()


@functools.cache
def valid_run() -> dict[str, bytes]:
    """What a run folder and a results file hold: name -> content."""
    array = np.float32([0.5, 1.5])
    steps = {"step": np.int32([1, 2]), "loss": array, "digest/noise": np.uint32([1, 2])}
    result = RunResult(
        arm="a",
        seed=0,
        config={"config": {"steps": 2}},
        cost={"steps": 2},
        steps=steps,
        measures={"m": {"x": array}},
    )
    with tempfile.TemporaryDirectory() as name:
        add_results(Path(name, "runs", "a.json"), {"0": result})
        content = Path(name, "runs", "a.json").read_bytes()
    row = b'{"step": 1, "digest/noise": 7, "loss": 0.5}\n'
    return {
        "a.json": content,
        "config.json": b'{"config": {"steps": 2}}',
        "cost.json": b'{"steps": 2, "device": "cpu"}',
        "diverged.json": b'{"steps": 2}',
        "metrics.jsonl": row + row.replace(b'": 1', b'": 2'),
        "m.safetensors": safetensors.numpy.save({"x": array}),
    }


@st.composite
def _run_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name of one of the files, and its content with changed bytes or with other values."""
    name = draw(st.sampled_from(sorted(valid_run())))
    content = valid_run()[name]
    if draw(st.booleans()) or not name.endswith(".json"):
        return name, draw(mutated(content, len(content)))
    value = json.loads(content)
    inner = value
    while isinstance(inner, dict) and inner:
        key = draw(st.sampled_from(sorted(inner)))
        if draw(st.integers(0, 2)) == 0:
            inner[key] = draw(VALUES)
            break
        inner = inner[key]
    return name, json.dumps(value).encode("utf-8", "surrogatepass")


def read_run(case: tuple[str, bytes], folder: Path) -> None:
    """Reads a run folder or a results file with that file; what is accepted can be written again."""
    name, content = case
    for other, valid in valid_run().items():
        (folder / other).write_bytes(content if other == name else valid)
    read = {"0": read_folder(folder, "a", 0)} if name != "a.json" else read_results(folder / name)
    for result in read.values():
        result.is_complete(["m"])
    add_results(folder / "again" / "a.json", read)


KINDS = {
    "statistics of a reference": Kind(strategy=_statistics, run=read_statistics),
    "composed prompts": Kind(strategy=_prompts, run=read_list),
    "results of a study": Kind(strategy=_run_files, run=read_run),
}
