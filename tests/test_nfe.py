"""The counts of the paper's table 3, and those of this package."""

import math
from dataclasses import replace

import jax
import pytest

from melody_jax.cli import run
from melody_jax.config import load_config
from melody_jax.errors import UserError
from melody_jax.models import dpd, lm
from melody_jax.sampling.passes import Evaluations, cascade_count
from melody_jax.sampling.request import Request
from melody_jax.systems import nfe
from melody_jax.systems.musiclm import MusicLM
from melody_jax.systems.nfe import NFEConfig

FRAME = 96 / 24_000
"""Seconds per latent frame at the paper's size."""


@pytest.mark.parametrize(("seconds", "melody", "musiclm"), [(10.0, 270, 6250), (30.0, 770, 18750)])
def test_table_3_of_the_paper(seconds, melody, musiclm):
    assert nfe.paper_count(seconds).total == melody
    assert nfe.musiclm_count(seconds) == musiclm


def test_windows_of_a_longer_piece():
    assert cascade_count(dpd.PAPER, FRAME, 10, 20) == Evaluations(250, 20)
    assert cascade_count(dpd.PAPER, FRAME, 30, 20) == Evaluations(750, 9 * 20)  # one window and eight chunks
    assert cascade_count(dpd.PAPER, FRAME, 10.01, 20) == Evaluations(312, 2 * 20)  # one more chunk
    assert cascade_count(dpd.PAPER, FRAME, 1, 20) == Evaluations(
        250, 20
    )  # the first window is sampled completely


def test_guidance_doubles_its_network():
    assert cascade_count(dpd.PAPER, FRAME, 10, 20, guided=True) == Evaluations(250, 40)
    assert cascade_count(dpd.PAPER, FRAME, 30, 5, lm_guided=True) == Evaluations(1500, 9 * 5)


def test_two_tokens_a_pass_are_half_of_the_passes():
    assert cascade_count(dpd.MODERN, 480 / 24_000, 10, 4, lm_guided=True, tokens_per_pass=2) == Evaluations(
        256, 4
    )


def test_command(capsys):
    run(["nfe", "--seconds", "30"])
    lines = capsys.readouterr().out.splitlines()
    counted = {line[:44].strip(): line[44:].split() for line in lines[3:]}
    assert counted["MusicLM"] == ["18750", "100.00%"]
    assert counted["MeLoDy as the paper counts, 20 steps"] == ["750", "20", "770", "4.11%"]
    assert counted["MeLoDy's windows, 20 steps"] == ["750", "180", "930", "4.96%"]
    assert counted["mini, 5 steps, both guided"] == [
        "1536",
        "90",
        "1626",
        "8.67%",
    ]  # 10.24 s + 8 x 2.56 s
    assert "mini distilled, 2 steps, LM guided" in counted
    assert "99.6" not in "".join(lines)


def test_heun_takes_two_passes_a_step_but_the_last():
    rows = dict(nfe.table(NFEConfig(solver="heun", distilled_steps=2)))
    assert rows["mini, 5 steps"] == Evaluations(256, 9)
    assert rows["mini distilled, 2 steps"] == Evaluations(256, 3)


@pytest.mark.parametrize(
    "setting",
    [
        {"seconds": 0.0},
        {"seconds": 601.0},
        {"seconds": math.inf},
        {"seconds": math.nan},
        {"steps": 0},
        {"distilled_steps": 1001},
        {"solver": "euler"},
    ],
)
def test_out_of_range(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        nfe.table(NFEConfig(**setting))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system": "musiclm", "steps": 100}, "steps is 100: musiclm has no such setting; leave it out"),
        ({"system": "audiolm", "solver": "heun"}, "solver is heun: audiolm has no such setting"),
        ({"system": "musiclm", "distilled_steps": 4}, "distilled_steps is 4: musiclm has"),
        ({"system": "noise2music", "distilled_steps": 4}, "distilled_steps is 4: noise2music has"),
        ({"system": "mousai", "distilled_steps": 4}, "distilled_steps is 4: mousai has"),
    ],
)
def test_what_changes_no_count_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        NFEConfig(**settings)
    assert NFEConfig(system="mousai", steps=100, solver="heun").steps == 100


@pytest.mark.parametrize(("seconds", "passes"), [(10.0, 6250), (30.0, 18750)])
def test_the_paper_s_count_is_what_musiclm_runs(seconds, passes):
    """Its own configs in windows, levels and rates; only the layers are small, so that the passes can be run."""
    small = {"layers": 1, "width": 8, "heads": 1, "ffn": 8, "dtype": "float32"}
    models = {name: load_config(f"{name}_paper").stage.model for name in ("lm", "coarse", "fine")}
    configs = {name: replace(model, **small) for name, model in models.items()}
    params = {name: lm.init(config, jax.random.key(0)) for name, config in configs.items()}
    configs |= {name: load_config(f"{name}_paper").stage.model for name in ("codec", "mulan")}
    configs["vae"] = configs.pop("codec")
    counted = MusicLM(params, configs, {}, None).count_passes(Request(prompt="any", seconds=seconds))
    assert counted == Evaluations(passes, 0)
    assert passes == nfe.musiclm_count(seconds)
