"""Folders of shards whose manifest or records were changed, or come from elsewhere."""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.kind import Kind
from melody_jax import audio
from melody_jax.data import records

JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["../x", "/x"]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=5,
)


def record(name: str = "one", **meta: Any) -> dict[str, np.ndarray]:
    """An audio record of a tenth of a second."""
    wave = np.random.default_rng(0).normal(0, 0.1, 2_400).astype(np.float32)
    content = {"id": name, "facts": {"genre": "jazz"}, "captions": ["some jazz"]} | meta
    return {"audio": np.frombuffer(audio.encode_flac(wave), np.uint8), "meta": records.encode_json(content)}


def write_corpus(folder: Path, items: list[dict[str, np.ndarray]], kind: str = "audio") -> Path:
    folder.mkdir(parents=True)
    shard = records.write_shard(folder / records.shard_name(kind, 0, 1), items)
    manifest = records.ShardManifest(kind=kind, settings={}, versions={}, shard_count=1, shards=(shard,))
    records.write_manifest(folder, manifest)
    return folder


@functools.cache
def corpus() -> Path:
    """A valid corpus of two records, for the process."""
    return write_corpus(Path(tempfile.mkdtemp()) / "corpus", [record("one"), record("two")])


@st.composite
def _manifests(draw: st.DrawFn) -> bytes:
    """The manifest with changed bytes, or with other values."""
    content = json.loads((corpus() / records.MANIFEST).read_text())
    if draw(st.booleans()):
        return draw(mutated(json.dumps(content).encode()))
    for _ in range(draw(st.integers(1, 2))):
        target = draw(st.sampled_from((content, content["shards"][0])))
        key = draw(st.sampled_from(sorted(target)))
        target[key] = draw(JSON_VALUES)
        if "shards" not in content or not isinstance(content["shards"], list):
            break
        if not (content["shards"] and isinstance(content["shards"][0], dict) and content["shards"][0]):
            break
    return json.dumps(content).encode()


def open_manifest(case: bytes, folder: Path) -> None:
    """Opens a corpus with the manifest and reads all its records."""
    shutil.copytree(corpus(), folder / "corpus")
    (folder / "corpus" / records.MANIFEST).write_bytes(case)
    source = records.open_shards(folder / "corpus", "audio")
    for i in range(len(source)):
        assert "id" in records.decode_json(source[i]["meta"])


def decode(case: bytes, folder: Path) -> None:
    """Decodes the bytes of a record, its meta and its audio."""
    fields = records.decode_record(case)
    if {"meta", "audio"} <= set(fields):
        records.decode_json(fields["meta"])
        wave = audio.decode_flac(fields["audio"].tobytes())
        assert wave.ndim == 1


KINDS = {
    "manifest of shards": Kind(strategy=_manifests, run=open_manifest),
    "record": Kind(strategy=lambda: mutated(records.encode_record(record()), header=600), run=decode),
}
