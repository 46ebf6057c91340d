"""The training stage of acoustic models refuses sizes that do not fit together."""

import dataclasses
from typing import Any

import pytest

from melody_jax.config import load_config
from melody_jax.errors import UserError
from melody_jax.models.lm_config import Condition


@pytest.mark.parametrize(
    ("config", "wrong", "says"),
    [
        ("coarse_tiny", {"part": "middle"}, "part is 'middle'; it must be coarse or fine"),
        ("coarse_tiny", {"coarse_levels": 3}, "model.code_levels is 2 and coarse_levels 3; set them alike"),
        ("coarse_tiny", {"frames_per_token": 0}, "frames_per_token is 0; it must be at least 1"),
        ("fine_tiny", {"coarse_levels": 0}, "coarse_levels is 0; it must be at least 1"),
        (
            "fine_tiny",
            {"coarse_levels": 4},
            "follows 2 levels and 0 prefix tokens; it must follow the 4 coarse",
        ),
        ("fine_tiny", {"frames_per_token": 5}, "length is 32; it must be a multiple of the 10 coarse codes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(load_config(config).stage, **wrong)


def test_a_coarse_model_follows_tokens_of_one_level() -> None:
    stage = load_config("coarse_tiny").stage
    condition = Condition(length=16, ids=16, levels=2)
    model = dataclasses.replace(stage.model, condition=condition)
    with pytest.raises(UserError, match="the coarse model follows 2 levels; semantic tokens have 1"):
        dataclasses.replace(stage, model=model)
