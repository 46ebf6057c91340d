"""Does a model follow the tempo, key and mode that it is told with `--bpm` and `--key`?

    python benchmarks/controls.py --judges corpus/train --model mini      # writes docs/evaluation/controls-mini.md

For each of the 16 groups of `melody diagnose`, clips from its name alone are told keys, modes and, if all of the
group's composed pieces have a pulse, tempi that are drawn at random. The same clips without them show what chance
gives. The judges are those of `melody evaluate`; a tempo is right within 8 % of the one that was told, of its half or
its double.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from free_prompts import fact_judge, features_of

from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.control_tokens import KEYS
from melody_jax.evaluation import composed_prompts
from melody_jax.evaluation.adherence import adherence
from melody_jax.evaluation.composed_prompts import GROUPS
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import load

ROOT = Path(__file__).parents[1]
FACTS = ("tempo", "key", "mode")
TARGETS = {"tempo": 0.92, "key": 0.45}
SLOWEST, FASTEST = 70, 160
BATCH = 16


@dataclass(frozen=True)
class Arguments:
    """Compares clips that are told a tempo, key and mode with clips that are not."""

    judges: Path
    """Audio shards of composed music, train split, for the judges."""
    model: str = "mini"
    """Name of the release; it must have control tokens."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    per_group: int = 5
    """Clips of each group."""
    guidance_scale: float = 2.5
    """Guidance of the diffusion."""
    lm_guidance_scale: float = 2.0
    """Guidance of the language model."""
    seed: int = 0
    """Seed of what is told; clip i has seed i."""
    cache: Path = Path("runs/controls")
    """Folder of the judges' features."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def groups_with_a_pulse() -> set[str]:
    """Names of the groups whose committed pieces all have a beat."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    return {prompt.group for prompt in prompts} - {prompt.group for prompt in prompts if not prompt.rhythmic}


def draw_facts(groups: list[str], seed: int) -> list[PromptFacts]:
    """What a clip of each of these groups is told."""
    rng = np.random.default_rng(seed)
    with_pulse = groups_with_a_pulse()
    facts = []
    for group in groups:
        tempo = float(rng.integers(SLOWEST, FASTEST + 1))
        key = KEYS[int(rng.integers(12))]
        mode = str(rng.choice(["major", "minor"]))
        facts.append(PromptFacts(tempo_bpm=tempo if group in with_pulse else None, key=key, mode=mode))
    return facts


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    melody = load(arguments.model, folder=arguments.folder)
    texts = [group.name for group in GROUPS for _ in range(arguments.per_group)]
    facts = draw_facts(texts, arguments.seed)
    settings = {
        "bpm": [fact.tempo_bpm or 0.0 for fact in facts],
        "key": [f"{fact.key} {fact.mode}" for fact in facts],
    }
    guidance = {
        "guidance_scale": [arguments.guidance_scale] * len(texts),
        "lm_guidance_scale": [arguments.lm_guidance_scale] * len(texts),
    }
    scorer = fact_judge(arguments.judges, arguments.cache)
    arms = {
        name: adherence(scorer, features_of(melody, texts, guidance | given), facts, arguments.seed)
        for name, given in {"told": settings, "not told": {}}.items()
    }
    lines = [
        f"{len(texts)} clips of {melody.window_seconds:g} s, {arguments.per_group} of each group; guidance "
        f"{arguments.guidance_scale:g} (diffusion), {arguments.lm_guidance_scale:g} (language model).",
        "",
        "| fact | clips | told | 95 % interval | not told | judge on composed music | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fact in FACTS:
        right = arms["told"][fact]["right"]
        cells = [
            f"{arms['told'][fact]['clips']}",
            f"{right.value:.2f}",
            f"{right.low:.2f} to {right.high:.2f}",
        ]
        cells += [f"{arms['not told'][fact]['right'].value:.2f}", f"{scorer.accuracy[fact]:.2f}"]
        lines.append(f"| {fact} | {' | '.join(cells)} | {TARGETS.get(fact, '')} |")
    page = "\n".join(lines) + "\n"
    print(page)
    (arguments.out / f"controls-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
