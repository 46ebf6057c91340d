"""Melody tokens: from sounds and composed tunes, through the batches, into the language models, and in MusicLM."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from helpers.jitted import lm
from helpers.musiclm import following_networks, musiclm_networks, with_melody

from melody_jax.cli import run
from melody_jax.composer import compose, tune
from melody_jax.data.pipeline import _feature_item
from melody_jax.data.records import encode_json
from melody_jax.errors import UserError
from melody_jax.melody_tokens import NONE, SILENT, melody_of_meta, melody_tokens
from melody_jax.models import decoding, lm_config
from melody_jax.models.controls import drop_melody, melody_ids
from melody_jax.release import load_tokenizer
from melody_jax.sampling.request import make_requests
from melody_jax.systems import musiclm
from melody_jax.systems.musiclm import MusicLM
from melody_jax.training.stages.acoustic import AcousticStage
from melody_jax.training.stages.lm import LMStage

RATE = 24_000
SETTINGS = {"seed": 3, "lm_guidance_scale": 1.0}
LM = dataclasses.replace(lm_config.TINY, melody_span=1, layers=1)


def tone(pitch: float, seconds: float, harmonics: int = 5) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    parts = [
        np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * h * time) / h for h in range(1, harmonics + 1)
    ]
    return (0.2 * np.sum(parts, axis=0)).astype(np.float32)


@pytest.mark.parametrize("pitch", [45, 60.3, 66, 83])
@pytest.mark.parametrize("harmonics", [1, 5])
def test_the_token_of_a_tone_is_its_pitch_class(pitch: float, harmonics: int) -> None:
    wave = np.concatenate([tone(pitch, 1, harmonics), np.zeros(RATE, np.float32)])
    tokens = melody_tokens(wave)
    assert len(tokens) == 50
    assert set(tokens[1:23]) == {round(pitch) % 12}
    assert set(tokens[28:]) == {SILENT}
    np.testing.assert_array_equal(melody_tokens(0.1 * wave), tokens)


def test_silence_and_short_sounds() -> None:
    assert melody_tokens(np.zeros(959, np.float32)).tolist() == []
    assert set(melody_tokens(np.zeros(RATE, np.float32))) == {SILENT}


@pytest.mark.parametrize("seed", [0, 3, 6])
def test_the_tune_of_a_piece_is_its_melody(seed: int) -> None:
    piece = compose.compose(seed, 10.0, split="train")
    tokens = np.array(tune.tune_tokens(piece))
    times = (np.arange(len(tokens)) + 0.5) * 0.04 / piece.seconds_per_beat
    notes = [note for track in piece.tracks if track.role == "melody" for note in track.notes]
    sounding = [{n.pitch % 12 for n in notes if n.start <= t < n.start + n.duration} for t in times]
    right = [token in classes for token, classes in zip(tokens, sounding, strict=True) if classes]
    assert len(tokens) == 250
    assert np.mean(right) > 0.9
    assert tune.tune_tokens(piece) == tokens.tolist()
    assert tune.tune_tokens(dataclasses.replace(piece, tracks=())) == []


def test_a_melody_is_stored_and_cropped_with_its_tokens() -> None:
    record = {
        "meta": encode_json({"id": "a", "melody": list(range(12))}),
        "semantic_tokens": np.arange(20, dtype=np.int16),
        "latents": np.zeros((20, 2), np.float16),
        "prefix_tokens": np.zeros((1, 1, 12), np.int16),
        "window_starts": np.zeros(1, np.int32),
        "text_prefix_tokens": np.zeros((0, 12), np.int16),
    }
    shape = dataclasses.replace(LMStage(model=LM).features, semantic_ids=0, prefix_ids=0)
    item = _feature_item(record, np.random.default_rng(0), 8, 0.0, 0.0, shape)
    expected = np.where(item["semantic_tokens"] < 12, item["semantic_tokens"], NONE)
    np.testing.assert_array_equal(item["melody"], expected)
    assert melody_of_meta({}, 2).tolist() == [NONE, NONE]
    for bad in ([13], "C D E", [0.5], [True]):
        with pytest.raises(UserError, match=r"record 'b' has a melody that is not a list of 0 to 12"):
            melody_of_meta({"id": "b", "melody": bad}, 3)


def test_ids_follow_the_time_of_the_codes() -> None:
    melody = jnp.array([[5, NONE]])
    assert melody_ids(melody, 1, 6, 2).tolist() == [[5, 5, 13, 13, 13, 13]]
    assert melody_ids(melody, 1, 1, 2).tolist() == [[5]]
    assert melody_ids(None, 2, 2, 1).tolist() == [[13, 13]] * 2


def test_some_melodies_are_dropped_and_some_end() -> None:
    melody = jnp.ones((400, 10), jnp.int32)
    dropped = drop_melody(melody, jnp.arange(400) < 100, jax.random.key(0))
    assert (dropped[:100] == NONE).all()
    lengths = np.asarray((dropped[100:] != NONE).sum(axis=1))
    assert 40 <= (lengths < 10).sum() <= 110
    assert all((np.diff(row) <= 0).all() for row in np.asarray(dropped))


def test_a_melody_changes_what_is_predicted_at_its_time() -> None:
    params = with_melody(LM, 0)
    prefix = jnp.zeros((1, 12), jnp.int32)
    tokens = jnp.arange(8)[None]
    melody = jnp.full((1, 8), 4)
    whole = lm.logits(params, LM, prefix, tokens, None, None, melody)
    changed = lm.logits(params, LM, prefix, tokens, None, None, melody.at[0, 5].set(7))
    np.testing.assert_array_equal(whole[:, :5], changed[:, :5])
    assert (np.abs(whole - changed)[0, 5:].max(axis=1) > 1e-3).all()
    absent = lm.logits(params, LM, prefix, tokens)
    np.testing.assert_array_equal(absent, lm.logits(params, LM, prefix, tokens, None, None, melody[:, :0]))


@pytest.mark.parametrize("primer", [0, 3])
def test_decoding_follows_the_melody_as_training_does(primer: int) -> None:
    """Greedy tokens are the best of the full forward pass, in any batch."""
    params = with_melody(LM, 0)
    prefix = jnp.arange(24).reshape(2, 12) % 8
    melody = jnp.array([[0, 2, 4, 5, 7, 9, 11, SILENT], [NONE] * 8])
    keys = jax.random.split(jax.random.key(0), 2)
    begun = jnp.tile(jnp.arange(primer), (2, 1))
    settings = {"temperature": 0.0, "primer": begun}
    made = decoding.generate(params, LM, prefix, keys, 8, melody=melody, **settings).tokens
    scores = lm.logits(params, LM, prefix, made, None, None, melody)
    np.testing.assert_array_equal(scores.argmax(axis=-1)[:, primer:], made[:, primer:])
    free = decoding.generate(params, LM, prefix, keys, 8, **settings).tokens
    assert (free[0] != made[0]).any()
    np.testing.assert_array_equal(free[1], made[1])
    guided = decoding.generate(
        params, LM, prefix, keys, 8, guidance_scale=1.5, melody=melody, **settings
    ).tokens
    null = jnp.full_like(prefix, -1)
    scores = lm.logits(params, LM, null, guided)
    scores += 1.5 * (lm.logits(params, LM, prefix, guided, None, None, melody) - scores)
    np.testing.assert_array_equal(scores.argmax(axis=-1)[:, primer:], guided[:, primer:])


def test_training_learns_a_tune() -> None:
    """Tokens that are their melody are predicted from it."""
    stage = LMStage(model=dataclasses.replace(LM, recall=False), melody_dropout=0.0, prefix_dropout=0.0)
    params = {"model": lm.init(stage.model, jax.random.key(0))}
    gradients = jax.jit(stage.gradients)
    optimiser = optax.adam(0.01)
    state = optimiser.init(params)

    def batch(seed: int) -> dict:
        melody = jax.random.randint(jax.random.key(seed), (16, 12), 0, 13)
        return {"prefix_tokens": jnp.zeros((16, 12), jnp.int32), "semantic_tokens": melody, "melody": melody}

    for step in range(60):
        grads, _ = gradients(params, batch(step), jax.random.key(step), jnp.int32(step))
        updates, state = optimiser.update(grads, state)
        params = optax.apply_updates(params, updates)
    metrics = jax.jit(stage.evaluate)(params, batch(1_000), jax.random.key(0))
    assert metrics["loss"] < 1.0 < metrics["loss_no_melody"]


@pytest.mark.parametrize(
    ("part", "span"),
    [("coarse", 3), ("fine", 1)],
)
def test_a_melody_lasts_as_long_as_its_codes(part: str, span: int) -> None:
    stage = musiclm_networks()[part][1]
    with pytest.raises(UserError, match=f"melody_span is {span}"):
        AcousticStage(
            part=part,
            model=dataclasses.replace(stage, melody_span=span),
            coarse_levels=2,
            frames_per_token=1,
        )
    with pytest.raises(UserError, match="melody_span is 2; it must be 0 or 1"):
        LMStage(model=dataclasses.replace(LM, melody_span=2))
    with pytest.raises(UserError, match="tokens_per_pass 1"):
        dataclasses.replace(lm_config.TINY, recall=False, tokens_per_pass=2, melody_span=1)


@pytest.fixture(scope="module")
def system() -> MusicLM:
    """A tiny MusicLM whose semantic and coarse model follow a melody."""
    made = following_networks()
    params, configs = ({name: part[i] for name, part in made.items()} for i in (0, 1))
    return MusicLM(params, configs, {}, load_tokenizer(".", configs["mulan"].text.vocab_size))


def test_musiclm_follows_a_melody_in_any_batch(system: MusicLM) -> None:
    """Two windows and a half, of which the tune lasts the first 1.2 s."""
    melody = tone(60, 1.2)
    settings = SETTINGS | {"seconds": 1.4, "seed": 3}
    (free,) = system.generate("piano", **settings)
    (led,) = system.generate("piano", melody=melody, **settings)
    assert not np.array_equal(free, led)
    both = system.generate(["piano"] * 2, melody=[None, melody], **settings | {"seed": [3, 3]})
    np.testing.assert_allclose(both[0], free, atol=1e-4)
    np.testing.assert_allclose(both[1], led, atol=1e-4)
    stream = np.concatenate(list(system.stream("piano", melody=melody, **settings)))
    np.testing.assert_array_equal(stream, led)
    (other,) = system.generate("piano", melody=np.concatenate([tone(60, 1), tone(64, 0.2)]), **settings)
    assert not np.array_equal(other, led)


def test_a_tune_is_read_once(system: MusicLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tune.wav"
    soundfile.write(path, tone(60, 1.2), RATE)
    reads = []
    read = musiclm.read_audio
    monkeypatch.setattr(musiclm, "read_audio", lambda *args: (reads.append(args[0]), read(*args))[1])
    requests = make_requests(["piano"] * 3, {"melody": path, "seconds": [0.5, 1.0, 1.2], "best_of": 2})
    rows = [(request, number) for request in requests for number in range(2)]
    for request in requests:
        system.check_inputs(request)
    tokens = system.melodies(rows)
    assert len(reads) == 1
    np.testing.assert_array_equal(tokens, np.tile(melody_tokens(tone(60, 1.2)), (6, 1)))
    soundfile.write(path, tone(64, 1.5), RATE)
    assert set(system.tune(requests[0])) == {4}


def test_a_long_tune_is_analysed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.concatenate([tone(60, 1), 0.3 * tone(64, 1), np.zeros(RATE, np.float32), tone(67, 0.5)])
    tokens = melody_tokens(wave)
    sizes = []
    transform = np.fft.rfft
    monkeypatch.setattr(np.fft, "rfft", lambda frames: (sizes.append(len(frames)), transform(frames))[1])
    monkeypatch.setattr("melody_jax.melody_tokens.BLOCK", 20)
    np.testing.assert_array_equal(melody_tokens(wave), tokens)
    assert sizes == [20, 20, 20, 20, 7]


@pytest.mark.parametrize(
    ("melody", "says"),
    [("missing.wav", "missing.wav"), (np.zeros(100, np.float32), "at least a second"), (5, "melody is 5")],
)
def test_bad_melodies(system: MusicLM, melody: object, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        system.generate("piano", melody=melody, **SETTINGS)
    assert "\n" not in str(caught.value)


def test_who_follows_no_melody_says_so(melody) -> None:
    with pytest.raises(UserError, match="MeLoDy follows no melody, MusicLM does"):
        melody.generate("piano", seconds=1, melody=tone(60, 1))
    with pytest.raises(UserError, match=r"melody is tune\.wav; MeLoDy follows no melody"):
        run(["sample", "piano", "--melody", "tune.wav", "--out", "a.wav"])
    made = musiclm_networks()
    params, configs = ({name: part[i] for name, part in made.items()} for i in (0, 1))
    deaf = MusicLM(params, configs, {}, load_tokenizer(".", configs["mulan"].text.vocab_size))
    with pytest.raises(UserError, match="follows no melody, train one"):
        deaf.generate("piano", seconds=1, melody=tone(60, 1))
