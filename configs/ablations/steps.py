"""Quality and speed by number of steps (MeLoDy, table 2), also distilled. On the shipped mini, without
training.

    melody ablate steps
"""

from melody_jax.ablation.study import Claim, Sampling, Study

DISTILLED = {"distilled": True, "solver": "pingpong"}


def study() -> Study:
    """1 to 20 guided steps and 1 to 4 distilled steps; prompts, tokens and first noise are shared."""
    return Study(
        title="Steps",
        question="How many steps does the diffusion need, and how many when it is distilled (docs/distillation.md)?",
        base=Sampling(steps=20, guidance_rescale=0.7),  # the distilled network has learned the same rescaling
        arms={
            "20 steps": {},
            "10 steps": {"steps": 10},
            "5 steps": {"steps": 5},
            "2 steps": {"steps": 2},
            "1 step": {"steps": 1},
            "distilled, 4": {"steps": 4} | DISTILLED,
            "distilled, 2": {"steps": 2} | DISTILLED,
            "distilled, 1": {"steps": 1} | DISTILLED,
        },
        metrics=("group_right", "tempo_right", "text_similarity", "prompt_kernel_distance"),
        claims=(
            Claim(
                arm="10 steps",
                metric="prompt_kernel_distance",
                says="worse",
                source="Table 2, FAD 5.93 against 5.41",
            ),
            Claim(
                arm="5 steps",
                metric="prompt_kernel_distance",
                says="worse",
                source="Table 2, FAD 7.23 against 5.41",
            ),
            Claim(
                arm="10 steps",
                metric="text_similarity",
                says="worse",
                source="Table 2, MCC 0.52 against 0.53",
            ),
            Claim(
                arm="5 steps", metric="text_similarity", says="worse", source="Table 2, MCC 0.49 against 0.53"
            ),
        ),
    )
