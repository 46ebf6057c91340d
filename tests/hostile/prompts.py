"""Prompt files with values of any kind and broken lines, and the options of `melody sample` with any values."""

import json
import typing
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.kind import Kind
from melody_jax.options import options_of, parse_options
from melody_jax.sampling.prompt_file import CLIP_ID, read_prompt_file
from melody_jax.sampling.request import make_requests
from melody_jax.systems import command

FIELDS = (
    "prompt", "id", "seed", "steps", "seconds", "story", "regions", "source", "strength", "keep_tokens", "best_of",
    "negative_prompt", "schedule", "solver", "guidance_scale", "lm_guidance_scale", "temperature", "top_k", "top_p",
    "bpm", "key", "metre", "control_scale", "guidance_rescale",
    "text", "",
)  # fmt: skip
ODD = (
    None, True, False, -1, 0, 1, 2**31, 2**32, 2**64 - 1, 2**64, 10**400, 0.5, 1e-5, 1e308, float("inf"),
    float("nan"), "", " ", "a", "-", "3-5", "5-3", "20=techno", "\u2028", "\x85", "\ud83d", "a" * 5000, "\0",
    "/dev/zero", "/", "..", "🎻", [], {}, [[]], [[0, 1]], [[1, 1.00001]], [{"at": 1, "prompt": "b"}],
    [{"text": "a", "weight": 2}, {"audio": None}], [{"text": 5}], [{"audio": "a.wav"}],
)  # fmt: skip
"""Values that some field takes, and values that few expect."""
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(("text", "audio", "weight", "at", "prompt", "x")), inner, max_size=3
            ),
        ),
        max_leaves=6,
    ),
)
VALID = (
    b'{"prompt": "slow sad cello", "id": "cello"}\n{"prompt": "bossa nova", "seconds": 30, "seed": 9}\n'
    b'{"prompt": [{"text": "piano", "weight": 2}], "story": [{"at": 20, "prompt": "techno"}], "steps": 3, '
    b'"seconds": 30}\n'
)


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    """A file of one to three lines, most of them objects with a prompt and one other field."""
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        line: Any = draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=draw(st.integers(0, 2))))
        if draw(st.integers(0, 7)):
            line["prompt"] = draw(st.one_of(st.just("a waltz"), st.text(min_size=1, max_size=20)))
        lines.append(json.dumps(line, ensure_ascii=draw(st.booleans())))
    ending = draw(st.sampled_from(("\n", "\r\n", "\n\n", "\u2028")))
    return ending.join(lines).encode("utf-8", "surrogatepass")


def _files() -> st.SearchStrategy[bytes]:
    deep = st.sampled_from((b"[" * 100_000, b'{"prompt": ' * 10_000, b'{"seed": ' + b"9" * 5000 + b"}"))
    return st.one_of(_lines(), _lines(), mutated(VALID, len(VALID)), deep)


def read(data: bytes, folder: Path) -> None:
    """Reads a prompt file; the lines that are accepted have valid ids and settings that JSON can hold."""
    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    lines = read_prompt_file(path, {"seconds": 1.0})
    assert lines
    for line in lines:
        assert CLIP_ID.fullmatch(line.clip_id)
        assert 0 <= line.request.seed < 2**64
        assert line.number <= data.count(b"\n") + 1
        json.dumps(line.settings, allow_nan=False).encode()


WORDS = (
    "", " ", "a", "-1", "0", "1", "3", "1e5", "1e-5", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "٣", "½", "True",
    "None", "none", "--", "--help", "-h", "-", "=", "a=", "=1", "a=1", "a=nan", "3-5", "-3-5", "5-3", "3-", "nan-nan",
    "20=techno", "\0", "\udcff", "x" * 5000, "/dev/zero", "song.wav", "song", "a/b/c.flac", "9" * 5000,
)  # fmt: skip


def _arguments() -> st.SearchStrategy[list[str]]:
    names = [entry.shown() for entry in options_of(command.SampleConfig())]
    word = st.one_of(
        st.sampled_from(WORDS), st.text(max_size=12), st.integers().map(str), st.floats().map(str)
    )
    option = st.one_of(st.sampled_from(names), st.text(max_size=8).map("--{}".format))
    pair = st.one_of(
        st.tuples(option, word),
        st.builds("{}={}".format, option, word).map(lambda text: (text,)),
        st.tuples(word),
    )
    return st.lists(pair, max_size=4).map(lambda pairs: [part for pair in pairs for part in pair])


def parse(arguments: list[str], folder: Path) -> None:
    """Parses options of `melody sample`; what is accepted makes requests, and every option has its type."""
    try:
        config = parse_options(command.SampleConfig(), arguments, "melody sample", "prompt")
    except SystemExit:  # the help
        return
    hints = typing.get_type_hints(type(config))
    assert all(
        type(getattr(config, name)) is kind for name, kind in hints.items() if kind in (int, float, str)
    )
    make_requests([command._prompt(config)], command._settings(config))


KINDS = {
    "prompts file": Kind(strategy=_files, run=read),
    "options of sample": Kind(strategy=_arguments, run=parse),
}
