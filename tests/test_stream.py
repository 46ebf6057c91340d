"""A stream is the clip, chunk by chunk: when parts come, the same sound, endless unless `seconds` is given."""

from itertools import islice

import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.sampling import decode, windows
from melody_jax.sampling.cascade import Melody

PROMPT = "a calm solo piano piece"
PLAIN = {"steps": 1, "guidance_scale": 1.0, "lm_guidance_scale": 1.0}


@pytest.mark.parametrize("seconds", [1.5, 3.2, 6.03])
def test_a_stream_is_the_clip(melody: Melody, seconds: float) -> None:
    (clip,) = melody.generate(PROMPT, seconds=seconds, seed=3, **PLAIN)
    parts = list(melody.stream(PROMPT, seconds=seconds, seed=3, **PLAIN))
    assert all(len(part) > 0 and part.dtype == np.float32 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), clip)
    endless = np.concatenate(list(islice(melody.stream(PROMPT, seed=3, **PLAIN), 8)))
    reach = (
        decode.context(melody.configs["vae"]) * melody.configs["vae"].hop
    )  # where the decoder sees the end
    inner = min(len(endless), len(clip) - reach)
    assert inner > 10_000
    np.testing.assert_allclose(endless[:inner], clip[:inner], atol=1e-4)
    assert [parts[0][0], parts[-1][-1], clip[0], clip[-1]] == [0, 0, 0, 0]
    assert np.abs(clip[[1_000, -1_000]]).max() > 0


def test_each_chunk_comes_as_soon_as_it_can(melody: Melody, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("first_window", "next_window"):
        plain = getattr(windows, name)
        monkeypatch.setattr(
            windows, name, lambda *a, name=name, plain=plain: (calls.append(name), plain(*a))[1]
        )
    stream = melody.stream(PROMPT, **PLAIN)
    assert calls == []
    first = next(stream)
    samples_after_first = 0
    assert calls == ["first_window"]
    chunk = round(melody.chunk_seconds * melody.sample_rate)
    assert len(first) >= chunk
    for part in islice(stream, 8):  # without an end
        samples_after_first += len(part)
        assert (
            samples_after_first + len(first) + 2 * chunk
            > melody.window_samples + chunk * calls.count("next_window") - 2 * chunk
        )
    assert len(calls) > 4


def test_a_long_clip_is_decoded_a_window_at_a_time(melody: Melody, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, plain = [], decode.latents_to_wave
    monkeypatch.setattr(
        decode, "latents_to_wave", lambda p, c, z, *a: (shapes.append(z.shape), plain(p, c, z, *a))[1]
    )
    short, long = (melody.generate(PROMPT, seconds=seconds, **PLAIN)[0] for seconds in (2.0, 9.0))
    assert set(shapes) == {(1, melody.configs["dpd"].frames, melody.configs["vae"].latent_width)}
    assert len(long) == 9 * melody.sample_rate
    until_fade = len(short) - 120
    np.testing.assert_allclose(long[:until_fade], short[:until_fade], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"best_of": 4}, "best_of is 4"), ({"seconds": 0}, "seconds is 0"), ({"stepz": 1}, "stepz")],
)
def test_bad_streams_are_refused_at_once(melody: Melody, settings: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        melody.stream(PROMPT, **settings)


def test_the_end_may_lie_before_the_last_stretch(melody: Melody) -> None:
    """Parts are decoded from complete chunks, of which the clip may need only some."""
    hop = melody.configs["vae"].hop
    assert hop * melody.configs["dpd"].frames == melody.window_samples
    samples = 321 * hop  # of 340 latents; their last part begins at latent 328
    assert len(melody.generate(PROMPT, seconds=samples / melody.sample_rate, **PLAIN)[0]) == samples
    samples = melody.window_samples + hop  # 100 latents, 88
    parts = list(melody.stream(PROMPT, seconds=samples / melody.sample_rate, **PLAIN))
    assert sum(map(len, parts)) == samples
    assert all(map(len, parts))
