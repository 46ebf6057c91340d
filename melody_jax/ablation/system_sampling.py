"""One run of a study that compares systems: clips of the committed prompts from one release, with their scores.

Unlike `sampling.py`, a run generates its clips end to end, from prompt to waveform, including the language models.
The run folder holds the same files; the digests cover the prompts and seeds of each batch. AudioLM takes no prompts,
but its clips are scored against them as well: its scores are the chance level.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from melody_jax import audio, files
from melody_jax.ablation.clip_scores import BATCH, hash_prompts, score_clips, select_prompts
from melody_jax.ablation.files import COST, save_arrays, write_config
from melody_jax.ablation.measures import SAMPLED
from melody_jax.ablation.study import SystemSampling
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.errors import UserError
from melody_jax.flops import matmul_cost
from melody_jax.models.functional import count
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.cascade import load as load_melody
from melody_jax.sampling.request import Request
from melody_jax.sampling.settings import SamplingSettings
from melody_jax.sampling.system import System
from melody_jax.scale.programs import trace_sampler
from melody_jax.scale.system_programs import trace_system
from melody_jax.sharding import make_mesh
from melody_jax.systems import load
from melody_jax.training.digests import DIGEST, digest

SHARED = ("mulan", "tokenizer", "tempo", "vae", "dmae")
"""Networks that generate nothing: they read prompts and recordings, and decode."""


def identity(config: SystemSampling) -> dict[str, Any]:
    """The identity of a run's data: the hashes of the networks, of the MuLan that embeds clips, and of the prompts."""
    return {
        "networks": _system(config).hashes,
        "embedding": _embedding(config.embedding).hashes["mulan"],
        "prompts": hash_prompts(config.prompts),
    }


def run_arm(
    config: SystemSampling, folder: Path, measures: Iterable[str], minutes: float, quiet: bool
) -> bool:
    """Samples and scores the clips; takes minutes and ignores the time limit. Always returns True."""
    write_config(folder, config)
    waves, seconds = _sample(config, folder / "metrics.jsonl", quiet)
    scores = score_clips(waves, config.prompts, _embedding(config.embedding), folder.parent)
    files.write_json(folder / COST, _cost(config, seconds))
    save_arrays(folder / f"{SAMPLED}.safetensors", scores)
    return True


def _sample(config: SystemSampling, metrics: Path, quiet: bool) -> tuple[np.ndarray, float]:
    """Waves (N, T) of all prompts, 24 kHz mono, and the seconds that a clip of a batch takes."""
    system = _system(config)
    texts = [prompt.text for prompt in select_prompts(config.prompts).values()]
    metrics.unlink(missing_ok=True)
    waves = []
    seconds = []
    for number, start in enumerate(tqdm(range(0, len(texts), BATCH), desc="batches", disable=quiet or None)):
        part = texts[start : start + BATCH]
        seeds = [config.seed * len(texts) + start + i for i in range(len(part))]
        if number == 0:
            _generate(config, part, seeds)  # compiles
        begin = time.perf_counter()
        clips = _generate(config, part, seeds)
        seconds.append((time.perf_counter() - begin) / len(part))
        waves.extend(audio.convert(clip, system.audio_format, DEFAULT_FORMAT) for clip in clips)
        shared = {"prompts": np.frombuffer("\n".join(part).encode(), np.uint8), "seeds": np.asarray(seeds)}
        row = {DIGEST + name: int(digest(jnp.asarray(value))) for name, value in shared.items()}
        with metrics.open("a") as file:
            file.write(json.dumps({"step": number + 1} | row) + "\n")
    return np.stack(waves), float(np.median(seconds))


def _generate(config: SystemSampling, texts: list[str], seeds: list[int]) -> list[np.ndarray]:
    """One clip per prompt; AudioLM, which takes no prompts, generates as many clips without them."""
    prompts = [None] * len(texts) if config.system == "audiolm" else texts
    return _system(config).generate(prompts, seconds=config.seconds, seed=seeds, **_settings(config))


def _settings(config: SystemSampling) -> dict[str, Any]:
    """The settings of sampling that are not their defaults: a system that lacks one refuses it."""
    names = [field.name for field in dataclasses.fields(SamplingSettings) if field.name != "seed"]
    defaults = {name: getattr(SamplingSettings, name) for name in names}
    return {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name]}


def _cost(config: SystemSampling, seconds: float) -> dict[str, Any]:
    """What a clip costs: network passes without guidance, FLOPs, and the time of one clip, in a batch and alone."""
    system = _system(config)
    text = next(iter(select_prompts(config.prompts).values())).text
    _generate(config, [text], [0])  # compiles
    begin = time.perf_counter()
    _generate(config, [text], [0])
    seconds_alone = time.perf_counter() - begin
    return {
        "parameters": sum(count(params) for name, params in system.params.items() if name not in SHARED),
        "nfe_clip": _passes(config, config.seconds),
        "nfe_30_seconds": _passes(config, 30.0),
        "flops_second": _window_flops(config) / system.window_seconds,
        "seconds_clip_batch": seconds,
        "seconds_clip": seconds_alone,
        "threads": int(os.environ.get("PJRT_NPROC", os.cpu_count() or 1)),
        "device": jax.devices()[0].device_kind,
    }


def _passes(config: SystemSampling, seconds: float) -> int:
    """Network passes for this many seconds; of a system whose clips are one window, for as many clips as needed."""
    system = _system(config)
    clips = 1
    try:
        system.check(_request(config, seconds))
    except UserError:  # longer than its window
        clips = math.ceil(seconds / system.window_seconds)
    return clips * system.count_passes(_request(config, seconds / clips)).total


def _window_flops(config: SystemSampling) -> float:
    """FLOPs of the products and convolutions that make one window from a text; of other systems than MeLoDy, with the
    default settings."""
    system = _system(config)
    configs = system.configs
    mesh = make_mesh((1, 1, 1), jax.local_devices()[:1])
    if isinstance(system, Melody):
        sampler, _ = system.program(_request(config, system.window_seconds))
        return matmul_cost(trace_sampler(sampler, configs["mulan"], configs["vae"], 1, mesh).jaxpr)[0]
    return matmul_cost(trace_system(config.system, configs, 1, mesh).jaxpr)[0]


def _request(config: SystemSampling, seconds: float) -> Request:
    """A clip of this length."""
    prompt = None if config.system == "audiolm" else "any"
    return Request(prompt=prompt, seconds=seconds, **_settings(config))


def _system(config: SystemSampling) -> System:
    return _load(config.model, config.system, config.folder, config.distilled)


@lru_cache(maxsize=8)
def _load(model: str, system: str, folder: str, distilled: bool) -> System:
    options = {"distilled": True} if distilled else {}
    return load(model, system=system, folder=folder or None, **options)


@lru_cache(maxsize=1)
def _embedding(release: str) -> Melody:
    return load_melody(release)
