"""`sample.py` as a user starts it: a batch of clips, errors, a stream."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile


def sample(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    script = Path(__file__).parents[1] / "sample.py"
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_sample_script_writes_a_batch(releases: Path, tmp_path: Path) -> None:
    done = sample("solo piano", "--seconds", "1", "--steps", "1", "--batch", "2", "--model", "tiny", "--folder",
                  str(releases), "--out", "new/song.wav", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for i in range(2):
        info = soundfile.info(tmp_path / "new" / f"song-{i}.wav")
        assert (info.samplerate, info.channels, info.frames) == (24_000, 1, 24_000)


@pytest.mark.parametrize(
    "arguments",
    [["", "--out", "x.wav"], ["piano", "--seconds", "0"], ["piano", "--out", "song.aiff"],
     ["piano", "--stepz", "3"], ["piano", "--model", "absent"],
     ["piano", "--source", "absent.wav", "--out", "new/x.wav"]],
)  # fmt: skip
def test_sample_script_reports_errors_in_one_line(
    releases: Path, tmp_path: Path, arguments: list[str]
) -> None:
    model = [] if "--model" in arguments else ["--model", "tiny"]
    done = sample(*arguments, *model, "--folder", str(releases), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_sample_script_streams(releases: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "sample.py"
    options = ["--stream", "--steps", "1", "--guidance_scale", "1", "--lm_guidance_scale", "1"]
    options += ["--model", "tiny", "--folder", str(releases)]
    process = subprocess.Popen(
        [sys.executable, str(script), "piano", *options], stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    data = process.stdout.read(5 * 48_000)  # the stream ends when its reader closes it
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert len(data) == 5 * 48_000
    assert np.frombuffer(data, np.int16).std() > 0
    assert not list(tmp_path.iterdir())
