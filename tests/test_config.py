"""Config files, dotted overrides, JSON, and errors that say what would be right."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from melody_jax.ablation.study import load_study
from melody_jax.config import DataConfig, TrainConfig, load_config
from melody_jax.config_json import difference, from_dict, to_dict
from melody_jax.errors import UserError, cli_entry
from melody_jax.models import mulan
from melody_jax.models.mulan import MuLanConfig
from melody_jax.python_file import function_of

FILE = """
import dataclasses
from typing import ClassVar
from melody_jax.config import TrainConfig

@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    width: int = 4
    widths: tuple[int, ...] = (1, 2)
    dropout: float | None = None

@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    name: ClassVar[str] = "toy"
    teacher: ClassVar[None] = None
    model: Model = Model()
    causal: bool = False

def config() -> TrainConfig:
    return TrainConfig(stage=Stage(), steps=7)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "toy_tiny.py").write_text(FILE)
    (folder / "broken.py").write_text("def config(:")
    (folder / "empty.py").write_text("x = 1")
    return folder / "toy_tiny.py"


def test_overrides_reach_every_level(path: Path) -> None:
    arguments = ["--steps", "9", "--stage.model.width=16", "--stage.causal", "--mesh", "2", "1", "-1"]
    arguments += [
        "--stage.model.widths",
        "3",
        "4",
        "5",
        "--stage.model.dropout",
        "0.1",
        "--data.folder",
        "a",
        "b",
    ]
    arguments += ["--optimizer.learning-rate", "1e-3"]
    config = load_config(path, arguments)
    assert (config.steps, config.mesh, config.data.folder) == (9, (2, 1, -1), ("a", "b"))
    assert config.stage.model.width == 16
    assert config.stage.model.widths == (3, 4, 5)
    assert config.stage.model.dropout == 0.1
    assert config.stage.causal is True
    assert config.optimizer.learning_rate == 1e-3
    assert load_config(path).steps == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--stage.model.widht", "1"],
            r"unknown option --stage.model.widht; did you mean --stage.model.width\?",
        ),
        (["--step", "3"], r"did you mean --steps\?"),
        (["--steps", "many"], "--steps takes INT, not 'many'"),
        (["--steps"], "--steps takes INT, and none is given"),
        (["--mesh", "1", "2"], "--mesh takes INT INT INT, not '1 2'"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--data.batch_size", "0"], "data.batch_size is 0"),
        (["--data.crop_samples", "-1"], "data.crop_samples is -1; it must be at least 1"),
        (["--data.threads", "-1"], "data.threads is -1; it must be from 0 to 1024"),
        (["--data.prefetch", "0"], "data.prefetch is 0; it must be from 1"),
        (["--data.seed", "-1"], "data.seed is -1; it must be from 0"),
        (["--data.holdout", "nan"], "data.holdout is nan; it must be at least 0 and below 1"),
        (["--data.jitter_probability", "nan"], "data.jitter_probability is nan; it must be from 0 to 1"),
        (["--ema_decay", "1.5"], "ema_decay is 1.5"),
        (["--seed", "-1"], "seed is -1; it must be from 0 to 4294967294"),
        (["--seed", "4294967295"], "seed is 4294967295; it must be from 0"),
        (["--optimizer.clip_norm", "0"], "clip_norm is 0.0; it must be above 0"),
        (["--optimizer.beta2", "1.5"], "beta2 is 1.5; it must be"),
        (["--optimizer.warmup_steps", "-5"], "warmup_steps is -5; it must be at least 0"),
        (
            ["--accumulate", "4", "--data.hard_negative_group", "4"],
            "accumulate 4 with data.hard_negative_group 4: the parts of a batch would divide the groups",
        ),
        (["7"], "unexpected argument '7'"),
        (
            ["--stage.causal", "True"],
            "--stage.causal takes no value: write --stage.causal or --stage.no-causal",
        ),
        (["--stage.causal=no"], "--stage.causal takes no value"),
        (["--batch-size", "3"], r"did you mean --data.batch-size\?"),
        (["-o", "x"], r"unknown option -o; --help lists"),
    ],
)
def test_bad_arguments_are_one_line(path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, arguments)
    assert "\n" not in str(caught.value)


def test_bad_files_are_one_line(path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*toy_tyni\.py .*broken\.py, empty\.py, toy_tiny\.py"):
        load_config(path.with_name("toy_tyni.py"))
    with pytest.raises(UserError, match=r"must be a \.py file"):
        load_config(path.with_suffix(".json"))
    with pytest.raises(UserError, match=r"broken\.py, line 1"):
        load_config(path.with_name("broken.py"))
    with pytest.raises(UserError, match=r"no function config\(\)"):
        load_config(path.with_name("empty.py"))
    with pytest.raises(UserError, match=r"[Tt]he package has coarse_ablation, .*, vae_tiny"):
        load_config("dpd_minni")
    with pytest.raises(UserError, match=r"[Tt]he package has backbones, "):
        load_study("chonks")


def test_configs_and_studies_of_the_package_are_named_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("vae_tiny", ["--steps", "3"]).steps == 3
    assert load_config("vae_tiny.py") == load_config(Path(__file__).parents[1] / "configs" / "vae_tiny.py")
    assert "DPD" in load_study("backbones").arms


def test_json_and_difference(path: Path) -> None:
    config = load_config(path)
    other = load_config(path, ["--stage.model.width", "5", "--data.seed", "3"])
    assert list(difference(config, other)) == ["data.seed", "stage.model.width"]
    assert difference(to_dict(config), config) == {}
    assert from_dict(type(other.stage), to_dict(other.stage)) == other.stage
    assert from_dict(DataConfig, to_dict(other.data)) == other.data
    with pytest.raises(UserError, match="no field 'colour'"):
        from_dict(DataConfig, {"colour": 1})


def test_configs_of_several_kinds_say_their_class() -> None:
    for config in (mulan.PAPER, mulan.TINY):
        written = to_dict(config)
        assert written["music"]["class"] == type(config.music).__name__
        assert "class" not in written["text"]
        assert from_dict(MuLanConfig, written) == config
    with pytest.raises(UserError, match="class 'Ear': it must be one of MusicTowerConfig, ASTConfig"):
        from_dict(MuLanConfig, {"music": {"class": "Ear"}})


def test_help_lists_the_fields(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(path, ["--help"])
    assert caught.value.code == 0
    assert "--stage.model.width" in capsys.readouterr().out


def test_every_field_has_a_description() -> None:
    source = Path(sys.modules[TrainConfig.__module__].__file__ or "").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(field.target)}"


def test_allocator_restarts_once() -> None:
    script = "from melody_jax.runtime import tune_allocator as t; t(); "
    script += "import os; print(os.environ.get('GLIBC_TUNABLES'))"
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith(("glibc.malloc", "None"))
    user_setting = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert user_setting.stdout.strip() == "glibc.malloc.hugetlb=0"


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def needs(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    with pytest.raises(SystemExit) as caught:
        cli_entry(lambda: needs("grain"))()
    assert caught.value.code == 2
    hint = "grain is not installed; the extra 'train' provides it: pip install -e \".*\\[train\\]\"\n"
    assert re.fullmatch(f"error: {hint}", capsys.readouterr().err)
    with pytest.raises(ModuleNotFoundError):
        cli_entry(lambda: needs("melody_jax.gone"))()


@pytest.mark.parametrize(
    ("name", "given", "meant"), [("config", "vae_min", "vae_mini"), ("study", "chunk", "chunks")]
)
def test_a_misspelt_name_is_answered_with_the_closest(name: str, given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"is {meant} meant"):
        function_of(given, name)
    with pytest.raises(UserError, match="; the package has"):
        function_of("zzzzz", name)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (
            "dpd_tiny",
            ["--stage.condition-dropout", "10"],
            "condition_dropout is 10.0; it must be from 0 to 1",
        ),
        (
            "dpd_tiny",
            ["--stage.shared-angle", "0.8", "--stage.clean-prefix", "0.8"],
            "together they must be at most 1",
        ),
        (
            "dpd_tiny",
            ["--stage.model.guidance-range", "1", "4"],
            "model.guidance_range is .* must be None in this stage",
        ),
        ("dpd_paper", ["--stage.mulan", "x"], "the model has no prefix_conditioning; leave it out"),
        ("lm_tiny", ["--stage.prefix-dropout", "nan"], "prefix_dropout is nan; it must be"),
        ("lm_tiny", ["--stage.label-smoothing", "3"], "label_smoothing is 3.0; it must be"),
        ("coarse_tiny", ["--stage.melody-dropout", "-1"], "melody_dropout is -1.0; it must be"),
        ("codec_tiny", ["--stage.dead-share", "2"], "dead_share is 2.0; it must be"),
        ("codec_tiny", ["--accumulate", "2"], "accumulate is 2; it must be 1 with a quantiser"),
        ("tokenizer_tiny", ["--stage.codebooks", "3"], "codebooks is 3; it must be even"),
        ("tokenizer_tiny", ["--stage.mask-span", "0"], "mask_span is 0; it must be at least 1"),
        (
            "dmae_tiny",
            ["--stage.model.decoder.lower-noise", "0.6"],
            "decoder.lower_noise is 0.6; this codec needs 0",
        ),
    ],
)
def test_settings_out_of_range_are_one_line(config: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(config, arguments)
