"""Corpora that are read-only, torn or foreign."""

import json
from pathlib import Path

import numpy as np
import pytest

from hostile.corpora import record, write_corpus
from melody_jax.data import pipeline, records
from melody_jax.data.pipeline import ConcatenatedRecords
from melody_jax.errors import UserError


def genres(folder: Path) -> list[int]:
    return ConcatenatedRecords((str(folder),), "audio_text").genres().tolist()


def test_genres_are_cached_whole_or_not_at_all(tmp_path: Path) -> None:
    items = [record("one"), record("two", facts={"genre": "techno"}), record("three", facts={})]
    folder = write_corpus(tmp_path / "corpus", items)
    first = genres(folder)
    assert first[2] == -1
    assert first[0] != first[1]
    file = folder / "genres.json"
    valid = file.read_bytes()
    for torn in (
        valid[:20],
        b"",
        b"[1]",
        b"[" * 100_000,
        valid.replace(b"jazz", b"\xff"),
        valid.replace(b'"jazz"', b"5"),
    ):
        file.write_bytes(torn)
        assert genres(folder) == first
        assert file.read_bytes() == valid
    assert sorted(path.name for path in folder.iterdir()) == [
        "audio-00000-of-00001.array_record", "genres.json", "manifest.json"
    ]  # fmt: skip


def test_a_read_only_corpus_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(tmp_path / "corpus", [record("one")])
    folder.chmod(0o555)
    try:
        assert len(genres(folder)) == 1
        assert not (folder / "genres.json").exists()
    finally:
        folder.chmod(0o755)

    def refuse(*_: object, **__: object) -> None:
        raise UserError("genres.json: cannot be written (Read-only file system)")

    monkeypatch.setattr(pipeline.files, "write_json", refuse)
    assert len(genres(folder)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": 5}, "kind is 5"),
        ({"settings": []}, "settings is no object"),
        ({"shard_count": "1"}, "shard_count is '1'"),
        ({"shards": 5}, "not a manifest of shards"),
        (
            {"shards": [{"name": "../x", "records": 1, "bytes": 1, "sha256": ""}]},
            "'../x' is no name of a shard",
        ),
        ({"shards": [{"name": "x", "records": -1, "bytes": 1, "sha256": ""}]}, "shard x has no numbers"),
        ({"shards": [{"name": "x", "records": 10**30, "bytes": 1, "sha256": ""}]}, "shard x has no numbers"),
    ],
)
def test_foreign_manifests_are_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    folder = write_corpus(tmp_path / "corpus", [record()])
    file = folder / records.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        records.open_shards(folder)
    for content in (b"[" * 100_000, b"\xff", b"", b"null", b'"x"', b"[1]"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"manifest\.json: not"):
            records.open_shards(folder)


def test_foreign_records_are_one_line(tmp_path: Path) -> None:
    for number, item in enumerate(
        (
            {"x": np.zeros(3)},
            {"audio": np.zeros((2, 2), np.uint8), "meta": np.zeros(1, np.uint8)},
            {"audio": np.zeros(3, np.float32), "meta": np.zeros(1, np.uint8)},
        )
    ):
        source = records.open_shards(write_corpus(tmp_path / str(number), [item]))
        with pytest.raises(UserError, match="not a shard of audio records: audio is"):
            source[0]
    for meta in (b"[" * 100_000, b"\xff", b"{", b"9" * 5_000):
        with pytest.raises(UserError, match="a record's meta"):
            records.decode_json(np.frombuffer(meta, np.uint8))
