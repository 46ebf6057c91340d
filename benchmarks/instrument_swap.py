"""Does `--keep-tokens` with the name of another instrument give that instrument?

    python benchmarks/instrument_swap.py        # writes docs/evaluation/instrument-swap-mini.md

The sources are composed test pieces with a lead instrument, the prompts the names of the other lead instruments, in
turn. The semantic tokens of the source stay, the diffusion starts from noise with the new prompt. The judge is that of
`melody diagnose`, among the lead instruments only.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from melody_jax.evaluation import composed_prompts, group_judge
from melody_jax.evaluation.clip_features import log_mel_statistics
from melody_jax.evaluation.composed_prompts import GROUPS
from melody_jax.evaluation.intervals import mean_interval
from melody_jax.evaluation.sound import Sound
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import load
from melody_jax.sampling.plan import NETWORKS

ROOT = Path(__file__).parents[1]
LEADS = [group.name for group in GROUPS if group.lead]


@dataclass(frozen=True)
class Arguments:
    """Measures changes of the instrument."""

    model: str = "mini"
    """Name of the release."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    pairs: int = 40
    """Pairs of a source and another instrument."""
    guidance_scale: float = 8.0
    """Guidance of the diffusion."""
    judge_pieces: int = 80
    """Composed clips of each group that the judge is trained on."""
    cache: Path = Path("runs/free-prompts")
    """Folder of the judge's features."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def lead_of(statistics: np.ndarray, scorer: group_judge.GroupJudge) -> list[str]:
    """The lead instrument that the judge finds most likely in each clip."""
    names = [GROUPS[index].name for index in scorer.classifier.classes_]
    columns = [names.index(lead) for lead in LEADS]
    likely = scorer.classifier.predict_proba(statistics)[:, columns].argmax(axis=1)
    return [LEADS[index] for index in likely]


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    melody = load(arguments.model, folder=arguments.folder, networks=(*NETWORKS, "tokenizer"))
    scorer = group_judge.train_group_judge(arguments.cache, arguments.judge_pieces)
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    by_lead = [[prompt for prompt in prompts if prompt.group == lead] for lead in LEADS]
    sources = list(itertools.chain.from_iterable(zip(*by_lead, strict=True)))
    sources = sources[: arguments.pairs]
    turn = itertools.count(1)
    targets = []
    for prompt in sources:
        others = [lead for lead in LEADS if lead != prompt.group]
        targets.append(others[next(turn) % len(others)])
    statistics: dict[str, list[np.ndarray]] = {"source": [], "changed": []}
    for number, (prompt, target) in enumerate(zip(tqdm(sources, unit="pair"), targets, strict=True)):
        wave = composed_prompts.ground_truth(prompt, number, composed_prompts.SECONDS, melody.audio_format)
        (changed,) = melody.generate(
            target,
            source=wave,
            keep_tokens=True,
            strength=1.0,
            seed=number,
            guidance_scale=arguments.guidance_scale,
        )
        for name, clip in (("source", wave), ("changed", changed)):
            statistics[name].append(log_mel_statistics(Sound(clip, melody.audio_format).to()))
    leads = {name: lead_of(np.stack(rows), scorer) for name, rows in statistics.items()}
    wanted = {"source": [prompt.group for prompt in sources], "changed": targets}
    lines = ["| clips | judged to have | share | 95 % interval |", "| --- | --- | --- | --- |"]
    for name, expected in (("source", "source"), ("changed", "changed"), ("changed", "source")):
        interval = mean_interval(np.equal(leads[name], wanted[expected]).astype(float))
        label = "their instrument" if expected == "source" else "the prompt's instrument"
        lines.append(
            f"| {name} | {label} | {interval.value:.2f} | {interval.low:.2f} to {interval.high:.2f} |"
        )
    page = "\n".join(lines) + "\n"
    print(page)
    (arguments.out / f"instrument-swap-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
