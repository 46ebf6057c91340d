"""Does the paper's angle schedule beat uniform steps (MeLoDy, table 4)? On the shipped mini, without
training.

    melody ablate schedules
"""

from melody_jax.ablation.study import Claim, Sampling, Study


def study() -> Study:
    """Uniform steps and the paper's at 5, 10 and 20 steps; prompts, tokens and first noise are shared."""
    return Study(
        title="Angle schedules",
        question="Is the paper's schedule, with long steps first, better than uniform steps at 5, 10 and 20 steps?",
        base=Sampling(steps=10),
        arms={
            "paper, 10": {},
            "uniform, 10": {"schedule": "uniform"},
            "paper, 5": {"steps": 5},
            "uniform, 5": {"steps": 5, "schedule": "uniform"},
            "paper, 20": {"steps": 20},
            "uniform, 20": {"steps": 20, "schedule": "uniform"},
        },
        against={"uniform, 5": "paper, 5", "uniform, 20": "paper, 20"},
        metrics=("prompt_kernel_distance", "text_similarity", "group_right", "tempo_right"),
        claims=(
            Claim(
                arm="uniform, 10",
                metric="prompt_kernel_distance",
                says="worse",
                source="Table 4, FAD 8.52 against 5.93",
            ),
            Claim(
                arm="uniform, 10",
                metric="text_similarity",
                says="worse",
                source="Table 4, MCC 0.45 against 0.52",
            ),
            Claim(
                arm="uniform, 20",
                metric="prompt_kernel_distance",
                says="worse",
                source="Table 4, FAD 6.31 against 5.41",
            ),
            Claim(
                arm="uniform, 20",
                metric="text_similarity",
                says="worse",
                source="Table 4, MCC 0.49 against 0.53",
            ),
        ),
    )
