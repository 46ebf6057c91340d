"""Sets of clips: what is result in folders and shards, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.sounds import sounds

from melody_jax import audio
from melody_jax.data import records
from melody_jax.errors import UserError
from melody_jax.evaluation.clips import Clip, open_set, pieces
from melody_jax.evaluation.sound import Sound


def test_folder_with_prompts(tmp_path: Path) -> None:
    folder = sounds(tmp_path / "a", 3)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "000001", "prompt": "slow cello"}\n\n')
    result = open_set(folder, file)
    assert [clip.name for clip in result.clips] == ["000000.wav", "000001.wav", "000002.wav"]
    assert [clip.prompt for clip in result.clips] == ["", "slow cello", ""]
    assert result.clips[0].read().samples.shape == (12_000,)
    assert result.sha256 == open_set(folder).sha256
    audio.write(folder / "000002.wav", np.zeros(12_000, np.float32))
    assert result.sha256 != open_set(folder).sha256
    assert result.name == f"a@{result.sha256[:12]}"


def test_integers_in_floats_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(24_000, 5_774.0), 24_000, "FLOAT")
    (clip,) = open_set(tmp_path).clips
    with pytest.raises(UserError, match=r"a\.wav: samples of up to 5774; floats must be in \[-1, 1\]"):
        clip.read()


@pytest.mark.parametrize(
    ("rate", "shape", "form"),
    [
        (44_100, (4_410, 2), "44.1 kHz stereo"),
        (48_000, (4_800,), "48 kHz mono"),
        (96_000, (9_600, 3), "96 kHz mono"),
        (1_000, (300, 2), "24 kHz stereo"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*3 channels:melody_jax.errors.InputWarning")
def test_files_keep_their_format(tmp_path: Path, rate: int, shape: tuple[int, ...], form: str) -> None:
    """A rate far from those of music, as a damaged header may claim it, becomes 24 kHz."""
    soundfile.write(tmp_path / "a.wav", np.full(shape, 0.25), rate, subtype="FLOAT")
    (clip,) = open_set(tmp_path).clips
    sound = clip.read()
    assert str(sound.audio_format) == form
    assert sound.samples.shape[1:] == ((2,) if form.endswith("stereo") else ())
    assert sound.seconds == pytest.approx(shape[0] / rate)


def test_prompts_of_a_batch_job(tmp_path: Path) -> None:
    folder = sounds(tmp_path / "a", 2)
    lines = [{"id": "x", "file": "000001.wav", "prompt": "jazz", "made_at": 1.0}]
    lines.append(
        {"id": "y", "file": "000000.wav", "prompt": [{"text": "piano"}], "made_at": 1.0}
    )  # no one text
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [clip.prompt for clip in open_set(folder).clips] == ["", "jazz"]


def test_shards_bring_facts(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    meta = {"id": "one", "facts": {"genre": "jazz"}, "captions": ["some jazz", "more jazz"]}
    record = {"audio": np.frombuffer(audio.encode_flac(wave), np.uint8), "meta": records.encode_json(meta)}
    shard = records.write_shard(tmp_path / records.shard_name("audio", 0, 1), [record])
    records.write_manifest(
        tmp_path,
        records.ShardManifest(kind="audio", settings={}, versions={}, shard_count=1, shards=(shard,)),
    )
    (clip,) = open_set(tmp_path).clips
    assert (clip.name, clip.prompt, clip.facts) == ("one", "some jazz", {"genre": "jazz"})
    assert np.abs(clip.read().samples - wave).max() < 1e-4


def test_pieces_are_whole_or_all_there_is() -> None:
    def cut(seconds: float) -> list[tuple[float, int]]:
        sound = Sound(np.zeros(round(seconds * 24_000), np.float32))
        return [
            (start, len(piece.samples)) for start, piece in pieces(Clip(name="a", read=lambda: sound), 2.0)
        ]

    assert cut(1.5) == [(0.0, 36_000)]
    assert cut(2.0) == [(0.0, 48_000)]
    assert cut(5.9) == [(0.0, 48_000), (2.0, 48_000)]


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    folder = sounds(tmp_path / "a", 1)
    with pytest.raises(UserError, match="no such folder"):
        open_set(tmp_path / "b")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="no sound files"):
        open_set(tmp_path / "b")
    for content, message in (
        ("\n[1]", r"p\.jsonl, line 2: '\[1\]'; it must be like"),
        ('{"id": null, "prompt": "y"}', "line 1: the id is None; it must be a text or a whole number"),
        ('{"prompt": "y"}\n\n{"id": "000000", "prompt": "y"}', "line 3: a second prompt with the id 000000"),
        ('{"id": "x", "prompt": "y"}', "none of its ids"),
    ):
        (tmp_path / "p.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            open_set(folder, tmp_path / "p.jsonl")
