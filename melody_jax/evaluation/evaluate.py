"""`melody evaluate`: measures a folder of clips, or a released model with a file of prompts; see
docs/evaluation.md.

    melody evaluate --clips clips --reference corpus/test --out report
    melody evaluate --model mini --prompts prompts.jsonl --reference corpus/test --out report

Writes `evaluation.json` (all numbers, settings, hashes), `evaluation.md`, plots, and `index.html`, a page to
listen to. Several processes can share the work (`--process 0 --processes 4`, ...) if they share `--cache` and
`--out`: each measures a part of the clips, and the last one to finish writes the result.
"""

import sys
import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from melody_jax import __version__, files, hub
from melody_jax.composer import prompt_facts
from melody_jax.errors import InputWarning, UserError
from melody_jax.evaluation import adherence, metrics, page, report, votes
from melody_jax.evaluation.clips import Clip, ClipSet, count_pieces, open_set
from melody_jax.evaluation.embed_clips import Rows, Share, measure
from melody_jax.evaluation.embedding import Embedding, MuLan, embedding_width, open_embedding
from melody_jax.evaluation.evaluate_config import PLACES, EvaluateConfig
from melody_jax.evaluation.fact_judges import LEAST_CLIPS, FactJudges, check_size, train_fact_judges
from melody_jax.evaluation.frechet import Moments
from melody_jax.runtime import enable_compile_cache
from melody_jax.systems import load

WITH_FEATURES = ("clips", "judges")
"""Sets that the judges see."""


def evaluate(config: EvaluateConfig) -> dict[str, Any] | None:
    """Measures and writes the result; returns the content of `evaluation.json`, or None while other processes
    work.

    Raises:
        UserError: an input is missing, unreadable or too small to be measured, or a folder cannot be written.
    """
    if config.votes and not (config.clips or config.model or config.prompts):
        return votes.evaluate_alone(config)
    _check_inputs(config)
    summary = votes.summarise(Path(config.votes)) if config.votes else None
    for folder in (config.out, config.cache):
        files.check_folder(folder)
    config = replace(config, model=hub.pin(config.model, config.folder or None))
    enable_compile_cache()
    inputs = open_inputs(config)
    if config.beam:
        config = _run_with_beam(config)
    elif not config.clips and not make_clips(config):
        print(
            "Other processes are still making clips; the last one to finish measures them.", file=sys.stderr
        )
        return None
    sets, rows = measure_sets(config, inputs)
    if len(rows) < len(sets):
        print(
            "Other processes are still measuring; the last one to finish writes the result.", file=sys.stderr
        )
        return None
    result = _result(config, inputs.embedding, sets, rows, inputs.moments)
    if summary is not None:
        result["votes"] = summary
    for role, described in result["sets"].items():
        for name, reason in described.get("rejects", {}).items():
            print(f"{role}: {name} is not measured: {reason}", file=sys.stderr)
    write(config, result, sets["clips"], rows["clips"])
    return result


def _run_with_beam(config: EvaluateConfig) -> EvaluateConfig:
    """Has Apache Beam's workers make and measure the clips; returns the config of the one process that remains."""
    from melody_jax.evaluation.beam_evaluation import run_shares

    make = None if config.clips else partial(_make_share, config)
    run_shares(
        config.beam, config.processes, make, partial(open_inputs, config), partial(_measure_share, config)
    )
    return replace(config, processes=1)


def _make_share(config: EvaluateConfig, process: int) -> None:
    make_clips(replace(config, beam=(), process=process))


def _measure_share(config: EvaluateConfig, process: int, inputs: "Inputs") -> None:
    measure_sets(replace(config, beam=(), process=process), inputs)


class Inputs(NamedTuple):
    """What clips are measured with and compared with."""

    embedding: Embedding
    moments: Moments | None
    """Of a reference that is a .npz."""
    compared: dict[str, ClipSet]
    """Role -> set."""


def open_inputs(config: EvaluateConfig) -> Inputs:
    """Everything but the clips themselves. Raises `UserError` if something is missing or too small."""
    embedding = open_embedding(config.embedding, Path(config.folder) if config.folder else None)
    moments = _read_reference(config, embedding)
    compared = _open_compared(config)
    if "judges" in compared:
        _check_judges(compared["judges"], config.seconds)
    return Inputs(embedding, moments, compared)


def measure_sets(config: EvaluateConfig, inputs: Inputs) -> tuple[dict[str, ClipSet], dict[str, Rows]]:
    """The sets by role, and the measurements of those of which no other process has to finish its share."""
    prompts = Path(config.prompts) if config.prompts and config.clips else None
    sets = {"clips": open_set(Path(config.clips or _clips_folder(config)), prompts)} | inputs.compared
    share = Share(
        cache=Path(config.cache), seconds=config.seconds, process=config.process, processes=config.processes
    )
    rows: dict[str, Rows] = {}
    for name, clips in sets.items():
        measured = measure(clips, inputs.embedding, share, bool(config.judges) and name in WITH_FEATURES)
        if measured is not None:
            rows[name] = measured
    return sets, rows


def _check_inputs(config: EvaluateConfig) -> None:
    """Raises `UserError` for options that do not go together, or folders that lie in each other."""
    if not config.clips and not (config.model and config.prompts):
        raise UserError(
            "--clips is empty; give a folder, or --model and --prompts to make the clips from, or --votes"
        )
    for name in ("model", "system"):
        value = getattr(config, name)
        if config.clips and value != getattr(EvaluateConfig, name):
            raise UserError(
                f"--clips {config.clips} and --{name} {value}: either a folder or a model is measured; leave one out"
            )
    for name in ("clips", "reference", "training"):
        place = getattr(config, name)
        if place and Path(config.out).resolve().is_relative_to(Path(place).resolve()):
            raise UserError(
                f"--out {config.out} lies in --{name} {place}, where its players would count as clips; choose another "
                "folder"
            )
        if place and Path(place).resolve().is_relative_to(Path(config.out).resolve() / "pieces"):
            raise UserError(
                f"--{name} {place} is where the players of --out {config.out} are written; choose another folder"
            )


def _read_reference(config: EvaluateConfig, embedding: Embedding) -> Moments | None:
    """The moments of a reference that is a .npz, before anything is made. Raises `UserError` for another width."""
    if not config.reference.endswith(".npz"):
        return None
    moments = metrics.read_moments(Path(config.reference))
    width = embedding_width(embedding)
    if len(moments.mean) != width:
        raise UserError(
            f"--reference {config.reference}: statistics of embeddings of width {len(moments.mean)}; "
            f"{embedding.name} has width {width}"
        )
    return moments


def _open_compared(config: EvaluateConfig) -> dict[str, ClipSet]:
    """The sets that are given as folders, by role: "reference", "training" and "judges"."""
    paths = {role: getattr(config, role) for role in ("reference", "training", "judges")}
    if config.reference.endswith(".npz"):
        del paths["reference"]
    return {role: open_set(Path(path)) for role, path in paths.items() if path}


def _clips_folder(config: EvaluateConfig) -> Path:
    return Path(config.out) / "clips"


def make_clips(config: EvaluateConfig) -> bool:
    """Makes this process's share of the clips with a batch job; returns whether all clips exist."""
    from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
    from melody_jax.sampling.manifest import read_entries
    from melody_jax.sampling.plan import NETWORKS
    from melody_jax.sampling.prompt_file import read_prompt_file

    prompts = Path(config.prompts)
    out = _clips_folder(config)
    lines = read_prompt_file(prompts, {"seed": config.seed})
    job = BatchJobConfig(
        prompts=prompts, out=out, suffix=".flac", process=config.process, processes=config.processes
    )
    wanted = {line.clip_id for line in lines}
    if foreign := sorted(read_entries(out).keys() - wanted):
        raise UserError(f"{out}: holds clips of other prompts, the first: {foreign[0]}; use another --out")
    options: dict[str, Any] = {}
    if config.system == "melody" and any(line.request.source is not None for line in lines):
        options = {"networks": (*NETWORKS, "tokenizer")}
    system = load(config.model, system=config.system, folder=config.folder or None, **options)
    run_batch_job(system, job, lines)
    return wanted <= read_entries(out).keys()


def _result(
    config: EvaluateConfig,
    embedding: Embedding,
    sets: dict[str, ClipSet],
    rows: dict[str, Rows],
    moments: Moments | None,
) -> dict[str, Any]:
    """All metrics; intervals are [value, low, high].

    moments: those of a reference of which the clips are not available.
    """
    clips = rows["clips"]
    pieces = [sets["clips"].clips[i] for i in clips.clip]
    prompts = [piece.prompt for piece in pieces]
    real = rows["reference"].embeddings if "reference" in rows else None
    reference = moments if real is None else Moments.of(real)
    result: dict[str, Any] = {
        "version": __version__,
        "settings": {f.name: getattr(config, f.name) for f in fields(config) if f.name not in PLACES},
        "embedding": embedding.name,
        "sets": _described_sets(config, sets, rows),
    }
    if reference is not None:
        result["distance"] = metrics.distances(clips.embeddings, reference, real, config.draws, config.seed)
    result["diversity"] = metrics.diversity(clips, prompts, rows.get("reference"), config.draws, config.seed)
    if any(prompts) and not all(prompts):
        count = prompts.count("")
        warnings.warn(
            f"{count} of {len(prompts)} pieces have no prompt: cycle consistency is left out",
            InputWarning,
            stacklevel=2,
        )
    if isinstance(embedding, MuLan) and all(prompts):
        result["cycle"] = metrics.cycle(embedding, clips.embeddings, prompts, config.draws, config.seed)
    if "training" in rows:
        training = rows["training"].embeddings
        result["memorisation"] = metrics.memorisation(
            clips.embeddings, training, real, config.draws, config.seed
        )
    if "judges" in rows:
        judges = train_judges(sets["judges"], rows["judges"], config.seed)
        facts = [_facts(piece) for piece in pieces]
        result["adherence"] = adherence.adherence(judges, clips.features, facts, config.seed, config.draws)
    result["signal"] = metrics.signals(clips.signal, config.draws, config.seed)
    result["pieces"] = _per_piece(clips, pieces, metrics.per_piece(clips, reference, result))
    return result


def _described_sets(
    config: EvaluateConfig, sets: dict[str, ClipSet], rows: dict[str, Rows]
) -> dict[str, dict[str, Any]]:
    """Role -> name, hash and size of the set."""
    described: dict[str, dict[str, Any]] = {
        role: {
            "name": clips.name,
            "sha256": clips.sha256,
            "clips": len(clips.clips),
            "pieces": len(rows[role]),
            "rejects": clips.rejects | {clips.clips[i].name: why for i, why in rows[role].rejects.items()},
        }
        for role, clips in sets.items()
    }
    if config.reference.endswith(".npz"):
        described["reference"] = {
            "name": Path(config.reference).name,
            "sha256": files.file_hash(config.reference),
        }
    return described


def _per_piece(
    rows: Rows, pieces: list[Clip], columns: dict[str, np.ndarray]
) -> list[dict[str, str | float | None]]:
    """The name, start and metrics of every piece; None for what is not defined for it."""
    lists = [[None if np.isnan(x) else x for x in column.tolist()] for column in columns.values()]
    values = zip(*lists, strict=True)
    return [
        {"clip": piece.name, "start": float(start)} | dict(zip(columns, row, strict=True))
        for piece, start, row in zip(pieces, rows.start, values, strict=True)
    ]


def _facts(clip: Clip) -> prompt_facts.PromptFacts:
    return prompt_facts.of_facts(clip.facts) if clip.facts else prompt_facts.of_text(clip.prompt)


def train_judges(clips: ClipSet, rows: Rows, seed: int) -> FactJudges:
    """Judges trained on the set without every fifth clip, on which their accuracy is measured."""
    facts = [_facts(clip) for clip in clips.clips]
    return train_fact_judges(rows.features, [facts[i] for i in rows.clip], _is_held_out(rows.clip), seed)


def _is_held_out(clips: np.ndarray) -> np.ndarray:
    """Mask of the clips, given by their indices, on which the judges' accuracy is measured."""
    return clips % 5 == 4


def _check_judges(clips: ClipSet, seconds: float) -> None:
    """Raises `UserError` if the set cannot train judges, before anything is measured."""
    if any(clip.facts is None for clip in clips.clips):
        raise UserError(f"{clips.where}: has clips without facts; judges are trained on composed music")
    held_out = 0
    total = 0
    for index, clip in enumerate(clips.clips):
        count = count_pieces(clip, seconds)
        total += count
        held_out += count * bool(_is_held_out(np.asarray(index)))
        if min(held_out, total - held_out) >= LEAST_CLIPS:
            return
    check_size(total, held_out)


def write(config: EvaluateConfig, result: dict[str, Any], clips: ClipSet, rows: Rows) -> None:
    """Writes the result into `config.out` and prints the tables. Raises `UserError` if it cannot be
    written."""
    out = Path(config.out)
    files.make_folder(out)
    text = report.markdown(result)
    files.write_json(out / "evaluation.json", result)
    files.write_bytes(out / "evaluation.md", text.encode())
    report.plot(out / "evaluation.png", result)
    count = min(config.listen, len(rows))
    chosen = np.unique(np.linspace(0, len(rows) - 1, count).astype(int)).tolist() if count else []
    page.write(out, result, clips, chosen, config.seconds)
    print(text)
    print(
        f"Wrote {out / 'evaluation.json'}, .md, .png and {out / 'index.html'} with {len(chosen)} clips to listen to",
        file=sys.stderr,
    )
