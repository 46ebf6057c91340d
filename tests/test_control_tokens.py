"""Control tokens: from facts, keys and words to indices, through the batches, and into both networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jitted import denoiser, lm
from helpers.tiny import tiny_networks

from melody_jax.composer.facts import VOCABULARY
from melody_jax.composer.form import METRES
from melody_jax.composer.genres import GENRES
from melody_jax.composer.theory import MODES
from melody_jax.config_json import from_dict, to_dict
from melody_jax.control_tokens import ControlVocabulary, parse_key
from melody_jax.data.pipeline import _control_tokens
from melody_jax.data.records import encode_json
from melody_jax.errors import UserError
from melody_jax.models import dpd, lm_config
from melody_jax.models.controls import drop_controls, pad_controls, partners
from melody_jax.release import load_tokenizer
from melody_jax.sampling import plan
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.prompts import facts_of_words, with_controls
from melody_jax.sampling.request import Part, PromptLike, Request, Scene, make_requests, prompt_parts
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.stages.lm import LMStage

SMALL = ControlVocabulary(slowest=60, fastest=240, tempos=5, genres=("house", "jazz"))
LM = dataclasses.replace(lm_config.TINY, controls=SMALL)
DPD = dataclasses.replace(dpd.TINY, controls=SMALL, frames=24, blocks=1)


def test_tokens_are_indices_and_the_nearest_tempo() -> None:
    facts = {"tempo_bpm": 121.0, "key": "A", "mode": "minor", "metre": "6/8", "genre": "jazz", "mood": "sad"}
    assert SMALL.tokens(facts).tolist() == [2, 9, 1, 2, 1]
    assert SMALL.tokens({}).tolist() == [-1] * 5
    tempi = [SMALL.tokens({"tempo_bpm": bpm})[0] for bpm in (30, 51, 60, 71, 72, 84, 170, 240, 280, 300)]
    assert tempi == [-1, 0, 0, 0, 1, 1, 3, 4, 4, -1]
    for odd in ("120", True, float("nan"), None, [1]):
        assert SMALL.tokens({"tempo_bpm": odd})[0] == -1


def test_the_composer_has_a_token_for_each_of_its_facts() -> None:
    assert VOCABULARY.sizes == (60, 12, len(MODES), len(METRES), len(GENRES))
    for bpm in range(40, 241):
        token = VOCABULARY.tokens({"tempo_bpm": bpm})[0]
        assert abs(40 * 6 ** (token / 59) / bpm - 1) < 0.016
    assert from_dict(ControlVocabulary, to_dict(VOCABULARY)) == VOCABULARY


@pytest.mark.parametrize(
    ("text", "key", "mode"),
    [
        ("A minor", "A", "minor"),
        ("a minor", "A", "minor"),
        ("Bb", "A#", None),
        ("Bbm", "A#", "minor"),
        ("B", "B", None),
        ("b flat Major", "A#", "major"),
        ("F# dorian", "F#", "dorian"),
        ("C sharp minor", "C#", "minor"),
        ("Cb major", "B", "major"),
        ("Am", "A", "minor"),
        ("D♭ maj", "C#", "major"),
        ("A MIN", "A", "minor"),
        ("Eb Maj", "D#", "major"),
        ("CM", "C", "major"),
    ],
)
def test_keys(text: str, key: str, mode: str | None) -> None:
    assert parse_key(text) == {"key": key} | ({"mode": mode} if mode else {})


@pytest.mark.parametrize("text", ["H", "A minor minor", "", "5", "minor"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="key is"):
        parse_key(text)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"tempo_bpm": 400}, "bpm is 400; it must be from 60 to 240"),
        ({"mode": "locrian"}, "mode is 'locrian'; it must be one of major, minor"),
        ({"metre": "13/8"}, "metre is '13/8'"),
    ],
)
def test_values_outside_the_vocabulary_are_refused(facts: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SMALL.check(facts)
    SMALL.check({"tempo_bpm": 120, "mode": "minor", "metre": "4/4"})


def test_words_of_a_prompt() -> None:
    text = "Fast house in A minor at 128 bpm, in 3/4"
    expected = {"tempo_bpm": 128.0, "key": "A", "mode": "minor", "metre": "3/4", "genre": "house"}
    assert facts_of_words(text) == expected
    blend = (
        Part(text="calm music at 70 bpm"),
        Part(text=text, weight=0.3),
        Part(text="in C major", weight=-1),
    )
    assert facts_of_words(blend) == expected | {"tempo_bpm": 70.0}


@pytest.mark.parametrize(
    "fields",
    [{"tempos": 2.5}, {"fastest": float("inf")}, {"modes": "major"}, {"modes": ("a", "a")}, {"slowest": 0.0}],
)
def test_impossible_vocabularies_are_refused(fields: dict) -> None:
    with pytest.raises(UserError, match="it must be"):
        ControlVocabulary(**fields)


def test_no_tempo_beyond_the_last_has_a_token() -> None:
    two = ControlVocabulary(slowest=60, fastest=240, tempos=2)
    assert [two.tokens({"tempo_bpm": bpm})[0] for bpm in (60, 240, 479, 480)] == [0, 1, 1, -1]


def test_music_without_a_pulse_has_neither_tempo_nor_metre() -> None:
    facts = {"tempo_bpm": 120.0, "key": "A", "metre": "4/4", "rhythmic": False}
    for rhythmic, tempo, metre in ((False, -1, -1), (True, 2, 0)):
        record = {"meta": encode_json({"facts": facts | {"rhythmic": rhythmic}})}
        assert _control_tokens(record, SMALL).tolist() == [tempo, 9, -1, metre, -1]
    assert _control_tokens({"meta": encode_json({"facts": None})}, SMALL).tolist() == [-1] * 5


def test_each_number_of_controls_is_as_likely() -> None:
    tokens = jnp.full((20_000, 5), 3)
    dropped = drop_controls(tokens, jax.random.key(0))
    assert set(np.unique(dropped)) == {-1, 3}
    counts = np.bincount((np.asarray(dropped) == 3).sum(axis=1), minlength=6) / len(tokens)
    np.testing.assert_allclose(counts, 1 / 6, atol=0.01)


def lm_logits(params: dict, prefix: jax.Array, levels: int | None = None) -> np.ndarray:
    tokens = jnp.arange(10)[None].repeat(len(prefix), 0)
    levels_of = None if levels is None else jnp.full(len(prefix), levels)
    return np.asarray(lm.logits(params, LM, prefix, tokens, levels_of))


def test_the_language_model_reads_every_control() -> None:
    params = lm.init(LM, jax.random.key(0))
    prefix = jnp.arange(12)[None] % 8
    silent = jnp.concatenate([prefix, jnp.full((1, 5), -1)], axis=1)
    base = lm_logits(params, prefix)
    np.testing.assert_array_equal(lm_logits(params, silent), base)
    for place, size in enumerate(SMALL.sizes):
        informed = silent.at[0, 12 + place].set(size - 1)
        assert np.abs(lm_logits(params, informed) - base).max() > 1e-3
        np.testing.assert_allclose(lm_logits(params, informed, 0), lm_logits(params, prefix, 0), atol=1e-6)


def test_partners_are_others_of_the_same_kind() -> None:
    kinds = jnp.array([4, 7, 4, -1, 4, -1])
    pairs = set()
    for seed in range(50):
        partner, has_partner = partners(kinds, jax.random.key(seed))
        np.testing.assert_array_equal(has_partner, [True, False, True, False, True, False])
        pairs |= {(item, int(partner[item])) for item in (0, 2, 4)}
    assert pairs == {(0, 2), (0, 4), (2, 0), (2, 4), (4, 0), (4, 2)}


def test_prefixes_of_others_come_with_a_told_tempo() -> None:
    stage = LMStage(model=LM, other_prefix=1.0)
    genres = jnp.array([1, 1, 2, 3] * 50)
    prefix = jnp.arange(200)[:, None].repeat(12, 1)
    controls = jnp.zeros((200, 5), jnp.int32).at[:, -1].set(genres)
    made = np.asarray(stage.perturb_prompt(jnp.concatenate([prefix, controls], axis=1), jax.random.key(0)))
    assert (made[:, 0] != prefix[:, 0]).all()
    np.testing.assert_array_equal(genres[made[:, 0]], genres)
    assert (made[:, 12] == 0).all()
    assert 0.3 < (made[:, 13] == 0).mean() < 0.7
    alone = np.asarray(stage.perturb_prompt(jnp.arange(17)[None], jax.random.key(0)))
    np.testing.assert_array_equal(alone[0, :12], np.arange(12))
    for changes in ({"other_prefix": 1.1}, {"model": lm_config.TINY, "other_prefix": 0.5}):
        with pytest.raises(UserError, match=f"other_prefix is {changes['other_prefix']}"):
            dataclasses.replace(stage, **changes)


def test_a_model_without_controls_ignores_them() -> None:
    params = lm.init(lm_config.TINY, jax.random.key(0))
    prefix = jnp.arange(17)[None] % 8
    tokens = jnp.arange(10)[None]
    expected = lm.logits(params, lm_config.TINY, prefix[:, :12], tokens)
    np.testing.assert_array_equal(lm.logits(params, lm_config.TINY, prefix, tokens), expected)


def test_the_diffusion_reads_every_control_but_not_in_the_null_branch() -> None:
    params = denoiser.init(DPD, jax.random.key(0))
    rng = np.random.default_rng(0)
    given = {
        "noisy": jnp.asarray(rng.normal(size=(1, 24, DPD.latent_dim)), jnp.float32),
        "angle": jnp.full((1, 24), 0.7),
        "semantic_tokens": jnp.asarray(rng.integers(0, 64, (1, 24))),
    }
    prefix = jnp.arange(12)[None] % 8

    def run(prefix_tokens: jax.Array, *, has_condition: bool = True) -> np.ndarray:
        has = jnp.array([has_condition])
        return np.asarray(
            denoiser.velocity(params, DPD, has_condition=has, prefix_tokens=prefix_tokens, **given)
        )

    silent = pad_controls(prefix, 17)
    np.testing.assert_array_equal(run(silent), run(prefix))
    for place, size in enumerate(SMALL.sizes):
        informed = silent.at[0, 12 + place].set(size - 1)
        assert np.abs(run(informed) - run(silent)).max() > 1e-6
        np.testing.assert_array_equal(run(informed, has_condition=False), run(silent, has_condition=False))


@pytest.mark.parametrize("stage", [LMStage(model=LM), DPDStage(model=DPD)], ids=lambda stage: stage.name)
def test_training_sees_them_some_of_the_time(stage: LMStage | DPDStage) -> None:
    """The loss of one item depends on its control tokens under some keys, and not under others."""
    params = stage.init(jax.random.key(0))
    batch = {
        "semantic_tokens": jnp.zeros((1, 24), jnp.int32),
        "latents": jnp.ones((1, 24, DPD.latent_dim)),
        "prefix_tokens": jnp.zeros((1, 17), jnp.int32),
    }
    informed = batch | {"prefix_tokens": batch["prefix_tokens"].at[0, 12].set(3)}
    loss = jax.jit(lambda batch, key: stage.gradients(params, batch, key, jnp.int32(0))[1]["loss"])
    differs = [
        bool(loss(batch, key) != loss(informed, key)) for key in jax.random.split(jax.random.key(1), 16)
    ]
    assert 2 <= sum(differs) <= 14


@pytest.fixture(scope="module")
def controlled() -> Melody:
    """A tiny cascade whose language model and diffusion take control tokens."""
    networks = tiny_networks()
    networks["lm"] = (lm.init(LM, jax.random.key(0)), LM)
    config = dataclasses.replace(dpd.TINY, controls=SMALL)
    networks["dpd"] = (denoiser.init(config, jax.random.key(0)), config)
    params, configs = ({name: part[i] for name, part in networks.items()} for i in (0, 1))
    return Melody(params, configs, load_tokenizer(".", configs["mulan"].text.vocab_size), {})


def encoded_controls(melody: Melody, prompt: str, **settings: object) -> list[list[int]]:
    requests = make_requests([prompt], settings)
    encoded = melody.prompt_encoder.encode_requests(requests)[requests[0]]
    assert encoded.negative_prefix_tokens[12:].tolist() == [-1] * 5
    return [scene.prefix_tokens[12:].tolist() for _, scene in encoded.scenes]


def test_settings_outrank_the_words_of_each_scene(controlled: Melody) -> None:
    scene = Scene(start=3, prompt="jazz in C major")
    assert encoded_controls(controlled, "house at 120 bpm") == [[2, -1, -1, -1, 0]]
    assert encoded_controls(controlled, "house at 120 bpm", bpm=60, key="Am", negative_prompt="jazz") == [
        [0, 9, 1, -1, 0]
    ]
    assert encoded_controls(controlled, "house at 120 bpm", metre="3/4", story=(scene,)) == [
        [2, -1, -1, 1, 0],
        [-1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("prompt", "controls", "words"),
    [
        ("techno", {"tempo_bpm": 97.0}, ["techno, 97 bpm"]),
        ("techno at 97 bpm", {"tempo_bpm": 97.0}, ["techno at 97 bpm"]),
        ("techno at 130 bpm", {"tempo_bpm": 97.5}, ["techno at 130 bpm, 97.5 bpm"]),
        ("jazz in A minor", {"tempo_bpm": 60.0, "key": "A", "mode": "minor"}, ["jazz in A minor, 60 bpm"]),
        ("jazz", {"key": "F#", "metre": "3/4"}, ["jazz, in F#, in 3/4"]),
        (
            [Part(text="jazz"), Part(text="drums", weight=-1)],
            {"key": "C", "mode": "major"},
            ["jazz, in C major", "drums"],
        ),
    ],
)
def test_what_the_settings_say_is_also_said_in_words(prompt: PromptLike, controls: dict, words: list) -> None:
    assert [part.text for part in prompt_parts(with_controls(prompt, controls))] == words


def test_the_prefix_follows_the_tempo_that_is_told(controlled: Melody) -> None:
    encoder = controlled.prompt_encoder
    (told, plain) = requests = make_requests(["house"] * 2, {"bpm": [90, 0]})
    encoded = encoder.encode_requests(requests)
    for request, words in ((told, "house, 90 bpm"), (plain, "house")):
        np.testing.assert_array_equal(encoded[request].scenes[0][1].point, encoder.target(words))
    long = " ".join(["la"] * (controlled.configs["mulan"].text.max_length - 3))
    encoder.check_request(Request(prompt=long))
    with pytest.raises(UserError, match="shorten it"):
        encoder.check_request(Request(prompt=long, bpm=90))


def test_clips_follow_their_controls_in_any_batch(controlled: Melody) -> None:
    settings = {"seconds": 1.0, "steps": 1, "seed": 3}
    plain, slow = (controlled.generate("a song", **settings, bpm=bpm)[0] for bpm in (0, 60))
    assert not np.array_equal(plain, slow)
    both = controlled.generate(["a song"] * 2, **settings | {"seed": [3, 3]}, bpm=[0, 60])
    np.testing.assert_allclose(both[0], plain, atol=1e-4)
    np.testing.assert_allclose(both[1], slow, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bpm": 400}, "bpm is 400; it must be from 60 to 240"),
        ({"key": "A lydian"}, "mode is 'lydian'"),
        ({"metre": "9/8"}, "metre is '9/8'; it must be one of 4/4"),
    ],
)
def test_unknown_controls_are_refused_before_sampling(controlled: Melody, settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        controlled.plan([Request(prompt="any", **settings)])


def test_a_model_without_controls_says_so(melody: Melody) -> None:
    for settings in ({"bpm": 120}, {"key": "A"}, {"metre": "3/4"}):
        with pytest.raises(UserError, match=f"{next(iter(settings))} is .*no control tokens"):
            melody.plan([Request(prompt="any", **settings)])
    with pytest.raises(UserError, match="key is 'H'"):
        Request(prompt="any", key="H")
    with pytest.raises(UserError, match="bpm is 'fast'"):
        Request(prompt="any", bpm="fast")


def test_one_network_alone_may_take_them(controlled: Melody) -> None:
    networks = tiny_networks()
    for other in ("lm", "dpd"):
        params = controlled.params | {other: networks[other][0]}
        half = Melody(params, controlled.configs | {other: networks[other][1]}, controlled.tokenizer, {})
        (clip,) = half.generate("house at 120 bpm", seconds=1.0, steps=1)
        assert np.isfinite(clip).all()


def test_networks_with_different_controls_are_refused(controlled: Melody) -> None:
    other = dataclasses.replace(LM, controls=dataclasses.replace(SMALL, tempos=9))
    with pytest.raises(UserError, match="different control tokens"):
        plan.control_vocabulary(controlled.configs | {"lm": other})
