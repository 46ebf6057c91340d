"""Thousands of clips from a file of prompts: `python sample.py --prompts file.jsonl --out folder`.

Clips that one compiled program serves are made in batches of one size, spread over the devices of the process; several
processes share a file of prompts by its lines. A clip is written whole, then its line of the manifest: what is there is
not made again, so a job that was killed goes on with the same command.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from melody_jax import audio
from melody_jax.config_json import difference
from melody_jax.errors import UserError
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.manifest import Item, Manifest, opened, refuse_lines
from melody_jax.sharding import make_mesh

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
"""With clips a second, never seconds a clip."""
WRITTEN = ("id", "file", "model_hash", "seconds_taken", "made_at")
"""What a line of the manifest has beside the clip's settings."""


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """A batch job."""

    prompts: Path
    """File of prompts, one JSON object a line (sampling/manifest.py)."""
    out: Path
    """Folder of the clips and of the manifest; made if it is not there."""
    batch: int = 16
    """Clips made at a time, 1 to 1024."""
    suffix: str = ".wav"
    """Of the clips' files: .wav, .flac or .ogg."""
    process: int = 0
    """Which of the processes this is, from 0: it makes every `processes`-th clip."""
    processes: int = 1
    """How many processes share the job, each with the same file and folder."""
    replace: bool = False
    """Makes clips anew whose settings have changed since; otherwise these are refused."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1024:
            raise UserError(f"batch is {self.batch}; it must be from 1 to 1024")
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"process is {self.process}; with processes {self.processes} it is 0 to {self.processes - 1}"
            )
        if self.suffix not in audio.FORMATS:
            raise UserError(f"suffix is {self.suffix!r}; it must be one of {', '.join(audio.FORMATS)}")


def serve(melody: Melody, config: ServiceConfig, items: list[Item]) -> int:
    """Makes those of the clips that are not there yet, of this process's share, and returns how many.

    Raises:
        UserError: before any work for bad lines, a folder that cannot be written or is being written to, and clips that
            are there with other settings (unless `config.replace`); later if the disk is full.
    """
    _check(melody, config, items)
    items = items[config.process :: config.processes]
    with opened(config.out, config.process, config.processes) as manifest:
        missing = _missing(items, manifest, config, melody.hash)
        _remove_torn_files(config, missing)
        devices = jax.local_devices()
        spread = melody.spread(make_mesh((-1, 1, 1), devices)) if len(devices) > 1 else melody
        there = len(items) - len(missing)
        with tqdm(
            total=len(items), initial=there, unit=" clips", desc=str(config.out), bar_format=BAR
        ) as progress:
            for batch, size in batches(melody, missing, config.batch, len(devices)):
                edited = batch[0].request.source is not None
                _make(melody if edited else spread, batch, size, config, manifest)
                progress.update(len(batch))
    return len(missing)


def _check(melody: Melody, config: ServiceConfig, items: list[Item]) -> None:
    """Refuses what these networks cannot serve, by its lines."""
    encoder, bad = melody.prompt_encoder, []
    for item in items:
        try:
            melody.sampler_config(item.request)
            prompts = [prompt for _, prompt in item.request.scenes]
            for prompt in prompts + [item.request.negative_prompt] * bool(item.request.negative_prompt):
                encoder.check(prompt)
        except UserError as error:
            bad.append(f"line {item.line}: {error}")
    refuse_lines(bad, config.prompts)


def _missing(items: list[Item], manifest: Manifest, config: ServiceConfig, model_hash: str) -> list[Item]:
    """The items that are not there as they are wanted."""
    missing = []
    for item in items:
        entry = manifest.entries.get(item.name)
        if entry is None or not (config.out / entry["file"]).is_file():
            missing.append(item)
            continue
        file = f"{item.name}{config.suffix}"
        there = {name: value for name, value in entry.items() if name not in WRITTEN}
        there |= {"file": entry["file"], "model": entry["model_hash"]}
        changed = difference(there, item.settings | {"file": file, "model": model_hash})
        if changed and not config.replace:
            name, (was, wanted) = next(iter(changed.items()))
            raise UserError(
                f"{item.name} was made with {name} {was} and now {wanted} is wanted; give it another id or folder, or "
                "--replace"
            )
        if changed:
            missing.append(item)
    return missing


def _remove_torn_files(config: ServiceConfig, items: list[Item]) -> None:
    """What a killed process of the same items had not finished writing (`audio.write`)."""
    names = {f"{item.name}{config.suffix}" for item in items}
    for path in config.out.glob(".*.part"):
        if path.name[1:].rsplit(".", 2)[0] in names:
            path.unlink(missing_ok=True)


def batches(melody: Melody, items: list[Item], size: int, devices: int) -> Iterator[tuple[list[Item], int]]:
    """Items that one compiled program serves, and of how many requests it is a batch: the last ones have fewer items.

    A batch has about `size` rows (`best_of` rows a request), fewer where all items of its kind are fewer, and always a
    multiple of `devices`. Clips with a source are made one by one: what they need differs from source to source.
    """
    kinds: dict[Any, list[Item]] = {}
    for item in items:
        request = item.request
        if request.source is not None:
            yield [item], 1
            continue
        kind = melody.sampler_config(request), melody.chunks(request.seconds), request.best_of
        kinds.setdefault(kind, []).append(item)
    for (_, _, best_of), alike in kinds.items():
        rows = min(size, 2 ** math.ceil(math.log2(len(alike) * best_of)))
        step = devices // math.gcd(devices, best_of)
        count = max(1, math.ceil(rows // best_of / step)) * step
        for first in range(0, len(alike), count):
            yield alike[first : first + count], count


def _make(melody: Melody, items: list[Item], size: int, config: ServiceConfig, manifest: Manifest) -> None:
    """Makes and writes the items as a batch of `size` requests, filled up with copies of the last."""
    started = time.perf_counter()
    requests = [item.request for item in items]
    clips = melody.run(requests + requests[-1:] * (size - len(items)))[: len(items)]
    taken = (time.perf_counter() - started) / len(items)
    for item, clip in zip(items, clips, strict=True):
        path = config.out / f"{item.name}{config.suffix}"
        audio.write(path, clip, melody.sample_rate)
        written = (item.name, path.name, melody.hash, round(taken, 3), round(time.time(), 3))
        manifest.add(dict(zip(WRITTEN, written, strict=True)) | item.settings)
