"""Options of `melody sample` that have no effect, or cannot be meant, are refused before a model is loaded."""

from pathlib import Path

import numpy as np
import pytest

from melody_jax.cli import run
from melody_jax.errors import UserError
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.request import Request


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x", "--suffix", ".flac"], "--suffix needs --prompts"),
        (["x", "--processes", "4"], "--processes needs --prompts"),
        (["x", "--replace"], "--replace needs --prompts"),
        (["x", "--audio-weight", "1"], "--audio-weight needs --audio-prompt"),
        (["x", "--stream", "--out", "y.wav"], "--out is y.wav; --stream writes to standard output"),
        (
            ["x", "--source", "y.wav", "--strength", "0.5", "--seconds", "10"],
            "--seconds is 10; with --regions",
        ),
        (["x", "--story", "20=techno"], "a scene of the story begins at 20 s; the clip ends at 10 s"),
        (["--prompts", "p.jsonl"], "--out is song.wav; with --prompts it must name a folder"),
        (["x", "--batch", "2", "--out", "."], "the name must end in one of"),
        (["x", "--batch", "2", "--out", "/"], "the name must end in one of"),
    ],
)
def test_options_without_effect(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(["sample", *options])
    assert not list(tmp_path.iterdir())


def test_sources_in_arrays_are_checked(melody: Melody) -> None:
    source = np.zeros(48_000, np.float32)
    with pytest.raises(UserError, match="the tokenizer was not loaded"):
        melody.check_inputs(Request(prompt="x", source=source))
