"""Adherence and the stage-swap table of a released model.

    python benchmarks/adherence.py --write-prompts            # once: the committed list of prompts
    python benchmarks/adherence.py --model mini               # trains the judge (cached), generates, writes the tables

The judge is trained on freshly composed pieces of the train split, never on generated audio, and its accuracy on
composed pieces of the test split is the ceiling ("truth"). About 25 minutes on two cores, most of it rendering.
"""

import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

HERE = Path(__file__).parents[1] / "docs" / "evaluation"


@dataclass(frozen=True)
class Arguments:
    """Measures how well a released model follows prompts."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Where releases are; the package's own if left out."""
    out: Path = HERE
    """Folder of prompts.jsonl and of the tables."""
    cache: Path = Path("runs/judge")
    """Folder of the judge's training features."""
    write_prompts: bool = False
    """Write prompts.jsonl and stop."""
    judge_pieces: int = 160
    """Composed clips of each group the judge learns from."""
    steps: int = 5
    """Diffusion steps."""
    guidance_scale: float = 2.5
    """Of the diffusion."""
    lm_guidance_scale: float = 2.0
    """Of the language model."""
    temperature: float = 1.1
    """Of the language model."""
    seed: int = 0
    """Of the generated clips."""


def render_clip(job: tuple[int, str, int]) -> np.ndarray:
    """(group index, split, number) -> one window of a composed piece of the group."""
    from melody_jax.evaluation import adherence

    group, split, number = job
    piece = next(adherence.pieces(adherence.GROUPS[group], split, 10_000_019 + 1_000 * number, adherence.SECONDS))
    return adherence.render_with(piece, split, number)


def features_of(job: tuple[int, str, int]) -> np.ndarray:
    """The judge's features of a rendered clip."""
    from melody_jax.evaluation.judge import log_mel_statistics

    return log_mel_statistics(render_clip(job))


def judge_data(arguments: Arguments, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and groups (N,) of the judge's training clips, rendered once and cached."""
    count = arguments.judge_pieces
    file = arguments.cache / f"features-{count}.npz"
    labels = np.repeat(np.arange(groups), count)
    if not file.exists():
        jobs = [(int(group), "train", i) for i, group in enumerate(labels)]
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            rows = list(tqdm(pool.map(features_of, jobs, chunksize=8), total=len(jobs), desc="judge", unit="clip"))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, features=np.stack(rows))
    return np.load(file, allow_pickle=False)["features"], labels


def write_prompts(arguments: Arguments) -> None:
    """Writes the list: 10 prompts a group, made from pieces of the test split."""
    from melody_jax.evaluation import adherence

    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(dataclasses.asdict(prompt))
        for i, group in enumerate(adherence.GROUPS)
        for prompt in adherence.prompts(group, 10, 90_000_000 + 10_000 * i, adherence.SECONDS)
    ]
    (arguments.out / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Writes the prompts, or measures and writes the tables."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.write_prompts:
        write_prompts(arguments)
        return
    from melody_jax.evaluation import adherence, judge
    from melody_jax.sampling.melody import NETWORKS, load

    prompts = adherence.read_prompts(arguments.out / "prompts.jsonl")
    names = [group.name for group in adherence.GROUPS]
    asked = np.asarray([names.index(prompt.group) for prompt in prompts])
    classifier = judge.train(*judge_data(arguments, len(names)))
    melody = load(arguments.model, folder=arguments.folder, networks=(*NETWORKS, "tokenizer"))

    samples = round(melody.window_seconds * melody.sample_rate)
    truth = np.stack([adherence.ground_truth(p, i, samples) for i, p in enumerate(tqdm(prompts, desc="truth"))])
    clips: dict[str, list[np.ndarray]] = {"truth": list(truth)}
    for start in tqdm(range(0, len(prompts), 16), desc="generate"):
        part = slice(start, start + 16)
        swapped = adherence.swap_stages(
            melody, truth[part], [p.text for p in prompts[part]], arguments.seed + start, arguments.steps,
            arguments.guidance_scale, arguments.lm_guidance_scale, arguments.temperature,
        )  # fmt: skip
        for stage, waves in swapped.items():
            clips.setdefault(stage, []).extend(waves)

    rhythmic = [i for i, prompt in enumerate(prompts) if prompt.rhythmic]
    shift = 10 * (len(names) // 2)  # every prompt is judged against another group's clip
    found = {stage: classifier.predict(np.stack([judge.log_mel_statistics(w) for w in waves]))
             for stage, waves in tqdm(clips.items(), desc="judge")}  # fmt: skip
    found["shuffled"] = np.roll(found["text"], shift)
    clips["shuffled"] = clips["text"][-shift:] + clips["text"][:-shift]
    rows = []
    for stage, guesses in found.items():
        right = guesses == asked
        tempo = [judge.tempo_matches(clips[stage][i], prompts[i].tempo_bpm) for i in rhythmic]
        rows.append({"stage": stage, "group": float(right.mean()), "tempo": float(np.mean(tempo)),
                     "by_group": {n: float(right[asked == k].mean()) for k, n in enumerate(names)}})  # fmt: skip
    report(arguments, rows, len(prompts), len(rhythmic))


def report(arguments: Arguments, rows: list[dict], prompts: int, rhythmic: int) -> None:
    """Prints the tables and writes them as Markdown and JSON."""
    settings = dataclasses.asdict(arguments) | {"prompts": prompts, "rhythmic_prompts": rhythmic}
    table = ["| clips | group right | tempo right |", "| --- | --- | --- |"]
    table += [f"| {row['stage']} | {row['group']:.3f} | {row['tempo']:.3f} |" for row in rows]
    stages = [row["stage"] for row in rows]
    table += ["", "| group | " + " | ".join(stages) + " |", "| --- |" + " --- |" * len(stages)]
    for name in rows[0]["by_group"]:
        table.append(f"| {name} | " + " | ".join(f"{row['by_group'][name]:.1f}" for row in rows) + " |")
    text = "\n".join(table) + "\n"
    print(text)
    (arguments.out / f"adherence-{arguments.model}.md").write_text(text)
    places = ("folder", "out", "cache", "write_prompts")  # of this machine, not of the measurement
    record = {"settings": {k: str(v) for k, v in settings.items() if k not in places}, "rows": rows}
    (arguments.out / f"adherence-{arguments.model}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
