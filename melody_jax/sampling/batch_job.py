"""Batch jobs: thousands of clips from a prompt file, `melody sample --prompts prompts.jsonl --out clips`.

Clips that share a compiled program form batches of one size, split over the devices of the process. Several
processes divide the lines of a prompt file. A clip's file is complete and on the disk before its line of the
manifest, which has its size and sha256. Clips that still agree with their line are not made again, so a killed
job resumes with the same command.
"""

import dataclasses
import fnmatch
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from melody_jax import audio, files
from melody_jax.config_json import difference
from melody_jax.errors import InputWarning, UserError
from melody_jax.mirror import Mirror, mirrored
from melody_jax.sampling import plan
from melody_jax.sampling.manifest import FILES, ClipManifest, file_name, open_manifest
from melody_jax.sampling.prompt_file import PromptLine, raise_line_errors
from melody_jax.sampling.system import System
from melody_jax.sharding import make_mesh

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
"""Format of a progress bar that shows items per second, never seconds per item."""
ENTRY_ONLY = ("id", "file", "bytes", "sha256", "unknown_words", "model_hash", "seconds_taken", "made_at")
"""Fields of a manifest line that are not settings of the clip."""


@dataclass(frozen=True, kw_only=True)
class BatchJobConfig:
    """A batch job, or one process's share of it."""

    prompts: Path
    """Prompt file, one JSON object per line (sampling/prompt_file.py)."""
    out: Path
    """Folder of the clips and of the manifest; created if missing."""
    batch: int = 16
    """Clips made at a time, 1 to 1024."""
    suffix: str = ".wav"
    """Format of the clips: .wav, .flac, .ogg or .mp3."""
    process: int = 0
    """Index of this process, from 0: it makes every `processes`-th clip."""
    processes: int = 1
    """Number of processes that share the job, all with the same prompt file and folder."""
    replace: bool = False
    """Makes clips again whose settings have changed; otherwise a changed setting is an error."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1024:
            raise UserError(f"batch is {self.batch}; it must be from 1 to 1024")
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"process is {self.process}; with processes {self.processes} it is 0 to {self.processes - 1}"
            )
        if self.suffix not in audio.FORMATS:
            raise UserError(f"suffix is {self.suffix!r}; it must be one of {', '.join(audio.FORMATS)}")


def share(lines: list[PromptLine], config: BatchJobConfig) -> list[PromptLine]:
    """The lines that this process makes."""
    return lines[config.process :: config.processes]


def run_batch_job(system: System, config: BatchJobConfig, lines: list[PromptLine]) -> int:
    """Makes the missing clips of this process's share, and returns how many it made.

    Warns of prompts with words that the model does not know, of scenes that no chunk follows, and of clips that are
    not as they were written.

    Raises:
        UserError: before any work, if lines are bad, the folder cannot be written or is in use by another job, clips
            exist with other settings (unless `config.replace`), or a batch does not fit into memory; later, if the
            disk is full.
    """
    source_samples = _check_lines(system, config, lines)
    lines = share(lines, config)
    _warn_of_prompts(system, config, lines)
    with (
        mirrored_out(config) as mirror,
        open_manifest(mirror, config.process, config.processes) as manifest,
    ):
        config = dataclasses.replace(config, out=mirror.folder)
        missing = _missing_lines(lines, manifest, config, system.hash)
        _remove_partial_files(config, missing)
        devices = jax.local_devices()
        replicated = system
        if len(devices) > 1:
            replicated = system.replicate_over(make_mesh((-1, 1, 1), devices))
        parts = 1 if replicated is system else len(devices)
        for batch, size in group_lines(system, missing, config.batch, parts):
            lengths = {line.request: source_samples.get(line.request.source, 0) for line in batch}
            plan.check_memory([batch[0].request] * size, system.audio_format, lengths)
        with tqdm(
            total=len(lines),
            initial=len(lines) - len(missing),
            unit=" clips",
            desc=f"{mirror}: compiling and sampling",
            bar_format=BAR,
            disable=None,
        ) as progress:
            for batch, size in group_lines(system, missing, config.batch, parts):
                has_source = batch[0].request.source is not None
                _make_clips(system if has_source else replicated, batch, size, config, manifest)
                progress.set_description(str(mirror), refresh=False)
                progress.update(len(batch))
    return len(missing)


def mirrored_out(config: BatchJobConfig) -> AbstractContextManager[Mirror]:
    """The folder of the clips or, in a bucket, a local copy of its manifests; clips are uploaded, then deleted here."""
    return mirrored(
        config.out,
        fetches=lambda name: fnmatch.fnmatch(name, FILES),
        discards=lambda name: name.endswith(tuple(audio.FORMATS)),
        part=file_name(config.process, config.processes),
    )


def _check_lines(system: System, config: BatchJobConfig, lines: list[PromptLine]) -> dict[Any, int]:
    """The samples of each source. Raises `UserError` for the lines that these networks cannot make."""
    errors = []
    lengths: dict[Any, int] = {}
    for line in lines:
        try:
            system.check_inputs(line.request, lengths)
        except UserError as error:
            errors.append(f"line {line.number}: {error}")
    raise_line_errors(errors, config.prompts)
    return lengths


def _warn_of_prompts(system: System, config: BatchJobConfig, lines: list[PromptLine]) -> None:
    """Warns of the first prompt with words that the model does not know, and of the first scene without effect."""
    unknown = [(line, str(entry)) for line in lines for entry in system.unknown_words(line.request)]
    _warn_of_first(unknown, "prompts; see unknown_words in the manifest", config)
    scenes = [(line, message) for line in lines for message in system.unused_scenes(line.request)]
    _warn_of_first(scenes, "scenes", config)


def _warn_of_first(entries: list[tuple[PromptLine, str]], kind: str, config: BatchJobConfig) -> None:
    """Warns of the first of the entries (line, message), if there are any, and counts the others."""
    if entries:
        line, message = entries[0]
        others = f" (and {len(entries) - 1} more {kind})" if len(entries) > 1 else ""
        warnings.warn(f"{config.prompts}, line {line.number}: {message}{others}", InputWarning, stacklevel=4)


def _missing_lines(
    lines: list[PromptLine], manifest: ClipManifest, config: BatchJobConfig, model_hash: str
) -> list[PromptLine]:
    """The lines whose clip is missing or not as it was written, or was made with other settings.

    In a bucket only the size of a clip is compared, not its hash.

    Raises `UserError` for a clip with other settings unless `config.replace`.
    """
    missing = []
    mirror = manifest.mirror
    for line in lines:
        entry = manifest.entries.get(line.clip_id)
        if entry is not None and line.draws_seed and isinstance(entry.get("seed"), int):
            line = _with_seed(line, entry["seed"])
        if entry is None or not (entry["file"] in mirror.sizes or (config.out / entry["file"]).is_file()):
            missing.append(line)
            continue
        previous = {name: value for name, value in entry.items() if name not in ENTRY_ONLY}
        previous |= {"file": entry["file"], "model": entry.get("model_hash")}
        wanted = line.settings | {"file": f"{line.clip_id}{config.suffix}", "model": model_hash}
        changed = difference(previous, wanted)
        if changed and not config.replace:
            name, (old, new) = next(iter(changed.items()))
            raise UserError(
                f"{line.clip_id} was made with {name} {old} and now {new} is requested; use another id or folder, "
                f"delete {mirror}/{entry['file']}, or give `melody sample` --replace"
            )
        if changed or not _is_as_written(config.out / entry["file"], entry, mirror.sizes.get(entry["file"])):
            missing.append(line)
    return missing


def _with_seed(line: PromptLine, seed: int) -> PromptLine:
    """The line with the seed that was drawn for its clip before."""
    request = dataclasses.replace(line.request, seed=seed)
    return dataclasses.replace(line, request=request, settings=line.settings | {"seed": seed})


def _is_as_written(path: Path, entry: dict[str, Any], remote_size: int | None) -> bool:
    """Whether a clip has the size and, on a disk, the hash of its line; warns if not."""
    size = path.stat().st_size if remote_size is None else remote_size
    if size == entry.get("bytes") and (
        remote_size is not None or files.file_hash(path) == entry.get("sha256")
    ):
        return True
    warnings.warn(f"{path}: not the clip that was written, so it is made again", InputWarning, stacklevel=4)
    return False


def _remove_partial_files(config: BatchJobConfig, lines: list[PromptLine]) -> None:
    """Removes the unfinished files that a killed process left for the same clips (`audio.write`)."""
    names = {f"{line.clip_id}{config.suffix}" for line in lines}
    for path in config.out.glob(".*.part"):
        if path.name[1:].rsplit(".", 2)[0] in names:
            path.unlink(missing_ok=True)


def group_lines(
    system: System, lines: list[PromptLine], size: int, devices: int
) -> Iterator[tuple[list[PromptLine], int]]:
    """Lines that share a compiled program, and the number of requests in their batch.

    The last batch of a program may have fewer lines than requests. A batch has about `size` rows (`best_of`
    rows per request), fewer if there are fewer lines of its kind, and always a multiple of `devices`. Clips
    with a source are made one by one, because their windows differ.
    """
    kinds: dict[Any, list[PromptLine]] = {}
    for line in lines:
        request = line.request
        if request.source is not None:
            yield [line], 1
            continue
        kinds.setdefault((system.program(request), request.best_of), []).append(line)
    for (_, best_of), members in kinds.items():
        rows = min(size, 2 ** math.ceil(math.log2(len(members) * best_of)))
        step = devices // math.gcd(devices, best_of)
        count = max(1, math.ceil(rows // best_of / step)) * step
        for first in range(0, len(members), count):
            yield members[first : first + count], count


def _make_clips(
    system: System, lines: list[PromptLine], size: int, config: BatchJobConfig, manifest: ClipManifest
) -> None:
    """Makes and writes the clips as a batch of `size` requests, padded with copies of the last."""
    started = time.perf_counter()
    requests = [line.request for line in lines]
    clips = system.run(requests + requests[-1:] * (size - len(lines)))[: len(lines)]
    seconds_per_clip = (time.perf_counter() - started) / len(lines)
    for line, clip in zip(lines, clips, strict=True):
        path = config.out / f"{line.clip_id}{config.suffix}"
        audio.write(path, clip, system.sample_rate, sync=True)
        unknown = system.unknown_words(line.request)
        entry = {
            "id": line.clip_id,
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": files.file_hash(path),
            "unknown_words": [word for prompt in unknown for word in prompt.words],
            "model_hash": system.hash,
            "seconds_taken": round(seconds_per_clip, 3),
            "made_at": round(time.time(), 3),
        }
        manifest.add(entry | line.settings)
