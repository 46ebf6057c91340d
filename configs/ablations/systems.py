"""MeLoDy and four others with equally large generating networks, on the same music (docs/systems.md).

melody ablate systems --releases release
"""

from melody_jax.ablation.study import Study, SystemSampling


def study() -> Study:
    """Whole clips from prompts, with the settings that each system has by default; AudioLM has no prompts."""
    return Study(
        title="Systems",
        question="How do five systems compare in quality and speed if their generative networks have the same number "
        "of parameters and are trained on the same music?",
        base=SystemSampling(model="melody_ablation", prompts=10),
        arms={
            "MeLoDy": {},
            "MusicLM": {"system": "musiclm", "model": "musiclm_ablation"},
            "Noise2Music": {"system": "noise2music", "model": "noise2music_ablation"},
            "Moûsai": {"system": "mousai", "model": "mousai_ablation"},
            "AudioLM": {"system": "audiolm", "model": "audiolm_ablation"},
        },
        metrics=(
            "group_right",
            "tempo_right",
            "text_similarity",
            "prompt_kernel_distance",
            "prompt_kernel_distance_log_mel",
        ),
        limits="The networks are small, and each was trained for less than an hour.",
    )
