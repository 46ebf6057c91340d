"""`melody prepare` over a folder of odd files: the reason that a person can act on, and nothing in silence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.recordings import music

from hostile import audio_files
from melody_jax.data.prepare import PrepareConfig, prepare
from melody_jax.data.records import decode_json, open_shards
from melody_jax.errors import UserError

pytest.importorskip("apache_beam", reason="melody prepare needs the extra beam")

CAFE = os.fsdecode(b"caf\xe9.wav")


def config(source: Path, out: Path, captions: str = "") -> PrepareConfig:
    return PrepareConfig(
        source=str(source), out=str(out), captions=captions, min_seconds=0.5, beam=("runner=DirectRunner",)
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    wave = music(0, 2.0)
    soundfile.write(folder / "good.wav", wave, 24_000)
    soundfile.write(folder / "opposite.wav", np.stack([music(1, 2.0), -music(1, 2.0)], axis=1), 24_000)
    (folder / "tagless.mp3").write_bytes(audio_files.without_table(audio_files.mp3(4.0)))
    soundfile.write(folder / "silent.wav", 0 * wave, 24_000)
    soundfile.write(folder / "short.wav", wave[:2000], 24_000)
    soundfile.write(folder / "unnamed.wav", music(2, 2.0), 24_000)
    (folder / "broken.wav").write_bytes(b"not audio at all")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "._good.wav").write_bytes(b"\0\x05\x16\x07 resource fork")
    with open(os.path.join(folder, CAFE), "wb") as file:
        file.write(audio_files.wav(3.0))
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_reasons_and_notes(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "c.csv"
    table.write_text(
        "file,caption\n" + "".join(f"{n},x\n" for n in ("good.wav", "opposite.wav", "tagless.mp3"))
    )
    manifest = prepare(config(source, tmp_path / "out", str(table)))
    assert {row["recording"]: row["reason"] for row in lines(tmp_path / "out" / "rejects.jsonl")} == {
        "._good.wav": "hidden",
        "broken.wav": "unreadable",
        "caf\\xe9.wav": "uncaptioned",
        "empty.wav": "unreadable",
        "short.wav": "short",
        "silent.wav": "silence",
        "unnamed.wav": "uncaptioned",
    }
    assert manifest.counts["recordings_used"] == 3
    assert manifest.counts["hours"] == pytest.approx((2 + 2 + 4) / 3600, abs=1e-4)
    assert manifest.counts["notes"] == {"channels cancel": 1}
    (note,) = lines(tmp_path / "out" / "notes.jsonl")
    assert (note["recording"], note["note"]) == ("opposite.wav", "channels cancel")


def test_a_name_that_is_not_utf8_is_prepared(source: Path, tmp_path: Path) -> None:
    prepare(config(source, tmp_path / "out"))
    records = open_shards(tmp_path / "out", "audio")
    names = {decode_json(records[i]["meta"])["recording"] for i in range(len(records))}
    assert names == {"good.wav", "opposite.wav", "tagless.mp3", "unnamed.wav", "caf\\xe9.wav"}


def test_missing_permissions_are_one_line(unprivileged: Path) -> None:
    source = unprivileged / "source"
    source.mkdir()
    (source / "a.wav").write_bytes(audio_files.wav(1.0))
    table = unprivileged / "c.csv"
    table.write_text("file,caption\na.wav,x\n")
    locked = unprivileged / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"locked/out: .*Permission denied"):
        prepare(config(source, locked / "out"))
    table.chmod(0)
    with pytest.raises(UserError, match=r"c\.csv: cannot be read \(Permission denied\)"):
        prepare(config(source, unprivileged / "out", str(table)))
    source.chmod(0)
    try:
        with pytest.raises(UserError, match=r"source: the folder cannot be read \(Permission denied\)"):
            prepare(config(source, unprivileged / "out"))
    finally:
        source.chmod(0o700)


def test_a_run_without_results_begins_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("melody_jax.data.beam_pipelines.run_audio", fail)
        with pytest.raises(UserError, match="stopped"):
            prepare(config(source, tmp_path / "out"))
    os.rename(os.path.join(source, CAFE), source / "cafe.wav")
    assert prepare(config(source, tmp_path / "out")).counts["recordings_used"] == 5
    (source / "cafe.wav").unlink()
    with pytest.raises(UserError, match="another source"):
        prepare(config(source, tmp_path / "out"))
