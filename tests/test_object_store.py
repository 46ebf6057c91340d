"""Folders in buckets, with objects in memory: what is copied when, what is left after errors, what is refused."""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.arrays import assert_same
from helpers.toy import ToyBatches, rows, run, toy_config

from melody_jax import cli, object_store
from melody_jax.data import records
from melody_jax.errors import UserError
from melody_jax.files import claim_folder, make_folder
from melody_jax.mirror import mirrored
from melody_jax.object_store import RemoteFolder
from melody_jax.training import remote_checkpoints, run_folder
from melody_jax.training.checkpoint import Checkpoints

pytest.importorskip("fsspec", reason="the extra 'buckets' is not installed")
pytestmark = pytest.mark.usefixtures("bucket")
URL = "memory://tests/folder"


def content(name: str) -> bytes:
    return RemoteFolder(URL).read(name)


def age(folder: Path) -> None:
    """Makes all files old enough for the next sweep."""
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("path", ["gs://b/x", "s3:/b/x", Path("gs://b/x"), "memory://b"])
def test_remote_paths(path: Any) -> None:
    assert object_store.is_remote(path)
    scheme, rest = str(path).split(":/", 1)
    assert object_store.display(path) == f"{scheme}://{rest.lstrip('/')}"


@pytest.mark.parametrize("path", ["runs/x", "gs:x", "http://b/x", "hf://owner/name", "", Path("gs")])
def test_other_paths_are_not_remote(path: Any) -> None:
    assert not object_store.is_remote(path)
    assert object_store.display(path) == str(path)


def test_a_bucket_has_a_name_and_objects_exist() -> None:
    with pytest.raises(UserError, match="not a folder of a bucket"):
        RemoteFolder("memory://")
    with pytest.raises(UserError, match="memory://tests/folder/absent: does not exist"):
        content("absent")
    assert RemoteFolder(URL).sizes() == {}


def test_names_stay_inside_the_folder(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a name that a folder can have"):
        RemoteFolder(URL).download({"../x": 1}, tmp_path / "local")
    assert not (tmp_path / "x").exists()


def test_large_objects_are_not_read(bucket: Any) -> None:
    bucket.pipe_file("/tests/folder/x", b"12345")
    with pytest.raises(UserError, match="5 bytes, at most 4 are read"):
        RemoteFolder(URL).read("x", max_bytes=4)


def test_an_object_that_changes_meanwhile_leaves_nothing(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("/tests/folder/x", b"12345")
    with pytest.raises(UserError, match="changed while it was read"):
        RemoteFolder(URL).download({"x": 4}, tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_prompt_files_and_other_texts(bucket: Any) -> None:
    bucket.pipe_file("/tests/folder/x.jsonl", "\ufeffé\n".encode())
    assert object_store.read_text(Path(f"{URL}/x.jsonl")) == "é\n"
    bucket.pipe_file("/tests/folder/x.jsonl", b"\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        object_store.read_text(f"{URL}/x.jsonl")


def write_shards(folder: Path, count: int = 2, first: int = 0) -> None:
    shards = [
        records.write_shard(
            folder / records.shard_name("audio", i, count),
            [{"audio": np.full(4, first + i, np.uint8), "meta": records.encode_json({"id": str(i)})}],
        )
        for i in range(count)
    ]
    records.write_manifest(
        folder,
        records.ShardManifest(
            kind="audio", settings={}, versions={}, shard_count=count, shards=tuple(shards)
        ),
    )


def test_shards_are_copied_once_and_anew_when_they_change(bucket: Any, tmp_path: Path) -> None:
    write_shards(make_folder(tmp_path / "a"))
    write_shards(make_folder(tmp_path / "b"), first=10)
    bucket.put(f"{tmp_path}/a/*", "/tests/folder/")
    source = records.open_shards(URL, "audio")
    assert [int(source[i]["audio"][0]) for i in range(2)] == [0, 1]
    assert records.read_manifest(URL).records == 2
    copied = source.folder / source.manifest.shards[0].name
    before = copied.stat()
    records.open_shards(URL, verify=True)
    assert copied.stat() == before
    bucket.put(f"{tmp_path}/b/*", "/tests/folder/")
    source = records.open_shards(URL)
    assert [int(source[i]["audio"][0]) for i in range(2)] == [10, 11]


def test_a_damaged_shard_is_refused_and_not_kept(bucket: Any, tmp_path: Path) -> None:
    write_shards(make_folder(tmp_path / "a"))
    bucket.put(f"{tmp_path}/a/*", "/tests/folder/")
    name = f"/tests/folder/{records.shard_name('audio', 0, 2)}"
    original = bucket.cat_file(name)
    bucket.pipe_file(name, original[:-1] + b"x")
    with pytest.raises(UserError, match=r"its sha256 is not that in manifest\.json"):
        records.open_shards(URL)
    bucket.pipe_file(name, original)
    assert len(records.open_shards(URL)) == 2


def test_a_mirror_uploads_removes_and_begins_with_what_is_there(bucket: Any) -> None:
    bucket.pipe_file("/tests/folder/old", b"1")
    bucket.pipe_file("/tests/folder/sub/old", b"2")
    with mirrored(URL, fetches=lambda name: name != "old", seconds=0) as mirror:
        assert str(mirror) == URL
        assert mirror.sizes == {"old": 1, "sub/old": 1}
        assert not (mirror.folder / "old").exists()
        (mirror.folder / "sub" / "old").unlink()
        (mirror.folder / "new").write_bytes(b"3")
        (mirror.folder / ".new.12ab.part").write_bytes(b"4")
    assert RemoteFolder(URL).sizes() == {"old": 1, "new": 1}
    assert not mirror.folder.exists()


def test_a_sweep_uploads_what_has_changed_and_is_complete(bucket: Any) -> None:
    uploads: list[str] = []
    with mirrored(URL, seconds=0) as mirror:
        assert mirror.remote is not None
        upload = mirror.remote.upload
        mirror.remote.upload = lambda folder, names: upload(
            folder, [name for name in names if not uploads.append(name)]
        )
        (mirror.folder / "a.json").write_bytes(b"1")
        (mirror.folder / "b").write_bytes(b"2")
        mirror.sweep(running=True)
        assert uploads == []  # files of this moment
        age(mirror.folder)
        mirror.sweep(running=True)
        assert uploads == ["b", "a.json"]
        mirror.sweep(running=True)
        assert uploads == ["b", "a.json"]
        (mirror.folder / "b").write_bytes(b"3")
        age(mirror.folder)
        os.utime(mirror.folder / "b", (1e9 + 1, 1e9 + 1))
        mirror.sweep(running=True)
    assert uploads == ["b", "a.json", "b"]
    assert content("b") == b"3"


def test_discarded_files_stay_in_the_bucket(bucket: Any) -> None:
    with mirrored(URL, discards=lambda name: name.endswith(".wav"), seconds=0) as mirror:
        (mirror.folder / "a.wav").write_bytes(b"1")
        mirror.sweep()
        assert (mirror.folder / "a.wav").exists()
        mirror.sweep()
        assert not (mirror.folder / "a.wav").exists()
        (mirror.folder / "b.wav").write_bytes(b"2")
        mirror.remove("b.wav")
    assert RemoteFolder(URL).sizes() == {"a.wav": 1}


def test_after_an_error_the_complete_files_are_uploaded(bucket: Any) -> None:
    def fail() -> None:
        with mirrored(URL, seconds=0) as mirror:
            (mirror.folder / "a").write_bytes(b"1")
            age(mirror.folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content("a") == b"1"


def test_a_failing_upload_is_a_warning_until_the_end(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    def write() -> None:
        with mirrored(URL, seconds=0) as mirror:
            monkeypatch.setattr(type(bucket), "put_file", refuse)
            (mirror.folder / "a").write_bytes(b"1")
            age(mirror.folder)
            mirror.try_sweep()
            assert (
                "memory://tests/folder/a: failed (no route to host); the upload is tried"
                in capsys.readouterr().err
            )

    with pytest.raises(UserError, match="no route to host"):
        write()


def test_a_bucket_that_cannot_be_written_is_refused_first(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr(type(bucket), "pipe_file", refuse)
    with pytest.raises(UserError, match=r"memory://tests/folder: failed \(access denied\)"), mirrored(URL):
        pytest.fail("the mirror is not reached")


def test_two_commands_of_a_machine_do_not_share_a_mirror(bucket: Any) -> None:
    with mirrored(URL, seconds=0), mirrored(URL, part="another", seconds=0):
        home = object_store.cache_folder("mirrors", f"{URL} ")
        with claim_folder(home) as is_free:
            assert not is_free
        with pytest.raises(UserError, match="another process of this machine"), mirrored(URL):
            pytest.fail("the mirror is not reached")


def test_a_run_in_a_bucket_resumes_bit_for_bit(bucket: Any, tmp_path: Path) -> None:
    uninterrupted = run(toy_config(tmp_path / "run", steps=20))
    config = toy_config(URL, steps=20, save_every=5, eval_every=0, keep_last=2)
    run(config, ToyBatches(interrupt=12))
    checkpoints = RemoteFolder(URL) / "checkpoints"
    assert remote_checkpoints.complete_steps(checkpoints) == [10, 13]
    assert_same(run(config), uninterrupted)
    assert remote_checkpoints.complete_steps(checkpoints) == [15, 20]
    assert {name.split("/")[0] for name in checkpoints.sizes()} == {"15", "20"}
    (tmp_path / "metrics.jsonl").write_bytes(content("metrics.jsonl"))
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [5, 10, 13, 15, 20]
    assert rows(tmp_path)[-2]["loss"] == rows(tmp_path / "run")[-2]["loss"]
    assert b'"workdir": "memory://tests/folder"' in content("config.json")


def test_checkpoints_at_multiples_stay(bucket: Any) -> None:
    run(toy_config(URL, steps=20, save_every=5, eval_every=0, keep_last=1, keep_every=10))
    assert remote_checkpoints.complete_steps(RemoteFolder(URL) / "checkpoints") == [10, 20]


def test_a_run_is_copied_to_be_exported(bucket: Any) -> None:
    state = run(toy_config(URL, steps=5, eval_every=0))
    folder = run_folder.local_run(URL)
    assert run_folder.read_run(folder)[0]["steps"] == 5
    checkpoints = Checkpoints(folder)
    assert_same(checkpoints.restore_ema(jax.eval_shape(lambda: state.ema)), state.ema)
    checkpoints.close()
    assert run_folder.local_run("runs/x") == Path("runs/x")


def test_a_bundle_of_a_bad_step_is_uploaded(bucket: Any) -> None:
    with pytest.raises(UserError, match="melody replay --bundle memory://tests/folder/nonfinite/12"):
        run(toy_config(URL), ToyBatches(poison=12))
    names = {name.split("/")[2] for name in RemoteFolder(URL).sizes() if name.startswith("nonfinite/12/")}
    assert {"bundle.json", "batch.safetensors", "params"} <= names


def test_an_unfinished_checkpoint_does_not_count(bucket: Any, tmp_path: Path) -> None:
    config = toy_config(URL, steps=10, save_every=5, eval_every=0)
    uninterrupted = run(config)
    remote = RemoteFolder(URL) / "checkpoints"
    remote.delete([f"10/{remote_checkpoints.MARKER}"])
    bucket.pipe_file("/tests/folder/checkpoints/10/state/d/of-a-killed-process", b"1")
    assert_same(run(config), uninterrupted)
    assert remote_checkpoints.complete_steps(remote) == [5, 10]
    assert not [name for name in remote.sizes() if "killed" in name]


def test_two_trainings_in_one_bucket_folder_are_noticed(bucket: Any, tmp_path: Path) -> None:
    config = toy_config(URL, steps=5, eval_every=0)
    state = run(config)
    one, two = (
        Checkpoints(tmp_path / name, keep_last=2, remote=RemoteFolder(URL)) for name in ("one", "two")
    )
    one.save(state._replace(step=np.int32(6)), {})
    one.close()
    with pytest.raises(UserError, match="another training writes checkpoints there"):
        two.save(state._replace(step=np.int32(7)), {})
    two.close()


def test_several_processes_need_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_checkpoints.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="2 processes cannot write checkpoints to memory://; use gs://"):
        remote_checkpoints.check_scheme(RemoteFolder(URL))


def test_a_corpus_composed_into_a_bucket_is_the_same(bucket: Any, tmp_path: Path) -> None:
    options = ("--hours", str(2 / 3600), "--seconds", "1", "--pieces-per-shard", "1", "--soundfonts", "none")
    for out in (str(tmp_path / "corpus"), URL, URL):
        cli.run(["compose", "--out", out, *options, "--workers", "1"])
    expected = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert len(expected) == 3
    assert {name: content(name) for name in RemoteFolder(URL).sizes()} == expected


def test_copies_are_told_apart_by_their_folder() -> None:
    digests = {object_store.cache_folder("copies", url).name for url in (URL, f"{URL}/x")}
    assert len(digests) == 2
    assert hashlib.sha256(URL.encode()).hexdigest()[:24] in digests
