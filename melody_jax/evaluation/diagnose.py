"""`melody diagnose`: which network of a released model loses how much; docs/evaluation.md.

    melody diagnose --model mini

Composed test pieces go through the cascade, which is entered one stage earlier each time (evaluation/adherence.py).
What a score falls from one stage to the next is what one network loses. Writes `diagnosis-<model>.json` and `.md`.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from melody_jax import __version__
from melody_jax.data.records import write_bytes
from melody_jax.errors import UserError
from melody_jax.evaluation import adherence, group_judge, intervals
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.frechet import frechet_distance
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import NETWORKS, Melody, load

STAGES = ("truth", "vae", "dpd", "lm", "text")
LOSES = {
    "vae": "VAE",
    "dpd": "tokenizer and diffusion",
    "lm": "language model",
    "text": "MuLan's text tower",
}
"""What lies between a stage and the one before it."""
ADVICE = {
    "vae": "the decoder bounds all else: train the VAE longer, or with more latent channels or a wider decoder, and on "
    "more of the groups that it loses; `benchmarks/reconstruction.py` measures it alone",
    "dpd": "the tokens may not say it, or the diffusion not hear them: more steps first (`--steps 20`), then compare a "
    "finer semantic vocabulary with a longer trained or wider diffusion",
    "lm": "train the language model longer or on more music, and tune its sampling (temperature, guidance) first",
    "text": "train MuLan on more captions of the groups and facts that it loses; prefixes made of captions "
    "(data.text_prefix_probability) close its gap for the language model",
}
"""Where to begin with a network that loses much."""
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """Which model is diagnosed, with which pieces."""

    model: str = "mini"
    """Name of the release; it must hold a tokenizer too."""
    folder: str = ""
    """Where releases are; empty: the package's own."""
    prompts: str = str(Path(__file__).parents[1] / "assets" / "prompts.jsonl")
    """List of composed test prompts (evaluation/adherence.py); made if it is not there."""
    out: str = "."
    """Folder of the result."""
    cache: str = "runs/diagnose"
    """Folder of the judge's training clips and of stages that are measured."""
    judge_pieces: int = 160
    """Composed clips of each group the judge learns from, at least 10."""
    steps: int = 5
    """Diffusion steps."""
    guidance_scale: float = 2.5
    """Of the diffusion."""
    lm_guidance_scale: float = 2.0
    """Of the language model."""
    temperature: float = 1.1
    """Of the language model."""
    draws: int = 500
    """Redrawn sets of prompts an interval is made from."""
    seed: int = 0
    """Of the generated clips."""

    def __post_init__(self) -> None:
        for name, least in (("judge_pieces", 10), ("draws", 20), ("steps", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")


PLACES = ("folder", "prompts", "out", "cache")
"""Fields of this machine, not of the measurement."""


def diagnose(config: DiagnoseConfig) -> dict[str, Any]:
    """Measures every stage and writes the tables; returns what the JSON holds.

    Raises `UserError` if the model or the prompts cannot be read, or the result not be written.
    """
    enable_compile_cache()
    if not Path(config.out).is_dir():
        raise UserError(f"{config.out}: no such folder for the result")
    file = Path(config.prompts)
    if not file.exists():
        adherence.write_prompts(file)
    prompts = adherence.read_prompts(file)
    folder = Path(config.folder) if config.folder else None
    melody = load(config.model, folder=folder, networks=(*NETWORKS, "tokenizer"))
    mulan = MuLan(config.model, folder)
    measured = _measured(config, melody, mulan, prompts)
    classifier = group_judge.train(*adherence.judge_data(Path(config.cache), config.judge_pieces))
    scores = {stage: _scores(rows, prompts, classifier, mulan) for stage, rows in measured.items()}
    scores["shuffled"] = _scores(measured["text"], _other_groups(prompts), classifier, mulan)
    points = {stage: rows["points"] for stage, rows in measured.items()}
    result = {
        "version": __version__,
        "settings": {f.name: getattr(config, f.name) for f in fields(config) if f.name not in PLACES},
        "model_hash": melody.hash,
        "prompts": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "count": len(prompts)},
        "embedding": mulan.name,
        **summarise(scores, points, [prompt.group for prompt in prompts], config.draws),
    }
    text = markdown(result)
    write_bytes(
        Path(config.out) / f"diagnosis-{config.model}.json", (json.dumps(result, indent=1) + "\n").encode()
    )
    write_bytes(Path(config.out) / f"diagnosis-{config.model}.md", text.encode())
    print(text)
    return result


def _measured(
    config: DiagnoseConfig, melody: Melody, mulan: MuLan, prompts: list[adherence.Prompt]
) -> dict[str, dict[str, np.ndarray]]:
    """Of each stage: "statistics" (N, F), "tempo" (N,) and "points" (N, E); batches that are there are read."""
    sampling = (config.steps, config.guidance_scale, config.lm_guidance_scale, config.temperature)
    parts: list[dict[str, np.ndarray]] = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="stages", unit="batch"):
        part = prompts[start : start + BATCH]
        made_of = [melody.hashes, sampling, config.seed, start, [asdict(prompt) for prompt in part]]
        file = (
            Path(config.cache)
            / f"{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]}.npz"
        )
        if not file.exists():
            numbered = enumerate(part, start=start)
            truth = np.stack([adherence.ground_truth(p, i, melody.window_samples) for i, p in numbered])
            swapped = adherence.swap_stages(
                melody, truth, [p.text for p in part], config.seed + start, *sampling
            )
            stages = {"truth": truth} | swapped
            columns = {f"{stage}/{name}": values for stage, waves in stages.items()
                       for name, values in _rows(waves, mulan).items()}  # fmt: skip
            buffer = io.BytesIO()
            np.savez(buffer, **columns)  # type: ignore[arg-type]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, buffer.getvalue())
        parts.append(dict(np.load(file, allow_pickle=False)))
    names = ("statistics", "tempo", "points")
    return {stage: {name: np.concatenate([part[f"{stage}/{name}"] for part in parts]) for name in names}
            for stage in STAGES}  # fmt: skip


def _rows(waves: np.ndarray, mulan: MuLan) -> dict[str, np.ndarray]:
    return {
        "statistics": np.stack([group_judge.log_mel_statistics(wave) for wave in waves]),
        "tempo": np.asarray([group_judge.tempo(wave) for wave in waves]),
        "points": np.asarray(mulan(waves)),
    }


def _scores(
    rows: dict[str, np.ndarray], prompts: list[adherence.Prompt], classifier: Any, mulan: MuLan
) -> dict[str, np.ndarray]:
    """(N,) of each: "group" and "tempo" 0 or 1 (nan without a pulse), "cycle" a cosine."""
    names = [group.name for group in adherence.GROUPS]
    right = classifier.predict(rows["statistics"]) == [names.index(prompt.group) for prompt in prompts]
    tempo = [group_judge.same_tempo(found, prompt.tempo_bpm) if prompt.rhythmic else np.nan
             for found, prompt in zip(rows["tempo"], prompts, strict=True)]  # fmt: skip
    cosines = mulan.cycle(rows["points"], [prompt.text for prompt in prompts])
    return {"group": right.astype(float), "tempo": np.asarray(tempo, float), "cycle": cosines.astype(float)}


def _other_groups(prompts: list[adherence.Prompt]) -> list[adherence.Prompt]:
    """For every prompt one of another group: the list moved by half."""
    half = len(prompts) // 2
    return [*prompts[half:], *prompts[:half]]


def summarise(
    scores: dict[str, dict[str, np.ndarray]], points: dict[str, np.ndarray], groups: list[str], draws: int
) -> dict[str, Any]:
    """Stages with their scores, what each network loses, and the three largest losses; intervals are paired.

    scores: of `STAGES` and "shuffled", (N,) each; points: of `STAGES`, (N, E). A loss's `share` is its part of what
    there is to lose: the score of the truth less that of shuffled prompts. A score has none where that is nothing.
    """
    stages = {stage: {name: intervals.of_mean(values[~np.isnan(values)]) for name, values in found.items()}
              for stage, found in scores.items()}  # fmt: skip
    truth = points["truth"]
    for stage in STAGES[1:]:
        stages[stage]["frechet"] = intervals.of_sets(
            _paired_distance, np.stack([points[stage], truth], 1), draws=draws
        )
    of = {group: np.asarray(groups) == group for group in dict.fromkeys(groups)}
    by_group = {stage: {group: float(found["group"][mine].mean()) for group, mine in of.items()}
                for stage, found in scores.items()}  # fmt: skip
    losses = []
    for before, stage in pairwise(STAGES):
        for name in ("group", "tempo", "cycle"):
            lost = scores[before][name] - scores[stage][name]
            lost = intervals.of_mean(lost[~np.isnan(lost)])
            to_lose = stages["truth"][name].value - stages["shuffled"][name].value
            share = {"share": lost.value / to_lose} if to_lose > 0 else {}
            losses.append({"network": LOSES[stage], "stage": stage, "score": name, "lost": lost, **share})
        both = np.stack([points[before], points[stage], truth], 1)
        added = intervals.of_sets(_added_distance, both, draws=draws)
        losses.append({"network": LOSES[stage], "stage": stage, "score": "frechet", "lost": added})
    ranked = sorted((one for one in losses if "share" in one), key=lambda one: -one["share"])
    return {"stages": stages, "by_group": by_group, "losses": losses, "largest": ranked[:3]}


def _paired_distance(pairs: np.ndarray) -> float:
    return frechet_distance(pairs[:, 0], pairs[:, 1])


def _added_distance(triples: np.ndarray) -> float:
    return frechet_distance(triples[:, 1], triples[:, 2]) - frechet_distance(triples[:, 0], triples[:, 2])


def markdown(result: dict[str, Any]) -> str:
    """The result in tables."""
    shown = ("group", "tempo", "cycle", "frechet")
    lines = [
        f"{result['prompts']['count']} composed test prompts; {result['embedding']}; 95 % intervals.",
        "",
    ]
    lines += ["| clips | group right | tempo right | cycle consistency | Fréchet distance to the truth |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for stage, found in result["stages"].items():
        lines.append(f"| {stage} | " + " | ".join(_three(found.get(name)) for name in shown) + " |")
    lines += ["", "What each network loses (paired by prompt; below 0: it gains):", ""]
    lines += ["| network | group right | tempo right | cycle consistency | Fréchet distance added |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for stage, network in LOSES.items():
        mine = {one["score"]: one["lost"] for one in result["losses"] if one["stage"] == stage}
        lines.append(f"| {network} | " + " | ".join(_three(mine[name]) for name in shown) + " |")
    lines += [
        "",
        "The largest losses, as shares of what there is to lose (the truth's score less shuffled prompts'):",
        "",
    ]
    for number, one in enumerate(result["largest"], start=1):
        lines.append(f"{number}. {one['network']}, {one['score']}: {one['share']:.0%}, {_three(one['lost'])}. "
                     f"{_groups(result, one)}To try: {ADVICE[one['stage']]}.")  # fmt: skip
    stages = list(result["by_group"])
    lines += ["", "| group right | " + " | ".join(stages) + " |", "| --- |" + " --- |" * len(stages)]
    for group in result["by_group"]["truth"]:
        lines.append(
            f"| {group} | " + " | ".join(f"{result['by_group'][stage][group]:.1f}" for stage in stages) + " |"
        )
    return "\n".join(lines) + "\n"


def _three(interval: Any) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})" if interval is not None else ""


def _groups(result: dict[str, Any], loss: dict[str, Any]) -> str:
    """The groups that lose most by the network, if it is groups that are lost."""
    if loss["score"] != "group":
        return ""
    before = STAGES[STAGES.index(loss["stage"]) - 1]
    lost = {
        group: score - result["by_group"][loss["stage"]][group]
        for group, score in result["by_group"][before].items()
    }
    most = sorted(lost, key=lambda group: -lost[group])[:3]
    return f"Most of all {', '.join(f'{group} (-{lost[group]:.1f})' for group in most if lost[group] > 0)}. "
