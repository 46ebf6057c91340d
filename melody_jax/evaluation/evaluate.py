"""`melody evaluate`: what a folder of clips, or a released model with a file of prompts, is worth; docs/evaluation.md.

    melody evaluate --clips clips --reference corpus/test --out report
    melody evaluate --model mini --prompts prompts.jsonl --reference corpus/test --out report

Writes `evaluation.json` (all numbers, settings, hashes), `evaluation.md`, plots and `index.html`, a page to listen to.
Several processes share the work (`--process 0 --processes 4`, ...) if they share `--cache` and `--out`: each measures
its clips, and the one that finds everything measured writes the result.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import __version__
from melody_jax.data.records import file_hash, write_bytes
from melody_jax.errors import UserError
from melody_jax.evaluation import fact_judges, metrics, page, prompt_facts, report
from melody_jax.evaluation.clips import Clip, ClipSet, open_set
from melody_jax.evaluation.embed_clips import Rows, Share, measure
from melody_jax.evaluation.embedding import Embedding, MuLan, open_embedding
from melody_jax.evaluation.frechet import Moments
from melody_jax.runtime import enable_compile_cache


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, against what."""

    clips: str = ""
    """Folder of sound files, or of audio shards; empty: made from `model` and `prompts` into `out`/clips."""
    model: str = ""
    """Released model that makes the clips, with the sampler's default settings."""
    prompts: str = ""
    """File of prompts, one JSON object a line with "id" and "prompt"; empty: those of the folder's manifest."""
    folder: str = ""
    """Where releases are; empty: the package's own."""
    reference: str = ""
    """Real music, held out of training: a folder as `clips`, or a .npz with the mean "mu" (E,) and covariance "sigma"
    (E, E) of its embeddings; empty: no distances."""
    training: str = ""
    """The music that the model was trained on, a folder as `clips`, to look for memorised clips; empty: not looked."""
    judges: str = ""
    """Audio shards of composed music, from the train split, that judges of genre, instruments, tempo, key, mode and
    metre learn from; empty: no adherence."""
    embedding: str = "mini"
    """A release, whose MuLan's music tower is taken, or a Python file (evaluation/embedding.py)."""
    seconds: float = 10.24
    """Length of the pieces that all sets are cut into, at least 2; shorter clips are measured whole."""
    draws: int = 200
    """Redrawn sets a bootstrap interval is made from."""
    seed: int = 0
    """Of clips made, of redrawn sets and of judges."""
    listen: int = 40
    """Clips on the page, taken evenly."""
    out: str = "evaluation"
    """Folder of the result; made if it is not there."""
    cache: str = "runs/evaluation"
    """Folder of what was measured, for the next run and for other processes."""
    process: int = 0
    """Which of the processes this is, from 0."""
    processes: int = 1
    """How many processes share the work."""

    def __post_init__(self) -> None:
        if self.seconds < 2:
            raise UserError(f"seconds is {self.seconds}; it must be at least 2")
        if self.draws < 20:
            raise UserError(f"draws is {self.draws}; an interval needs at least 20")
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"process is {self.process}; with processes {self.processes} it is 0 to {self.processes - 1}"
            )


PLACES = (
    "folder",
    "out",
    "cache",
    "process",
    "processes",
    "clips",
    "reference",
    "training",
    "judges",
    "prompts",
)
"""Fields that say where, not what: sets are named by their hashes instead."""


def evaluate(config: EvaluateConfig) -> dict[str, Any] | None:
    """Measures and writes; returns what `evaluation.json` holds, or None where other processes are still at work.

    Raises `UserError` for anything missing, unreadable or too small to be measured.
    """
    enable_compile_cache()
    if not config.clips and not (config.model and config.prompts):
        raise UserError("--clips is empty; give a folder, or --model and --prompts to make the clips from")
    embedding = open_embedding(config.embedding, Path(config.folder) if config.folder else None)
    if not config.clips and not _make_clips(config):
        print("other processes are still making clips; the last to be done with them measures")
        return None
    clips = open_set(
        Path(config.clips or _made(config)), Path(config.prompts) if config.prompts and config.clips else None
    )
    share = Share(
        cache=Path(config.cache), seconds=config.seconds, process=config.process, processes=config.processes
    )
    sets = {"clips": clips}
    sets |= {name: open_set(Path(where)) for name, where in _others(config).items()}
    hears = bool(config.judges)
    measured = {
        name: measure(one, embedding, share, hears and name in ("clips", "judges"))
        for name, one in sets.items()
    }
    rows = {name: one for name, one in measured.items() if one is not None}
    if len(rows) < len(sets):
        print("other processes are still measuring; the last to be done writes the result")
        return None
    result = _result(config, embedding, sets, rows)
    write(config, result, clips, rows["clips"])
    return result


def _others(config: EvaluateConfig) -> dict[str, str]:
    where = {"reference": config.reference, "training": config.training, "judges": config.judges}
    return {name: path for name, path in where.items() if path and not path.endswith(".npz")}


def _made(config: EvaluateConfig) -> str:
    return str(Path(config.out) / "clips")


def _make_clips(config: EvaluateConfig) -> bool:
    """Has the batch service make this process's clips; whether all of them are there."""
    from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
    from melody_jax.sampling.cascade import load
    from melody_jax.sampling.manifest import read_entries
    from melody_jax.sampling.prompt_file import read_prompt_file

    prompts, out = Path(config.prompts), Path(_made(config))
    lines = read_prompt_file(prompts, {"seed": config.seed})
    job = BatchJobConfig(
        prompts=prompts, out=out, suffix=".flac", process=config.process, processes=config.processes
    )
    run_batch_job(load(config.model, folder=config.folder or None), job, lines)
    return len(read_entries(out)) >= len(lines)


def _result(
    config: EvaluateConfig, embedding: Embedding, sets: dict[str, ClipSet], rows: dict[str, Rows]
) -> dict[str, Any]:
    """All figures; intervals are [value, low, high]."""
    mine, pieces = rows["clips"], [sets["clips"].clips[i] for i in rows["clips"].clip]
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in PLACES}
    named = {name: {"name": one.name, "sha256": one.sha256, "clips": len(one.clips), "pieces": len(rows[name])}
             for name, one in sets.items()}  # fmt: skip
    result: dict[str, Any] = {
        "version": __version__,
        "settings": settings,
        "embedding": embedding.name,
        "sets": named,
    }
    reference, real = _reference(config, rows)
    if reference is not None:
        if config.reference.endswith(".npz"):
            named["reference"] = {"name": Path(config.reference).name, "sha256": file_hash(config.reference)}
        result["distance"] = metrics.distances(mine.points, reference, real, config.draws, config.seed)
    result["diversity"] = metrics.diversity(
        mine.points, [piece.prompt for piece in pieces], real, config.seed
    )
    if isinstance(embedding, MuLan) and all(piece.prompt for piece in pieces):
        result["cycle"] = metrics.cycle(
            embedding, mine.points, [piece.prompt for piece in pieces], config.seed
        )
    if "training" in rows:
        result["memorisation"] = metrics.memorisation(mine.points, rows["training"].points, real)
    if "judges" in rows:
        truth = [_asked(piece) for piece in pieces]
        result["adherence"] = metrics.adherence(
            mine.heard, truth, _judges(sets, rows, config.seed), config.seed
        )
    result["signal"] = metrics.signals(mine.figures, config.seed)
    per_piece = {name: values.tolist() for name, values in metrics.per_piece(mine, reference, result).items()}
    names = [
        {"clip": piece.name, "start": float(start)} for piece, start in zip(pieces, mine.start, strict=True)
    ]
    result["pieces"] = [name | dict(zip(per_piece, values, strict=True)) for name, values in
                        zip(names, zip(*per_piece.values(), strict=True), strict=True)]  # fmt: skip
    return result


def _reference(config: EvaluateConfig, rows: dict[str, Rows]) -> tuple[Moments | None, np.ndarray | None]:
    """The moments of the reference and, if it is a set of clips, its points."""
    if "reference" in rows:
        points = rows["reference"].points
        return Moments.of(points), points
    return (metrics.read_moments(Path(config.reference)), None) if config.reference else (None, None)


def _asked(clip: Clip) -> prompt_facts.Asked:
    return prompt_facts.of_facts(clip.facts) if clip.facts else prompt_facts.of_text(clip.prompt)


def _judges(sets: dict[str, ClipSet], rows: dict[str, Rows], seed: int) -> fact_judges.Judges:
    """Judges that learnt from all but every fifth clip of their set."""
    clips, index = sets["judges"].clips, rows["judges"].clip
    if any(clip.facts is None for clip in clips):
        raise UserError(f"{sets['judges'].where}: has clips without facts; judges learn from composed music")
    truth = [_asked(clip) for clip in clips]
    return fact_judges.train(rows["judges"].heard, [truth[i] for i in index], index % 5 == 4, seed)


def write(config: EvaluateConfig, result: dict[str, Any], clips: ClipSet, rows: Rows) -> None:
    """The files of the result, in `config.out`. Raises `UserError` if it cannot be written."""
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    text = report.markdown(result)
    write_bytes(out / "evaluation.json", (json.dumps(result, indent=1) + "\n").encode())
    write_bytes(out / "evaluation.md", text.encode())
    report.plot(out / "evaluation.png", result)
    chosen = (
        np.unique(np.linspace(0, len(rows) - 1, min(config.listen, len(rows))).astype(int))
        if config.listen
        else []
    )
    page.write(out, result, clips, [int(i) for i in chosen], config.seconds)
    print(text)
    print(f"{out / 'index.html'} has {len(chosen)} clips to listen to")
