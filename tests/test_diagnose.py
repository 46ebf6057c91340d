"""`melody diagnose` names the network that loses most, on synthetic scores and end to end."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.swapped import assert_ground_truth_enters_each_stage

from melody_jax.composer import soundfont
from melody_jax.errors import UserError
from melody_jax.evaluation import clip_features, composed_prompts, diagnose, group_judge, stage_swap
from melody_jax.evaluation.diagnose import DiagnoseConfig
from melody_jax.evaluation.entry_stages import STAGES
from melody_jax.evaluation.losses import markdown, summarise
from melody_jax.evaluation.npz import write_npz
from melody_jax.sampling.cascade import Melody

MELODY = STAGES["melody"]
NAMES = ("truth", *(stage.name for stage in MELODY))


def test_the_network_that_loses_is_named() -> None:
    rng = np.random.default_rng(0)
    groups = [name for name in ("jazz", "metal") for _ in range(40)]
    right = {"truth": 0.95, "vae": 0.9, "dpd": 0.5, "lm": 0.5, "text": 0.5, "shuffled": 0.05}
    draws = rng.random(80)
    scores = {stage: {"group": (draws < share).astype(float), "tempo": np.where(draws < 0.1, np.nan, 1.0),
                      "cycle": np.full(80, share)} for stage, share in right.items()}  # fmt: skip
    scores["shuffled"]["tempo"][:] = 0.25
    scores["lm"]["tempo"] *= np.arange(80) % 5 > 0
    truth = rng.normal(size=(80, 4))
    points = {stage: truth + 0.1 * place + 3.0 * (place >= 2) for place, stage in enumerate(NAMES)}
    result = summarise(scores, points, groups, 50, MELODY)
    assert result["largest"][0]["network"] == "tokenizer and diffusion"
    assert {one["score"] for one in result["largest"][:2]} == {"group", "cycle"}
    losses = {(one["stage"], one["score"]): one["lost"] for one in result["losses"]}
    assert losses["dpd", "group"].low > 0.2
    assert losses["lm", "group"].value == 0
    assert losses["lm", "tempo"].value == pytest.approx(0.2, abs=0.05)
    assert losses["dpd", "frechet"].low > 30
    assert losses["dpd", "frechet"].value == pytest.approx(4 * (3.2**2 - 0.1**2), rel=0.01)
    assert result["stages"]["dpd"]["frechet"].value == pytest.approx(4 * 3.2**2, rel=0.01)
    assert np.mean([result["by_group"]["dpd"][name] for name in ("jazz", "metal")]) == pytest.approx(
        result["stages"]["dpd"]["group"].value
    )
    text = markdown(result | {"prompts": {"count": 80}, "embedding": "none"}, MELODY)
    assert "1. tokenizer and diffusion" in text
    assert MELODY[1].advice in text
    other_seed = summarise(scores, points, groups, 50, MELODY, seed=1)
    assert other_seed["stages"]["dpd"]["group"] != result["stages"]["dpd"]["group"]
    more = summarise(scores, points, groups, 60, MELODY)
    assert more["losses"][0]["lost"] != result["losses"][0]["lost"]


def test_one_group_without_a_beat_has_no_control_and_no_tempo() -> None:
    scores = {
        stage: {"group": np.ones(4), "tempo": np.full(4, np.nan), "cycle": np.arange(4.0)} for stage in NAMES
    }
    points = {stage: np.random.default_rng(0).normal(size=(4, 2)) for stage in NAMES}
    result = summarise(scores, points, ["jazz"] * 4, 20, MELODY)
    assert list(result["stages"]) == list(NAMES)
    assert result["largest"] == []
    text = markdown(result | {"prompts": {"count": 4}, "embedding": "none"}, MELODY)
    assert "All prompts have the same group, so no clips are judged against prompts of other groups." in text
    assert "shuffled" not in text


def test_from_end_to_end(tmp_path: Path, releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def swapped(melody: Melody, waves: np.ndarray, texts: list[str], *_: float) -> dict[str, np.ndarray]:
        assert len(texts) == len(waves)
        return {stage: waves + rng.normal(0, 0.1, waves.shape).astype(np.float32) for stage in NAMES[1:]}

    monkeypatch.setattr(diagnose, "enable_compile_cache", lambda: None)
    sound = rng.normal(0, 0.1, 245_760).astype(np.float32)
    monkeypatch.setattr(
        composed_prompts,
        "ground_truth",
        lambda prompt, number, seconds, _: np.roll(sound, number)[: round(24_000 * seconds)],
    )
    monkeypatch.setattr(stage_swap, "swap_stages", swapped)  # to compile the networks takes half a minute
    monkeypatch.setattr(clip_features, "estimate_tempo", lambda wave: 120.0)  # librosa is no test requirement
    monkeypatch.setattr(
        clip_features, "log_mel_statistics", lambda wave: np.resize(np.abs(wave), 8)
    )  # windows are short here
    statistics = group_judge.statistics_file(tmp_path / "cache", 10)
    write_npz(statistics, {"features": rng.normal(size=(160, 8))})
    prompts = [
        composed_prompts.ComposedPrompt(
            group=name, text=f"some {name}", seed=i, tempo_bpm=60.0, rhythmic=i > 0
        )
        for i, name in enumerate(("jazz", "metal", "violin"))
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(dataclasses.asdict(prompt)) + "\n" for prompt in prompts))
    config = DiagnoseConfig(model="tiny", folder=str(releases), prompts=str(file), out=str(tmp_path), steps=1,
                            cache=str(tmp_path / "cache"), judge_pieces=10, draws=20)  # fmt: skip
    diagnose.diagnose(config)
    result = json.loads((tmp_path / "diagnosis-tiny.json").read_text())
    assert list(result["stages"]) == [*NAMES, "shuffled"]
    assert result["prompts"]["count"] == 3
    assert result["stages"]["truth"]["tempo"][0] == 1.0  # 120 bpm is the double of 60 bpm
    assert len(result["losses"]) == 16
    assert result["fidelity"]["truth"]["level_difference"][0] == 0
    assert result["fidelity"]["vae"]["level_difference"][0] == pytest.approx(
        3.0, abs=0.1
    )  # noise of equal power
    assert set(result["fidelity"]["text"]) == {"steady_bass", "level_difference", "fallen_silent"}
    assert "| vae | " in (tmp_path / "diagnosis-tiny.md").read_text().split("level, dB")[1]
    assert str(tmp_path) not in json.dumps(result)
    monkeypatch.setattr(stage_swap, "swap_stages", lambda *_: pytest.fail("a measured batch was made again"))
    diagnose.diagnose(config)


def test_ground_truth_enters_each_stage(releases: Path) -> None:
    melody = stage_swap.load_system("tiny", "melody", str(releases))
    assert_ground_truth_enters_each_stage(melody, list(NAMES[1:]))


def test_caches_know_what_their_numbers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another SoundFont, composer or set of features gets other files."""
    font = tmp_path / "font.sf2"
    prompt = composed_prompts.ComposedPrompt(group="jazz", text="a", seed=0, tempo_bpm=60.0, rhythmic=True)
    config = DiagnoseConfig(cache=str(tmp_path / "cache"))
    monkeypatch.setattr(diagnose, "_measure_batch", lambda *_: {})
    monkeypatch.setattr(diagnose, "read_npz", lambda *_: defaultdict(lambda: np.zeros(1)))
    names = []

    def add_names(mulan: str = "a") -> None:
        network = SimpleNamespace(sha256=mulan)
        diagnose._measure_stages(config, SimpleNamespace(hashes={}), network, [prompt])
        names.append(group_judge.statistics_file(tmp_path, 3).name)
        names.extend(path.name for path in (tmp_path / "cache").iterdir() if path.name not in names)

    monkeypatch.setattr(soundfont, "installed", lambda _: {"font": font})
    for content in (b"1", b"1", b"2"):
        font.write_bytes(content)
        add_names()
    monkeypatch.setattr(composed_prompts, "VERSION", 99)
    add_names()
    monkeypatch.setattr(clip_features, "VERSION", 99)
    add_names()
    assert len(set(names)) == 2 * 4
    add_names(mulan="b")
    assert len(set(names)) == 2 * 4 + 1


def test_a_system_without_prompts_is_refused(releases: Path) -> None:
    with pytest.raises(UserError, match=r"system is 'audiolm'; it must be one of melody, musiclm"):
        stage_swap.load_system("tiny", "audiolm", str(releases))


def test_prompts_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    for content in (
        "",
        "{}",
        '{"group": "polka", "text": "x", "seed": 1, "tempo_bpm": 60, "rhythmic": true}',
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=r"prompts\.jsonl(, line 1)?: "):
            composed_prompts.read_prompts(file)
    line = {"group": "jazz", "text": "x", "seed": 1, "tempo_bpm": 60, "rhythmic": True}
    file.write_text(f"\n{json.dumps(line)}\n \n")
    assert composed_prompts.read_prompts(file) == [composed_prompts.ComposedPrompt(**line)]
    for changes, message in (
        ({"group": "polka"}, "unknown group 'polka'; the groups are accordion"),
        ({"group": ["jazz"]}, r"group is \['jazz'\]; it must be a text"),
        ({"text": 3}, "text is 3; it must be a text"),
        ({"text": " "}, "text is empty"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
        ({"tempo_bpm": "fast"}, "tempo_bpm is 'fast'; it must be a number"),
        ({"tempo_bpm": float("nan")}, "tempo_bpm is nan; it must be above 0 and at most 1,000"),
        ({"rhythmic": 1}, "rhythmic is 1; it must be true or false"),
        ({"other": 1}, "it must be an object with group, text, seed, tempo_bpm, rhythmic"),
    ):
        file.write_text(f"{json.dumps(line)}\n\n{json.dumps(line | changes)}\n")
        with pytest.raises(UserError, match=rf"prompts\.jsonl, line 3: .*{message}"):
            composed_prompts.read_prompts(file)
    with pytest.raises(UserError, match="at least 10"):
        DiagnoseConfig(judge_pieces=5)
    with pytest.raises(UserError, match=r"prompts\.jsonl is not a folder"):
        diagnose.diagnose(DiagnoseConfig(out=str(file / "nowhere")))
