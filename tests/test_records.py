import json
import pickle

import numpy as np
import pytest

from melody_jax.data import records
from melody_jax.errors import UserError


def make(folder, counts=(3, 2), finished=True):
    folder.mkdir(exist_ok=True)
    shards, value = [], 0
    for index, count in enumerate(counts):
        items = [
            {
                "x": np.arange(value + i, value + i + 4, dtype=np.int16),
                "meta": records.encode_json({"id": value + i}),
            }
            for i in range(count)
        ]
        value += count
        shards.append(records.write_shard(folder / records.shard_name("numbers", index, len(counts)), items))
    manifest = records.ShardManifest(
        kind="numbers",
        settings={"seed": 1},
        versions={"melody_jax": "0"},
        shard_count=len(counts) + (not finished),
        shards=tuple(shards),
    )
    records.write_manifest(folder, manifest)
    return manifest


def test_record_round_trip_and_determinism():
    fields = {"b": np.ones((2, 3), np.float16), "a": np.arange(5, dtype=np.uint8)}
    data = records.encode_record(fields)
    assert data == records.encode_record(dict(reversed(fields.items())))
    for name, value in records.decode_record(data).items():
        np.testing.assert_array_equal(value, fields[name])
        assert value.dtype == fields[name].dtype
    assert records.decode_json(records.encode_json({"é": [1, 2.5]})) == {"é": [1, 2.5]}
    with pytest.raises(UserError, match="not safetensors"):
        records.decode_record(b"hello world, this is not a record")
    with pytest.raises(UserError, match="not JSON"):
        records.decode_json(np.frombuffer(b"{", np.uint8))


def test_shards_random_access(tmp_path):
    manifest = make(tmp_path / "a")
    assert records.read_manifest(tmp_path / "a") == manifest
    source = records.open_shards(tmp_path / "a", kind="numbers", verify=True)
    assert len(source) == 5
    for order in ([4, 0, 3], range(5)):
        for index in order:
            assert source[index]["x"][0] == index
            assert records.decode_json(source[index]["meta"]) == {"id": index}
    copy = pickle.loads(pickle.dumps(source))
    assert copy[4]["x"][0] == 4
    assert [r["x"][0] for r in source.__getitems__([3, 1])] == [3, 1]
    assert make(tmp_path / "b").shards == manifest.shards


def test_grain_reads_it(tmp_path):
    grain = pytest.importorskip("grain")
    make(tmp_path)
    dataset = grain.MapDataset.source(records.open_shards(tmp_path)).map(lambda record: int(record["x"][0]))
    assert [dataset[i] for i in range(5)] == [0, 1, 2, 3, 4]


def test_nothing_half_written(tmp_path):
    def broken():
        yield {"x": np.zeros(4)}
        raise KeyError("composer failed")

    with pytest.raises(KeyError):
        records.write_shard(tmp_path / "s.array_record", broken())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot be written"):
        records.write_shard(tmp_path / "missing" / "s.array_record", [])


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        records.open_shards(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        records.open_shards(tmp_path)
    make(tmp_path, finished=False)
    with pytest.raises(UserError, match="unfinished, 2 of 3"):
        records.open_shards(tmp_path)
    make(tmp_path)
    with pytest.raises(UserError, match="features records are needed"):
        records.open_shards(tmp_path, kind="features")
    manifest = tmp_path / records.MANIFEST
    good = manifest.read_text()
    for bad in ("", "[]", json.dumps({"format": 1}), good.replace('"format": 1', '"format": 9')):
        manifest.write_text(bad)
        with pytest.raises(UserError, match=r"manifest\.json"):
            records.open_shards(tmp_path)


def test_bad_shards(tmp_path):
    first = make(tmp_path).shards[0]
    path = tmp_path / first.name
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match="cut short"):
        records.open_shards(tmp_path)
    path.write_bytes(bytes(len(data)))
    with pytest.raises(UserError, match="sha256"):
        records.open_shards(tmp_path, verify=True)
    with pytest.raises(UserError, match="damaged"):
        records.open_shards(tmp_path)[0]
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        records.open_shards(tmp_path)


def test_empty_folder_of_shards(tmp_path):
    make(tmp_path, counts=(0,))
    with pytest.raises(UserError, match="no records"):
        records.open_shards(tmp_path)
