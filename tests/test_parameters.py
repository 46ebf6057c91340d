"""The table of every config's parameters: roles, and what follows from them, on a mesh of 16 devices.

`python tests/test_parameters.py` writes tests/golden/parameters.txt anew. A change of that file changes how runs are
placed, trained or released.
"""

from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from melody_jax.config import TrainConfig, load_config
from melody_jax.roles import find_role
from melody_jax.sharding import AXES, path_names
from melody_jax.training.command import main
from melody_jax.training.parameters import parameter_rows, summarise
from melody_jax.training.state import create_state, state_roles

GOLDEN = Path(__file__).parent / "golden" / "parameters.txt"
CONFIGS = sorted(
    path
    for kind in ("paper", "tiny", "mini", "mini_lora", "modern_distilled")
    for path in (Path(__file__).parents[1] / "configs").glob(f"*_{kind}.py")
)


def table(config: TrainConfig) -> str:
    rows = summarise(parameter_rows(config, AbstractMesh((1, 8, 2), AXES)))
    return "\n".join(" ".join(row) for row in rows)


def golden() -> dict[str, str]:
    sections = GOLDEN.read_text().rstrip("\n").split("\n\n")
    return dict(section.split("\n", 1) for section in sections)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_table(path: Path) -> None:
    assert table(load_config(path)) == golden()[path.stem]


def test_every_array_of_a_state_but_counters_has_a_role() -> None:
    config = load_config(CONFIGS[0].with_stem("dpd_mini_lora"))
    shapes = jax.eval_shape(lambda: create_state(config, jax.random.key(0)))
    roles = state_roles(config)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    without = [path for path, leaf in leaves if leaf.ndim and find_role(roles, path_names(path)) is None]
    assert not without


def test_print_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    main(["lm_tiny", "--print-parameters", "--stage.model.layers", "3"])
    *lines, total = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["path", "shape", "role", "placement", "bytes/device"]
    row = next(line for line in lines if line.startswith("model/blocks/out/kernel"))
    assert row.split()[1:6] == ["3x64x64", "row", "stacked", "-", "49152"]
    assert total.startswith(f"{len(lines) - 1} arrays, ")


if __name__ == "__main__":
    sections = [f"{path.stem}\n{table(load_config(path))}" for path in CONFIGS]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n\n".join(sections) + "\n")


def test_placement_follows_the_zero_stage() -> None:
    """Stage 1 leaves parameters whole on the axis fsdp."""
    for zero_stage, placement in ((3, "-,fsdp,tensor"), (1, "-,-,tensor")):
        config = load_config("lm_tiny", ["--zero-stage", str(zero_stage)])
        rows = {row[0]: row for row in parameter_rows(config, AbstractMesh((1, 8, 2), AXES))}
        assert rows["model/blocks/qkv/kernel"][3] == placement
