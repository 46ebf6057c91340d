"""`melody evaluate` over folders of odd files: what cannot be measured is counted and named, the rest is measured."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.sounds import sounds

from hostile import audio_files
from melody_jax import audio
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.data import records
from melody_jax.errors import InputWarning, UserError
from melody_jax.evaluation import evaluate as evaluating
from melody_jax.evaluation.clips import open_set
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.evaluate import evaluate
from melody_jax.evaluation.evaluate_config import EvaluateConfig
from melody_jax.evaluation.report import SIGNAL_TITLES, markdown


class Levels:
    """An embedding that needs no network."""

    name = sha256 = "levels"
    audio_format = DEFAULT_FORMAT

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return np.stack([waves.mean(axis=1), waves.std(axis=1)], axis=1)


def odd_clips(folder: Path) -> Path:
    sounds(folder, 3, 2.0)
    soundfile.write(folder / "short.wav", np.ones(1_000), 24_000)
    (folder / "broken.wav").write_bytes(b"RIFF no audio at all")
    (folder / "._000000.wav").write_bytes(b"\0\x05\x16\x07")
    (folder / "note.txt").write_text("no audio")
    (folder / "gone.wav").symlink_to(folder / "none")
    return folder


def test_odd_files_do_not_stop_the_others(tmp_path: Path) -> None:
    clips = open_set(odd_clips(tmp_path / "a"))
    assert [clip.name for clip in clips.clips] == [
        "000000.wav",
        "000001.wav",
        "000002.wav",
        "broken.wav",
        "short.wav",
    ]
    assert clips.rejects == {
        "._000000.wav": "its name begins with a dot",
        "gone.wav": "a broken symbolic link",
    }
    for _ in range(2):  # measured, then from the cache
        rows = measure(clips, Levels(), Share(cache=tmp_path / "cache", seconds=2.0))
        assert rows is not None
        assert list(rows.clip) == [0, 1, 2]
        assert set(rows.rejects) == {3, 4}
        assert rows.rejects[3].startswith("not an audio file")
        assert rows.rejects[4] == "0.04 s; a clip must have 2 s"


def test_a_chunk_without_any_clip_is_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melody_jax.evaluation.embed_clips.CHUNK", 2)
    clips = open_set(odd_clips(tmp_path / "a"))
    rows = measure(clips, Levels(), Share(cache=tmp_path / "cache", seconds=2.0))
    assert rows is not None
    assert list(rows.clip) == [0, 1, 2]
    for path in (tmp_path / "a").glob("00*.wav"):
        path.unlink()
    with pytest.raises(UserError, match=r"a: no clip can be measured; the first, broken\.wav: not an audio"):
        measure(open_set(tmp_path / "a"), Levels(), Share(cache=tmp_path / "cache", seconds=2.0))


def test_the_report_names_what_is_not_measured() -> None:
    described = {
        "name": "a",
        "sha256": "0" * 64,
        "clips": 2,
        "pieces": 1,
        "rejects": {"b.wav": "the file is empty"},
    }
    result: dict[str, Any] = {
        "settings": {"seconds": 2.0},
        "embedding": "levels",
        "sets": {"clips": described},
        "diversity": {"all": None},
        "signal": dict.fromkeys([*SIGNAL_TITLES, "clips_fallen_silent"], 0.0),
    }
    assert "b.wav is not measured: the file is empty" in markdown(result)


@pytest.mark.parametrize("suffix", audio.SUFFIXES)
def test_every_suffix_is_a_clip(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(audio_files.wav(2.0))
    assert [clip.name for clip in open_set(tmp_path).clips] == [f"a{suffix}"]


def prompted(folder: Path, *identifiers: str) -> dict[str, str]:
    file = folder.parent / "prompts.jsonl"
    lines = [
        json.dumps({"id": identifier, "prompt": f"prompt\u2028{i}"})
        for i, identifier in enumerate(identifiers)
    ]
    file.write_text("\n".join(lines).replace("\\u2028", "\u2028"))
    return {clip.name: clip.prompt for clip in open_set(folder, file).clips}


def test_clips_of_one_stem_have_their_own_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for name in ("a/x.wav", "b/x.wav", "y.wav", "y.flac", unicodedata.normalize("NFD", "z\u00e9.wav")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(audio_files.wav(2.0))
    (folder / "c").mkdir()
    (folder / "c" / "w.wav").write_bytes(audio_files.wav(2.0))
    by_name = prompted(folder, "a/x", "b/x.wav", "y.flac", "z\u00e9", "w.wav")
    assert by_name == {
        "a/x.wav": "prompt\u20280",
        "b/x.wav": "prompt\u20281",
        "y.flac": "prompt\u20282",
        "y.wav": "",
        "c/w.wav": "prompt\u20284",
        unicodedata.normalize("NFD", "z\u00e9.wav"): "prompt\u20283",
    }
    with pytest.raises(UserError, match=r"the id 'x' fits a/x\.wav and b/x\.wav; give the path"):
        prompted(folder, "x")
    with pytest.raises(UserError, match=r"the id 'y' fits y\.flac and y\.wav"):
        prompted(folder, "y")
    with pytest.raises(UserError, match=r"a second prompt for c/w\.wav, 'w'"):
        prompted(folder, "c/w.wav", "w")
    with pytest.warns(InputWarning, match="2 ids are no sound files in .*clips, the first: typo"):
        prompted(folder, "w", "typo", "typo2")


def test_too_few_pieces_for_judges_are_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    meta = {"id": "one", "facts": {"genre": "jazz"}, "captions": ["jazz"]}
    record = {"audio": np.frombuffer(audio.encode_flac(wave), np.uint8), "meta": records.encode_json(meta)}
    folder = tmp_path / "corpus"
    folder.mkdir()
    shard = records.write_shard(folder / records.shard_name("audio", 0, 1), [record] * 10)
    manifest = records.ShardManifest(kind="audio", settings={}, versions={}, shard_count=1, shards=(shard,))
    records.write_manifest(folder, manifest)
    monkeypatch.setattr(evaluating, "enable_compile_cache", lambda: None)
    monkeypatch.setattr(evaluating, "open_embedding", lambda *_: Levels())
    monkeypatch.setattr(evaluating, "measure", lambda *_: pytest.fail("measured first"))
    config = EvaluateConfig(
        clips=str(sounds(tmp_path / "clips", 2, 2.0)),
        judges=str(folder),
        out=str(tmp_path / "out"),
        seconds=2.0,
    )
    with pytest.raises(UserError, match="10 clips to train judges with, of which 2 are held out"):
        evaluate(config)
    with pytest.raises(UserError, match="has clips without facts"):
        evaluate(EvaluateConfig(clips=config.clips, judges=config.clips, out=config.out, seconds=2.0))
