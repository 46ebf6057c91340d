"""Edits of the user's own music: the plan, which samples stay bit-identical, bad input."""

import numpy as np
import pytest
from helpers.tiny import PROMPTS, tiny_networks

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.errors import UserError
from melody_jax.sampling import edit, plan
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.plan import Fill
from melody_jax.sampling.request import Request, Scene, make_requests


def test_a_short_gap_has_source_on_both_sides() -> None:
    assert plan.plan_fills([(100, 110)], 200, 80, 20) == [Fill(65, 100, 110, True)]
    assert plan.plan_fills([(3, 10)], 200, 80, 20) == [Fill(0, 3, 10, True)]  # at the beginning
    assert plan.plan_fills([(190, 199)], 200, 80, 20) == [Fill(120, 190, 199, True)]


def test_a_long_gap_is_filled_from_the_left() -> None:
    fills = plan.plan_fills([(100, 180)], 300, 80, 20)
    assert fills[:2] == [Fill(40, 100, 120, False), Fill(60, 120, 140, False)]
    assert fills[2:] == [Fill(120, 140, 180, True)]  # half a window or less has source on both sides


def test_a_continuation_moves_on_by_chunks() -> None:
    short = plan.plan_fills([(30, 120)], 120, 80, 20)
    assert short == [Fill(0, 30, 80, False), Fill(20, 80, 100, False), Fill(40, 100, 120, False)]
    long = plan.plan_fills([(130, 170)], 170, 80, 20)
    assert long == [Fill(70, 130, 150, False), Fill(90, 150, 170, False)]
    assert plan.plan_fills([(0, 100)], 100, 80, 20) == [Fill(0, 0, 80, False), Fill(20, 80, 100, False)]


def test_plans_cover_every_new_token_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(80, 400))
        edges = np.sort(rng.choice(length + 1, 4, replace=False)).tolist()
        regions = [(edges[0], edges[1]), (edges[2], edges[3])]
        covered = np.zeros(length, int)
        for fill in plan.plan_fills(regions, length, 80, 20):
            assert 0 <= fill.start <= fill.first < fill.last <= fill.start + 80 <= length
            covered[fill.first : fill.last] += 1
        expected = np.zeros(length, int)
        for first, last in regions:
            expected[first:last] = 1
        np.testing.assert_array_equal(covered, expected)


def sine(seconds: float, frequency: float = 220.0, level: float = 0.3) -> np.ndarray:
    return (
        level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    ).astype("f4")


@pytest.mark.parametrize(
    ("first", "last"), [(24_000, 40_000), (100, 9_100), (0, 9_000), (50_000, 60_000), (60_000, 90_000)]
)
def test_splicing_is_bit_identical_elsewhere_and_does_not_click(first: int, last: int) -> None:
    source = sine(2.5)
    new = -sine(4.0, 330.0, 0.3)[500:]  # in mid-wave at both ends of the clip
    spliced = edit.splice(source, [(first, last)], new, SAMPLE_RATE)
    assert len(spliced) == max(len(source), last)
    np.testing.assert_array_equal(spliced[:first], source[:first])
    np.testing.assert_array_equal(spliced[last:], source[last:])
    np.testing.assert_allclose(spliced[first + 500 : last - 500], new[first + 500 : last - 500], atol=1e-6)
    steepest = (
        0.3 * 2 * np.pi * 330 / SAMPLE_RATE
    )  # of the two sines; in a fade they add up to at most sqrt(2) of one
    assert np.abs(np.diff(spliced)).max() < 1.6 * steepest
    ends = [spliced[0] == 0 or first > 0, spliced[-1] == 0 or last < len(source)]
    assert all(ends), "where the new region begins or ends the clip"


@pytest.fixture(scope="module")
def melody() -> Melody:
    from tokenizers import Tokenizer

    from melody_jax.release import load_tokenizer

    networks = tiny_networks()
    params, configs = ({name: part[i] for name, part in networks.items()} for i in (0, 1))
    words: Tokenizer = load_tokenizer(".", configs["mulan"].text.vocab_size)
    return Melody(params, configs, words, {})


def test_continuing_and_regenerating(melody: Melody) -> None:
    source = np.random.default_rng(1).normal(0, 0.1, 52_800).astype(np.float32)
    settings = {
        "source": source,
        "steps": 1,
        "seconds": [4.0, 10.0, 10.0],
        "regions": [(), ((0.5, 1.0),), ((0.5, 1.0),)],
        "keep_tokens": [False, False, True],
        "guidance_scale": 1.0,
        "lm_guidance_scale": [1.0, 1.0, 2.0],
    }
    longer, regenerated, same_tokens = melody.run(make_requests(PROMPTS[:3], settings))
    assert len(longer) == 4 * SAMPLE_RATE
    np.testing.assert_array_equal(longer[: len(source)], source)
    assert np.std(longer[len(source) :]) > 0
    region = slice(SAMPLE_RATE // 2, SAMPLE_RATE)
    for clip in (regenerated, same_tokens):
        assert len(clip) == len(source)
        changed = clip != source
        assert changed[region].mean() > 0.9
        changed[region] = False
        assert not changed.any()


def test_an_edit_does_not_depend_on_longer_ones_in_its_batch(melody: Melody) -> None:
    rng = np.random.default_rng(2)
    short, long = (rng.normal(0, 0.1, size).astype(np.float32) for size in (48_000, 60_000))
    settings = {"steps": 1, "strength": 0.5, "guidance_scale": 1.0}
    together = melody.run(make_requests(PROMPTS[:2], settings | {"source": [short, long], "seed": [3, 4]}))
    alone = melody.run(make_requests(PROMPTS[:1], settings | {"source": [short], "seed": [3]}))
    np.testing.assert_allclose(together[0], alone[0], atol=1e-4)


def test_a_small_strength_stays_close(melody: Melody) -> None:
    source = sine(3.2)
    request = Request(source=source, strength=0.01, steps=1, guidance_scale=1, lm_guidance_scale=1)
    (batch,) = melody.plan([request], {request: len(source)})
    (before,) = melody.analyse(batch, {request: source})
    encoded = melody.prompt_encoder.encode_requests([request])
    (after,) = melody.fill_windows(batch, [before], encoded)
    np.testing.assert_allclose(after.latents, before.latents, atol=0.2)
    assert np.any(after.latents != before.latents)


def test_silence_can_be_a_source(melody: Melody) -> None:
    source = np.zeros(30_000, np.float32)
    request = Request(source=source, seconds=3)
    (batch,) = melody.plan([request], {request: len(source)})
    (clip,) = melody.analyse(batch, {request: source})
    assert np.isfinite(clip.latents).all()
    assert clip.gain == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"source": np.zeros(100, np.float32)}, "at least a second"),
        ({"source": "no/such.wav"}, "no/such.wav: cannot be read .No such file"),
        ({"source": sine(3), "seconds": 2}, "must exceed the 3.00 s of the source"),
        ({"source": sine(3), "regions": ((2.0, 4.0),)}, "ends at 4.0 s; the source ends at 3.00 s"),
        ({"source": sine(3), "regions": ((2.0, 1.0),)}, "0 <= begin < end"),
        ({"source": sine(3), "regions": (2.0, 1.0)}, "0 <= begin < end"),
        ({"source": sine(3), "strength": 0.0}, "strength is 0.0"),
        ({"regions": ((0.0, 1.0),)}, "there is none"),
        (
            {"source": sine(3), "keep_tokens": True, "negative_prompt": "drums"},
            "negative_prompt is 'drums'; keep_tok",
        ),
        ({"source": sine(3), "keep_tokens": True, "temperature": 0.5}, "temperature is 0.5; keep_tok"),
        ({"source": sine(3), "keep_tokens": True, "top_k": 5}, "top_k is 5; keep_tok"),
        ({"source": sine(3), "keep_tokens": True, "top_p": 0.5}, "top_p is 0.5; keep_tok"),
        (
            {"source": sine(3), "keep_tokens": True, "lm_guidance_scale": 1.0},
            "lm_guidance_scale is 1.0; keep_tok",
        ),
        ({"source": sine(3), "strength": 0.5, "seconds": 30}, "seconds is 30; .* as long as its source"),
        ({"source": sine(3), "regions": ((1, 2),), "seconds": 3}, "seconds is 3; .* as long as its source"),
        (
            {"source": sine(3), "strength": 0.5, "story": (Scene(start=3, prompt="drums"),)},
            "a scene of the story begins at 3 s; the source ends at 3 s",
        ),
    ],
)
def test_bad_edits_are_named(melody: Melody, arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        melody.generate(PROMPTS[0], **arguments)
