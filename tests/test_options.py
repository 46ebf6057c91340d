"""Options from dataclasses: flags, positional arguments, ranges, groups, suggestions."""

import dataclasses
from dataclasses import dataclass

import pytest

from melody_jax.errors import UserError
from melody_jax.options import check_fields, help_text, option, parse_options


@dataclass(frozen=True, kw_only=True)
class Inner:
    """How it is done."""

    fast: bool = True
    """Takes less time."""
    batch_size: int = 4
    """Items per step."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Makes a clip."""

    prompt: str = option("", group="what to make")
    """What is wanted."""
    seconds: float = option(10.0, above=0, most=600)
    """Length of the clip."""
    blend: tuple[str, ...] = ()
    """Other prompts."""
    solver: str = option("ddim", group="how", choices=("ddim", "heun"))
    """Numerical method."""
    stream: bool = False
    """Writes samples."""
    mesh: tuple[int, int] = (1, -1)
    """Devices."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """The rest."""

    def __post_init__(self) -> None:
        check_fields(self)


def parse(*arguments: str) -> Settings:
    return parse_options(Settings(), arguments, "melody sample", "prompt")


@pytest.mark.parametrize(
    "arguments",
    [
        ("a calm piano", "--stream", "--seconds", "20"),
        ("--stream", "a calm piano", "--seconds", "20"),
        ("--seconds", "20", "--stream", "a calm piano"),
        ("--seconds=20", "--prompt", "a calm piano", "--stream"),
        ("--seconds=20", "--stream", "--", "a calm piano"),
    ],
)
def test_a_prompt_stands_anywhere(arguments: tuple[str, ...]) -> None:
    settings = parse(*arguments)
    assert (settings.prompt, settings.stream, settings.seconds) == ("a calm piano", True, 20)


def test_flags_and_names() -> None:
    assert parse("--stream").stream is True
    assert parse("--no-stream").stream is False
    assert parse("--inner.no-fast").inner.fast is False
    assert parse("--inner.fast").inner.fast is True
    assert parse("--inner.no_fast").inner.fast is False
    assert parse("--inner.batch-size", "2") == parse("--inner.batch_size=2")
    assert parse("--mesh", "-1", "2", "a prompt").mesh == (-1, 2)
    assert parse("--blend", "a=1", "b=2", "--stream").blend == ("a=1", "b=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--duration", "3"), r"unknown option --duration; did you mean --seconds\?"),
        (("--length=3",), r"unknown option --length; did you mean --seconds\?"),
        (("--batch_size", "3"), r"did you mean --inner.batch-size\?"),
        (("--no-streem",), r"did you mean --stream\?"),
        (("-s",), "unknown option -s; --help lists the options"),
        (("--seconds", "0"), "seconds is 0.0; it must be above 0 and at most 600"),
        (("--solver", "euler"), "solver is euler; it must be one of ddim, heun"),
        (("a", "b"), "unexpected argument 'b' after 'a'; quote a prompt of several words"),
        (("--stream=yes",), "--stream takes no value: write --stream or --no-stream"),
        (("--no-seconds",), "unknown option --no-seconds"),
        (("jazz", "--prompt", "techno"), "--prompt is set twice, to techno and to jazz; leave one out"),
        (("--seconds", "3", "--seconds=5"), "--seconds is set twice, to 3.0 and to 5.0; leave one out"),
        (("--stream", "--no-stream"), "--stream is set twice, to True and to False"),
        (("--inner.batch-size", "2", "--inner.batch_size", "2"), "--inner.batch-size is set twice"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def test_help_has_groups_ranges_and_defaults() -> None:
    words = " ".join(help_text(Settings(), "melody sample", "prompt").split())
    assert words.startswith(
        "usage: melody sample [PROMPT] [options] Makes a clip. what to make: --prompt TEXT"
    )
    assert "--seconds FLOAT Length of the clip. (above 0 and at most 600; default 10.0)" in words
    assert "how: --solver {ddim,heun} Numerical method. (default ddim) --stream Writes samples." in words
    assert "--inner.* (The rest): --inner.no-fast Takes less time. (default --inner.fast)" in words
    assert "--mesh INT INT Devices. (default 1 -1)" in words
