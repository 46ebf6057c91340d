"""Prompt files: what a line may hold, which defaults it takes, and bad lines."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.batch_jobs import DEFAULTS, job, run, write_lines

from melody_jax import load
from melody_jax.errors import UserError
from melody_jax.sampling import prompt_file
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.request import Request


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    prompt = "a\u2028b\u0085c\x1cd"
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(f'{{"prompt": "{prompt[:5]}"}}\r\n\r\n{{"prompt": "z"}}'.encode())
    lines = prompt_file.read_prompt_file(path, {})
    assert [(line.number, line.request.prompt) for line in lines] == [(1, prompt[:5]), (3, "z")]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (
            [{"prompt": "a"}, "", {"prompt": "b", "steps": 0}, {"prompt": ""}],
            r"line 3: steps is 0.*and 1 more bad line",
        ),
        (["{nonsense"], "line 1: not JSON"),
        (["[]"], "must be an object with a"),
        ([{"text": "a"}], "unknown setting 'text'"),
        ([{"seconds": 3}], "there is no prompt; describe the music"),
        ([{"prompt": "a", "regions": [3, 5]}], r"regions are \[3, 5\]"),
        ([{"source": "absent.wav", "prompt": "a"}], r"absent\.wav: cannot be read"),
        ([{"prompt": "a", "stepz": 3}], "'stepz'.*'steps'"),
        ([{"prompt": "a", "steps": [1, 2]}], r"steps is \[1, 2\]; it must be a single value"),
        ([{"prompt": "a", "id": "../up"}], "id '../up' is not a valid file name"),
        ([{"prompt": "a", "id": ".hidden"}], "id '.hidden' is not a valid file name"),
        ([{"prompt": "a", "id": "x" * 101}], "is not a valid file name"),
        (
            [{"prompt": "a", "id": "A"}, {"prompt": "b", "id": "a"}],
            "line 2: id 'a' is already used by an earlier line",
        ),
        ([{"prompt": "very " * 500}], "500 word pieces"),
        ([{"prompt": [{"text": "a", "wight": 2}]}], "part has 'wight'"),
        ([{"prompt": [{"audio": "absent.wav"}]}], r"absent\.wav: cannot be read"),
        ([{"prompt": "a", "story": [{"at": 1}]}], "story is .* that have at and prompt"),
        (["[" * 100_000], "line 1: not JSON .nested too deeply"),
        (['{"prompt": "a", "seed": ' + "9" * 5000 + "}"], "line 1: not JSON"),
        ([{"prompt": "a", "seed": 2**64}], "seed is 18446744073709551616; it must be from -1 to"),
        ([{"prompt": "a", "seed": True}], "seed is True"),
        ([{"prompt": "a", "seed": 1.5}], "seed is 1.5"),
        ([{"prompt": "a", "seconds": 1e-5}], "seconds is 1e-05; it must be at least one sample"),
        ([{"prompt": "a", "seconds": 1e400}], "seconds is inf"),
        ([{"prompt": "a", "keep_tokens": "no"}], "keep_tokens is 'no'; it must be true or false"),
        ([{"prompt": "a", "negative_prompt": 5}], "negative_prompt is 5; it must be a text"),
        ([{"prompt": "a", "negative_prompt": None}], "negative_prompt is None; it must be a text"),
        ([{"prompt": "a", "steps": None}], "steps is None; it must be a whole number"),
        ([{"prompt": "a", "solver": 5}], "solver is 5; it must be a text"),
        ([{"prompt": None}], "there is no prompt; describe the music"),
        ([{"prompt": [{"text": 5}]}], "text is 5; it must be a text"),
        ([{"prompt": [{"text": None, "audio": None}]}], "text is None"),
        ([{"prompt": [{"audio": None}]}], "has text or audio, one of the two"),
        ([{"prompt": [{"audio": 5}]}], "audio is 5; it must be the name of a sound file"),
        ([{"prompt": "a", "source": 5}], "source is 5; it must be the name of a sound file"),
        ([{"prompt": "a", "source": ""}], "source is ''"),
        ([{"prompt": "a", "source": "/dev/zero"}], "/dev/zero: not a regular file"),
        ([{"prompt": "a", "source": "a\0b"}], "cannot be read"),
        ([{"prompt": "", "source": None}], "prompt '' is empty"),
        (['{"prompt": "a \\ud83d"}'], "not valid Unicode: character 3 is half of a surrogate pair"),
        (['{"prompt": "a", "negative_prompt": "\\udc00"}'], "negative_prompt .* is not valid Unicode"),
        ([{"prompt": "a", "id": None}], "id None is not a valid file name"),
        ([{"prompt": "a", "id": ["b"]}], "is not a valid file name"),
        ([{"prompt": "a", "story": [{"at": "x", "prompt": "b"}]}], "start is 'x'; it must be a number"),
        ([{"prompt": "a", "seed": "7"}], "seed is '7'"),
        (
            [{"prompt": "a", "story": [{"at": 20, "prompt": "b"}]}],
            "line 1: a scene of the story begins at 20 s",
        ),
        ([], "no prompts"),
    ],
)
def test_bad_lines_are_named_before_any_work(melody: Melody, tmp_path: Path, lines: list, named: str) -> None:
    config = job(tmp_path, lines)
    with pytest.raises(UserError, match=named):
        run(melody, config)
    assert not config.out.exists()


def test_bad_sources_are_named_before_any_work(releases: Path, tmp_path: Path) -> None:
    editor = load("tiny", folder=releases, networks=("mulan", "lm", "dpd", "vae", "tokenizer"))
    soundfile.write(tmp_path / "loud.wav", np.full(48_000, 20_000.0), 24_000, "FLOAT")
    config = job(tmp_path, [{"prompt": "a"}, {"prompt": "a", "source": "loud.wav"}])
    with pytest.raises(
        UserError, match=r"line 2: a source of .*loud\.wav, 48000 samples: samples of up to 20000"
    ):
        run(editor, config)
    assert not config.out.exists()


def test_a_control_scale_is_for_the_lines_with_a_key(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", [{"prompt": "a", "bpm": 120.0}, {"prompt": "b", "key": "A minor"}]
    )
    lines = prompt_file.read_prompt_file(path, DEFAULTS | {"control_scale": 4.0})
    assert [line.request.control_scale for line in lines] == [3.0, 4.0]


def test_a_default_is_for_the_lines_that_it_has_an_effect_on(tmp_path: Path) -> None:
    """A default for other lines is no mistake; one for no line is, and so is a line's own setting without effect."""
    changed = {"prompt": "a", "source": "mine.wav", "keep_tokens": True}
    soundfile.write(tmp_path / "mine.wav", np.zeros(24_000), 24_000)
    given = {
        "temperature": 0.5,
        "top_k": 7,
        "negative_prompt": "drums",
        "lm_guidance_scale": 3.0,
        "seconds": 5.0,
    }
    path = write_lines(tmp_path / "a.jsonl", [changed, {"prompt": "b"}])
    first, second = (line.request for line in prompt_file.read_prompt_file(path, given))
    assert {name: getattr(first, name) for name in given} == {name: getattr(Request, name) for name in given}
    assert {name: getattr(second, name) for name in given} == given
    write_lines(path, [changed])
    for name, value in (*given.items(), ("control_scale", 5.0)):
        with pytest.raises(UserError, match=rf"{name} is {value!r}, but no line of .*a\.jsonl uses it"):
            prompt_file.read_prompt_file(path, {name: value})
    write_lines(path, [changed | {"top_p": 0.5}])
    with pytest.raises(UserError, match=r"line 1: top_p is 0\.5; keep_tokens leaves nothing"):
        prompt_file.read_prompt_file(path, {})
    write_lines(path, [{"prompt": "a", "bpm": 90.0}])
    with pytest.raises(UserError, match=r"control_scale is 5\.0, but no line of .* uses it"):
        prompt_file.read_prompt_file(path, {"control_scale": 5.0})
