"""The tempo head: a tempo is drawn for prompts that say none, from what they may mean."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.stages import STAGES, Batches
from helpers.tiny import tiny_networks

from melody_jax import load, release
from melody_jax.composer.facts import VOCABULARY, labels
from melody_jax.errors import UserError
from melody_jax.models import mulan, tempo_head
from melody_jax.models.tempo_head import TempoHeadConfig, draw_tempo
from melody_jax.sampling import prompts
from melody_jax.sampling.prompts import PromptEncoder
from melody_jax.sampling.request import Part, Scene, make_requests
from melody_jax.training.stages.tempo import TempoStage

CONFIG = TempoHeadConfig(embedding=mulan.TINY.embedding, controls=VOCABULARY)


def head(**logits: float) -> dict[str, Any]:
    """Parameters of a head that ignores the prompt: the classes named by "t<index>" have these logits."""
    bias = np.full(VOCABULARY.tempos + 1, -1e9, np.float32)
    for name, value in logits.items():
        bias[int(name[1:])] = value
    return {"kernel": jnp.zeros((CONFIG.embedding, len(bias))), "bias": jnp.asarray(bias)}


def encoder(params: dict[str, Any] | None) -> PromptEncoder:
    """The tiny MuLan with a head."""
    network, config = tiny_networks()["mulan"]
    tokenizer = release.load_tokenizer("mini", config.text.vocab_size)
    given = None if params is None else (params, CONFIG)
    return PromptEncoder(network, config, tokenizer, 76_800, VOCABULARY, tempo_head=given)


def tempo_token(params: dict[str, Any] | None, prompt: Any = "techno", **settings: Any) -> list[int]:
    """The tempo token of every scene of a request."""
    requests = make_requests([prompt], settings)
    (encoded,) = encoder(params).encode_requests(requests).values()
    return [int(scene.prefix_tokens[12]) for _, scene in encoded.scenes]


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    point = np.zeros(CONFIG.embedding, np.float32)
    params = head(t10=np.log(3.0), t20=0.0)
    drawn = [draw_tempo(params, CONFIG, point, seed, 1.0) for seed in range(400)]
    first = VOCABULARY.tempo(10)
    assert set(drawn) == {first, VOCABULARY.tempo(20)}
    assert drawn.count(first) / 400 == pytest.approx(0.75, abs=0.07)
    assert drawn == [draw_tempo(params, CONFIG, point, seed, 1.0) for seed in range(400)]
    sharp = [draw_tempo(params, CONFIG, point, seed, 2.0) for seed in range(400)]
    assert sharp.count(first) / 400 == pytest.approx(0.9, abs=0.05)
    assert draw_tempo(head(t60=0.0), CONFIG, point, 0, 1.0) is None


def test_a_tempo_is_said_where_nothing_says_one() -> None:
    params = head(t40=0.0)
    assert tempo_token(params) == [40]
    assert tempo_token(None) == [-1]
    assert tempo_token(head(t60=0.0)) == [-1], "music without a beat"
    assert tempo_token(params, bpm=-1.0) == [-1]
    assert tempo_token(params, bpm=60.0) == VOCABULARY.tokens({"tempo_bpm": 60.0})[:1].tolist()
    assert tempo_token(params, "techno at 150 bpm") == VOCABULARY.tokens({"tempo_bpm": 150.0})[:1].tolist()
    story = (Scene(start=3.0, prompt="house"),)
    assert tempo_token(params, story=story) == [40, 40]
    other = VOCABULARY.tokens({"tempo_bpm": 90.0})[0]
    assert tempo_token(params, story=(Scene(start=3.0, prompt="jazz, 90 bpm"),)) == [-1, other]
    sound = np.zeros(48_000, np.float32)
    assert tempo_token(params, (Part(text="techno"), Part(audio=sound))) == [-1]
    assert tempo_token(params, source=sound) == [-1]


def test_the_words_of_the_prompt_say_it_too() -> None:
    """The prefix is that of a prompt with the tempo."""
    tempo = round(VOCABULARY.tempo(40))
    drawn = encoder(head(t40=0.0)).encode_requests(make_requests(["techno"], {}))
    said = encoder(None).encode_requests(make_requests([f"techno, {tempo} bpm"], {}))
    (one,), (other,) = drawn.values(), said.values()
    np.testing.assert_array_equal(one.scenes[0][1].prefix_tokens, other.scenes[0][1].prefix_tokens)


def test_a_prompt_too_long_for_more_words_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def check(self: PromptEncoder, prompt: Any) -> None:
        checked.append(prompt)
        raise UserError("too long")

    monkeypatch.setattr(prompts.PromptEncoder, "check", check)
    assert tempo_token(head(t40=0.0)) == [-1]
    assert len(checked) == 1


def test_a_release_with_a_head_draws(tmp_path: Path) -> None:
    networks = tiny_networks()
    for name, (params, config) in networks.items():
        release.save_network(tmp_path / "plain", name, params, config, {})
        release.save_network(tmp_path / "drawing", name, params, config, {})
    release.save_network(tmp_path / "drawing", "tempo", head(t40=0.0), CONFIG, {})
    plain, drawing = (load(name, folder=tmp_path) for name in ("plain", "drawing"))
    assert plain.prompt_encoder.tempo_head is None
    assert drawing.prompt_encoder.tempo_head is not None
    assert "tempo" not in load("drawing", folder=tmp_path, networks=("mulan", "dpd", "vae")).params
    (tmp_path / "plain" / "bases.json").write_text('["drawing"]')
    assert "tempo" not in load("plain", folder=tmp_path).params, "the head of a base is for the base's model"


def test_the_target_is_around_the_tempo_or_the_last_class() -> None:
    stage: TempoStage = STAGES["tempo"]
    target = np.asarray(stage._target(jnp.array([VOCABULARY.tempo(30), np.nan])))
    assert target[0].argmax() == 30
    assert target[0, -1] == 0
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-5)
    assert target[1].argmax() == VOCABULARY.tempos


def test_items_without_facts_do_not_count() -> None:
    stage: TempoStage = STAGES["tempo"]
    network, _ = tiny_networks()["mulan"]
    batch = next(Batches(stage))
    model = tempo_head.init(stage.model, jax.random.key(0))
    unknown = {name: np.stack([value] * 4) for name, value in labels({}).items()}
    assert stage._loss(model, network, batch) == pytest.approx(np.log(61), rel=1e-5)
    assert stage._loss(model, network, batch | {"facts": unknown}) == 0


def test_a_tempo_is_a_tempo() -> None:
    with pytest.raises(UserError, match=r"bpm is -0\.5; it must be a tempo, 0 or -1"):
        make_requests(["techno"], {"bpm": -0.5})


def test_sizes_must_agree() -> None:
    with pytest.raises(UserError, match=r"model\.embedding is 7; the space of mulan has"):
        dataclasses.replace(STAGES["tempo"], model=TempoHeadConfig(embedding=7))
    with pytest.raises(UserError, match=r"stage\.networks is missing"):
        _ = STAGES["tempo"].hashes
