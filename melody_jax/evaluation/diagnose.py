"""`melody diagnose`: how much each network of a released model loses; see docs/evaluation.md.

    melody diagnose --model mini

Composed test pieces enter the system one stage earlier each time (evaluation/entry_stages.py). The drop of a
score from one stage to the next is the loss of one network. Writes `diagnosis-<model>.json` and `.md`.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from melody_jax import __version__, files, hub
from melody_jax.evaluation import clip_features, composed_prompts, fidelity, group_judge, stage_swap
from melody_jax.evaluation.adherence import Judge
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.entry_stages import STAGES, TRUTH
from melody_jax.evaluation.losses import markdown, summarise
from melody_jax.evaluation.metrics import shuffled
from melody_jax.evaluation.npz import DAMAGED, read_npz, write_npz
from melody_jax.evaluation.sound import Sound
from melody_jax.options import option
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.settings import SamplingSettings, shared_settings, with_drawn_seed
from melody_jax.sampling.system import System

BATCH = 16
VERSION = 1
"""Version of the swapped clips and of their fidelity: raise it when a prompt gets other measurements."""
COLUMNS = ("statistics", "tempo", "points", "fidelity")
"""Measurements of a clip: log-mel statistics, tempo in bpm, embedding, and the measures in `fidelity.TITLES`."""
FIDELITY_NOTE = (
    "Sound compared with the truth, means over clips. Clips that follow a prompt, not the truth's bars, have no "
    "original for their bass and bands."
)


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(SamplingSettings):
    """Which model is diagnosed, and with which pieces."""

    model: str = option("mini", group="what to measure")
    """Name of the release, or owner/name on the Hugging Face Hub; of melody and musiclm, it must contain a
    tokenizer."""
    folder: str = ""
    """Folder of releases; empty: the packaged ones."""
    system: str = option("melody", choices=tuple(STAGES))
    """Kind of the model. Of other kinds than these, clips follow no prompts."""
    prompts: str = str(composed_prompts.PROMPTS)
    """List of composed test prompts (evaluation/composed_prompts.py); composed if there is no such file."""
    out: str = option(".", group="where to write")
    """Folder of the result; it must exist."""
    cache: str = "runs/diagnose"
    """Folder of the judge's training clips and of measured stages."""
    judge_pieces: int = option(160, least=10, group="how to measure")
    """Composed clips of each group that the judge is trained on."""
    draws: int = option(500, least=20)
    """Bootstrap resamples per interval."""


PLACES = ("folder", "prompts", "out", "cache")
"""Fields with folders of this machine, which the result leaves out."""


def diagnose(config: DiagnoseConfig) -> dict[str, Any]:
    """Measures every stage and writes the tables; returns the content of the JSON file.

    Raises:
        UserError: the model or the prompts cannot be read, or the result cannot be written.
    """
    out = Path(config.out)
    for path in (out, config.cache):
        files.check_folder(path)
    enable_compile_cache()
    config = with_drawn_seed(config)
    file = Path(config.prompts)
    if not file.exists():
        composed_prompts.write_prompts(file)
    prompts = composed_prompts.read_prompts(file)
    folder = Path(config.folder) if config.folder else None
    config = replace(config, model=hub.pin(config.model, folder))
    system = stage_swap.load_system(config.model, config.system, config.folder)
    mulan = MuLan(config.model, folder)
    measured = _measure_stages(config, system, mulan, prompts)
    scorer = group_judge.train_group_judge(Path(config.cache), config.judge_pieces)
    scores = {stage: _scores(rows, prompts, scorer, mulan) for stage, rows in measured.items()}
    others = shuffled([prompt.group for prompt in prompts])
    if others is not None:
        scores["shuffled"] = _scores(measured["text"], [prompts[i] for i in others], scorer, mulan)
    embeddings = {stage: rows["points"] for stage, rows in measured.items()}
    result = {
        "version": __version__,
        "settings": {f.name: getattr(config, f.name) for f in fields(config) if f.name not in PLACES},
        "model_hash": system.hash,
        "prompts": {"sha256": files.file_hash(file), "count": len(prompts)},
        "embedding": mulan.name,
        **summarise(
            scores, embeddings, [p.group for p in prompts], config.draws, STAGES[config.system], config.seed
        ),
        "fidelity": {
            stage: fidelity.summarise(
                dict(zip(fidelity.TITLES, rows["fidelity"].T, strict=True)), config.draws, config.seed
            )
            for stage, rows in measured.items()
        },
    }
    text = f"{markdown(result, STAGES[config.system])}\n{FIDELITY_NOTE}\n\n{fidelity.markdown(result['fidelity'])}"
    files.make_folder(out)
    report = out / f"diagnosis-{config.model}.json"
    files.write_json(report, result)
    files.write_bytes(report.with_suffix(".md"), text.encode())
    print(text)
    print(f"Wrote {report} and .md", file=sys.stderr)
    return result


def _measure_stages(
    config: DiagnoseConfig, system: System, mulan: MuLan, prompts: list[ComposedPrompt]
) -> dict[str, dict[str, np.ndarray]]:
    """Stage -> `COLUMNS`: (N, F), (N,), (N, E) and (N, measures). Batches in the cache are not measured again."""
    stages = (TRUTH, *(stage.name for stage in STAGES[config.system]))
    names = [f"{stage}/{name}" for stage in stages for name in COLUMNS]
    rendering = composed_prompts.rendering_hash("test")
    parts: list[dict[str, np.ndarray]] = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="stages", unit="batch", disable=None):
        batch = prompts[start : start + BATCH]
        settings = shared_settings(config)
        inputs = [
            VERSION,
            clip_features.VERSION,
            rendering,
            mulan.sha256,
            COLUMNS,
            list(fidelity.TITLES),
            system.hashes,
            settings,
            start,
            [asdict(prompt) for prompt in batch],
        ]
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        file = Path(config.cache) / f"{key}.npz"
        if not file.exists():
            write_npz(file, _measure_batch(config, system, mulan, batch, start))
        parts.append(read_npz(file, names, DAMAGED))
    return {
        stage: {name: np.concatenate([part[f"{stage}/{name}"] for part in parts]) for name in COLUMNS}
        for stage in stages
    }


def _measure_batch(
    config: DiagnoseConfig, system: System, mulan: MuLan, prompts: list[ComposedPrompt], start: int
) -> dict[str, np.ndarray]:
    """ "<stage>/<column>" -> measurements of the prompts from number `start` on."""
    truth = np.stack(
        [
            composed_prompts.ground_truth(prompt, number, system.window_seconds, system.audio_format)
            for number, prompt in enumerate(prompts, start=start)
        ]
    )
    texts = [prompt.text for prompt in prompts]
    settings = replace(config, seed=config.seed + start)
    swapped = stage_swap.swap_stages(system, truth, texts, settings)
    aligned = {TRUTH, *(stage.name for stage in STAGES[config.system] if stage.follows_truth)}
    columns = {}
    originals = [Sound(wave, system.audio_format) for wave in truth]
    for stage, waves in ({TRUTH: truth} | swapped).items():
        sounds = [Sound(wave, system.audio_format) for wave in waves]
        mono = np.stack([sound.to() for sound in sounds])
        statistics = [clip_features.log_mel_statistics(wave) for wave in mono]
        columns[f"{stage}/statistics"] = np.stack(statistics)
        columns[f"{stage}/tempo"] = np.asarray([clip_features.estimate_tempo(wave) for wave in mono])
        columns[f"{stage}/points"] = np.asarray(mulan(mono))
        pairs = zip(sounds, originals, strict=True)
        measured = [fidelity.measures(wave, original, stage in aligned) for wave, original in pairs]
        columns[f"{stage}/fidelity"] = np.asarray(
            [[row[name] for name in fidelity.TITLES] for row in measured]
        )
    return columns


def _scores(
    rows: dict[str, np.ndarray], prompts: list[ComposedPrompt], scorer: Judge, mulan: MuLan
) -> dict[str, np.ndarray]:
    """Scores (N,): "group" and "tempo" 0 or 1, nan for the tempo of music without a beat, and "cycle", a
    cosine."""
    scores = scorer.scores(rows, [prompt.facts for prompt in prompts])
    cosines = mulan.cycle(rows["points"], [prompt.text for prompt in prompts])
    return scores | {"cycle": cosines.astype(float)}
