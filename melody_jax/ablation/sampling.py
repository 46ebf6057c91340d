"""One run of a study that only samples: clips of the committed prompts, judged. All of it lies in the run's folder.

  metrics.jsonl         for every batch of clips the digests of what the arms share: prefixes, tokens, first noise
  sampled.safetensors   one row a clip, of the tempo one a clip that has a beat; the embeddings of the pieces that the
                        prompts describe too
  cost.json             passes, FLOPs, seconds

The semantic tokens are the LM's, drawn once for a seed: only the diffusion differs between arms.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from melody_jax import audio, diffusion
from melody_jax.ablation.files import claim, save_arrays, save_json
from melody_jax.ablation.study import Sampling
from melody_jax.evaluation import adherence, group_judge
from melody_jax.models import denoiser, mulan
from melody_jax.models.functional import count
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody, load
from melody_jax.sampling.request import make_requests
from melody_jax.training.digests import DIGEST, digest

PROMPTS = Path(__file__).parents[1] / "assets" / "prompts.jsonl"
BATCH = 16
JUDGE_PIECES = 80
"""Composed clips of each group that the judge learns from."""


def identity(config: Sampling) -> dict[str, Any]:
    """What identifies a run beside its config: the networks and the prompts."""
    chosen = [prompt.text for _, prompt in _prompts(config.prompts)]
    return {
        "networks": _cascade(config.model, config.distilled).hashes,
        "prompts": hashlib.sha256(json.dumps(chosen).encode()).hexdigest(),
    }


def steps(config: Sampling) -> int:
    """Rows that the run writes, one a batch of clips."""
    return -(-len(_prompts(config.prompts)) // BATCH)


def carry_out(config: Sampling, folder: Path, measures: Iterable[str], minutes: float, quiet: bool) -> bool:
    """Samples and judges; a run of minutes, done whole."""
    melody = _cascade(config.model, config.distilled)
    waves, cost = _sample(config, melody, folder / "metrics.jsonl", quiet)
    chosen = [prompt for _, prompt in _prompts(config.prompts)]
    names = [group.name for group in adherence.GROUPS]
    asked = np.asarray([names.index(prompt.group) for prompt in chosen])
    guessed = _judge(folder.parent).predict(
        np.stack([group_judge.log_mel_statistics(wave) for wave in waves])
    )
    encoder = melody.prompt_encoder
    pairs = list(zip(chosen, waves, strict=True))
    similarity = [encoder.target(prompt.text) @ encoder.embed_audio(wave) for prompt, wave in pairs]
    tempo_right = [
        group_judge.tempo_matches(wave, prompt.tempo_bpm) for prompt, wave in pairs if prompt.rhythmic
    ]
    found = {
        "group_right": (guessed == asked).astype(np.float32),
        "tempo_right": np.asarray(tempo_right, np.float32),
        "text_similarity": np.asarray(similarity, np.float32),
        "embeddings": _embed(melody, waves),
        "true_embeddings": _described(melody, config.prompts, folder.parent),
    }
    save_json(folder / "cost.json", cost)
    save_arrays(folder / "sampled.safetensors", found)
    return True


def _sample(
    config: Sampling, melody: Melody, metrics: Path, quiet: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Waves (N, T) of all prompts, and what it cost; each batch leaves a row of digests in `metrics`."""
    waves, seconds, program, memory = [], [], None, None
    metrics.unlink(missing_ok=True)
    params, network = melody.params["dpd"], melody.configs["dpd"]
    for number, (asked, controls, keys, tokens) in enumerate(
        tqdm(_tokens(config.model, config.prompts, config.seed), desc="batches", disable=quiet)
    ):
        controls = controls._replace(
            guidance_scale=np.full_like(controls.guidance_scale, config.guidance_scale)
        )
        if program is None:
            how = {"steps": config.steps, "schedule": config.schedule, "solver": config.solver}
            sampler = replace(asked, dpd=network, guided=not config.distilled, **how)
            jitted = jax.jit(windows.tokens_to_latents, static_argnums=1)
            program = jitted.lower(params, sampler, controls, tokens, keys).compile()
            memory = program.memory_analysis()
        began = time.perf_counter()
        latents = jax.block_until_ready(program(params, controls, tokens, keys))
        seconds.append(time.perf_counter() - began)
        noise = windows.initial_noise(keys, network.frames, network.latent_dim)
        shared = {"prefix": controls.prefix_tokens, "tokens": tokens, "noise": noise}
        row = {"step": number + 1} | {DIGEST + name: int(digest(value)) for name, value in shared.items()}
        made = windows.latents_to_wave(melody.params["vae"], melody.configs["vae"], latents)
        waves.extend(audio.peak_limit(wave) for wave in np.asarray(made))
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
    cost = {
        "parameters": count(params),
        "passes": diffusion.nfe(config.solver, config.steps) * (1 if config.distilled else 2),
        "flops_pass": denoiser.flops(network),
        "seconds_window": float(np.median(seconds)) / BATCH,
        "bytes_peak": int(
            getattr(memory, "argument_size_in_bytes", 0) + getattr(memory, "temp_size_in_bytes", 0)
        ),
        "threads": int(os.environ.get("PJRT_NPROC", os.cpu_count() or 1)),
        "device": jax.devices()[0].device_kind,
    }
    return np.stack(waves), cost


@lru_cache(maxsize=2)
def _cascade(model: str, distilled: bool) -> Melody:
    return load(model, distilled=distilled)


@lru_cache(maxsize=1)
def _tokens(model: str, prompts: int, seed: int) -> list[tuple[Any, Any, jax.Array, jax.Array]]:
    """(sampler config, controls, keys, tokens) of each batch of prompts."""
    melody, found, chosen = _cascade(model, False), [], _prompts(prompts)
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        settings = {"seed": [seed * len(chosen) + start + i for i in range(len(part))]}
        (batch,) = melody.plan(make_requests([prompt.text for _, prompt in part], settings))
        controls = melody.controls_at(batch)([0.0] * len(part))
        keys = windows.item_keys(controls)
        write = jax.jit(windows.prefix_to_tokens, static_argnums=1)
        found.append((batch.config, controls, keys, write(melody.params["lm"], batch.config, controls, keys)))
    return found


@lru_cache(maxsize=2)
def _prompts(count: int) -> list[tuple[int, adherence.Prompt]]:
    """(number in the list, prompt) of the first `count` of each group."""
    every = adherence.read_prompts(PROMPTS)
    ranks = [sum(other.group == prompt.group for other in every[:i]) for i, prompt in enumerate(every)]
    return [(i, every[i]) for i, rank in enumerate(ranks) if rank < count]


@lru_cache(maxsize=1)
def _judge(runs: Path) -> Any:
    """The judge; what it learns from is composed once, by one process."""
    with claim(runs / "judge", wait=True):
        return group_judge.train(*adherence.judge_data(runs / "judge", JUDGE_PIECES))


def _described(melody: Melody, prompts: int, runs: Path) -> np.ndarray:
    """Embeddings (N, E) of the pieces that the prompts describe, composed once."""
    with claim(runs / "described", wait=True):
        file = runs / "described" / f"{melody.hashes['mulan'][:16]}-{prompts}.safetensors"
        if not file.is_file():
            pieces = tqdm(_prompts(prompts), desc="described pieces")
            waves = [adherence.ground_truth(prompt, i, melody.window_samples) for i, prompt in pieces]
            save_arrays(
                file, {"embeddings": _embed(melody, np.stack([audio.peak_limit(wave) for wave in waves]))}
            )
        return safetensors.numpy.load_file(file)["embeddings"]


def _embed(melody: Melody, waves: np.ndarray) -> np.ndarray:
    params, config = melody.params["mulan"], melody.configs["mulan"]
    batches = [_embed_batch(params, config, waves[i : i + BATCH]) for i in range(0, len(waves), BATCH)]
    return np.concatenate([np.asarray(batch) for batch in batches])


_embed_batch = jax.jit(mulan.embed_music, static_argnums=1)
