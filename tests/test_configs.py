"""Every file in configs/ is a run: it loads, its network survives JSON, its size is right."""

from pathlib import Path

import jax
import pytest

from melody_jax.config import from_dict, load_config, to_dict
from melody_jax.models.functional import count

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
PAPER = {
    "mulan_paper": 195_273_984,
    "tokenizer_paper": 195_929_344,
    "lm_paper": 417_395_712,
    "dpd_paper": 295_626_000,
    "dpd_paper_aligned": 295_626_000,
    "vae_paper": 66_637_665,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path: Path) -> None:
    config = load_config(path)
    assert config.workdir == f"runs/{path.stem}"
    model = config.stage.model
    assert from_dict(type(model), to_dict(model)) == model
    size = count(jax.eval_shape(config.stage.init, jax.random.key(0))["model"])
    if path.stem in PAPER:
        assert size == PAPER[path.stem]
    else:
        assert size < (40e6 if path.stem.endswith("small") else 20e6)
