"""One run of a study that only samples: clips of the committed prompts, with their scores. The run folder
holds:

  metrics.jsonl         for every batch of clips the digests of the arms' shared inputs: prefixes, tokens, first noise
  sampled.safetensors   one row per clip (tempo: one per clip with a beat), the MuLan embeddings of the clips, and those
                        of the pieces that the prompts describe
  cost.json             network passes, FLOPs, seconds

The LM draws the semantic tokens once per seed, so arms differ in the diffusion only.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from melody_jax import audio, diffusion, files, loudness
from melody_jax.ablation.files import save_arrays
from melody_jax.ablation.study import Sampling
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.evaluation import clip_features, composed_prompts, group_judge
from melody_jax.evaluation.adherence import Judge
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.models import denoiser, mulan
from melody_jax.models.functional import count
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody, load
from melody_jax.sampling.item_controls import item_keys
from melody_jax.sampling.request import make_requests
from melody_jax.training.digests import DIGEST, digest

BATCH = 16
LM_SETTINGS = ("lm_guidance_scale", "temperature", "top_k", "top_p")
"""Settings of the language model; all arms of a study share its tokens unless an arm changes one."""
JUDGE_PIECES = 80
"""Composed clips of each group that the judge is trained on."""


def identity(config: Sampling) -> dict[str, Any]:
    """The identity of a run's data: the hashes of the networks and of the prompts."""
    texts = [prompt.text for prompt in _prompts(config.prompts).values()]
    return {
        "networks": _cascade(config.model, config.distilled).hashes,
        "prompts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }


def row_count(config: Sampling) -> int:
    """Number of rows that the run writes to metrics.jsonl: one per batch of clips."""
    return -(-len(_prompts(config.prompts)) // BATCH)


def run_arm(config: Sampling, folder: Path, measures: Iterable[str], minutes: float, quiet: bool) -> bool:
    """Samples and scores the clips; takes minutes and ignores the time limit. Always returns True."""
    melody = _cascade(config.model, config.distilled)
    waves, cost = _sample(config, melody, folder / "metrics.jsonl", quiet)
    prompts = list(_prompts(config.prompts).values())
    pairs = list(zip(prompts, waves, strict=True))
    tempi = [clip_features.estimate_tempo(wave) if p.rhythmic else np.nan for p, wave in pairs]
    features = {
        "statistics": np.stack([clip_features.log_mel_statistics(wave) for wave in waves]),
        "tempo": np.asarray(tempi),
    }
    adherence = _judge(folder.parent).scores(features, [prompt.facts for prompt in prompts])
    tempo_scores = adherence["tempo"][~np.isnan(adherence["tempo"])]
    encoder = melody.prompt_encoder
    similarity = [encoder.target(prompt.text) @ encoder.embed_audio(wave) for prompt, wave in pairs]
    scores = {
        "group_right": adherence["group"].astype(np.float32),
        "tempo_right": tempo_scores.astype(np.float32),
        "text_similarity": np.asarray(similarity, np.float32),
        "embeddings": _embed(melody, waves),
        "true_embeddings": _described_embeddings(melody, config.prompts, folder.parent),
    }
    files.write_json(folder / "cost.json", cost)
    save_arrays(folder / "sampled.safetensors", scores)
    return True


def _sample(
    config: Sampling, melody: Melody, metrics: Path, quiet: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Waves (N, T) of all prompts and the cost; every batch writes a row of digests into `metrics`."""
    waves = []
    seconds = []
    program = None
    params = melody.params["dpd"]
    network = melody.configs["dpd"]
    metrics.unlink(missing_ok=True)
    lm_settings = tuple((name, getattr(config, name)) for name in LM_SETTINGS)
    batches = _token_batches(config.model, config.prompts, config.seed, lm_settings)
    for number, batch in enumerate(tqdm(batches, desc="batches", disable=quiet or None)):
        settings = {name: getattr(config, name) for name in ("guidance_scale", "guidance_rescale")}
        controls = batch.controls._replace(
            **{name: np.full_like(batch.controls.guidance_scale, value) for name, value in settings.items()}
        )
        if program is None:
            program = _compile(config, melody, batch._replace(controls=controls))
        start = time.perf_counter()
        latents = jax.block_until_ready(program(params, controls, batch.tokens, batch.keys))
        seconds.append(time.perf_counter() - start)
        noise = windows.initial_noise(batch.keys, network.frames, network.latent_dim)
        shared = {"prefix": controls.prefix_tokens, "tokens": batch.tokens, "noise": noise}
        row = {"step": number + 1} | {DIGEST + name: int(digest(value)) for name, value in shared.items()}
        decoded = windows.latents_to_wave(melody.params["vae"], melody.configs["vae"], latents)
        limited = [loudness.peak_limit(wave, sample_rate=melody.sample_rate) for wave in np.asarray(decoded)]
        waves.extend(audio.convert(wave, melody.audio_format, DEFAULT_FORMAT) for wave in limited)
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
    memory = program.memory_analysis() if program is not None else None
    cost = {
        "parameters": count(params),
        "nfe": diffusion.nfe(config.solver, config.steps) * (1 if config.distilled else 2),
        "flops_pass": denoiser.flops(network),
        "seconds_window": float(np.median(seconds)) / BATCH,
        "bytes_peak": int(
            getattr(memory, "argument_size_in_bytes", 0) + getattr(memory, "temp_size_in_bytes", 0)
        ),
        "threads": int(os.environ.get("PJRT_NPROC", os.cpu_count() or 1)),
        "device": jax.devices()[0].device_kind,
    }
    return np.stack(waves), cost


class TokenBatch(NamedTuple):
    """Inputs of the diffusion that all arms share."""

    sampler: Any
    """`windows.SamplerConfig` of the LM's pass."""
    controls: Any
    """`Controls` of the items."""
    keys: jax.Array
    """Random keys, one per item."""
    tokens: jax.Array
    """Semantic tokens (B, U)."""


def _compile(config: Sampling, melody: Melody, batch: TokenBatch) -> jax.stages.Compiled:
    """The diffusion with the arm's steps, schedule and solver."""
    sampler = replace(
        batch.sampler,
        dpd=melody.configs["dpd"],
        guided=not config.distilled,
        steps=config.steps,
        schedule=config.schedule,
        solver=config.solver,
    )
    jitted = jax.jit(windows.tokens_to_latents, static_argnums=1)
    return jitted.lower(melody.params["dpd"], sampler, batch.controls, batch.tokens, batch.keys).compile()


@lru_cache(maxsize=2)
def _cascade(model: str, distilled: bool) -> Melody:
    return load(model, distilled=distilled)


@lru_cache(maxsize=1)
def _token_batches(
    model: str, count: int, seed: int, lm_settings: tuple[tuple[str, Any], ...]
) -> list[TokenBatch]:
    """The LM's semantic tokens for `count` prompts of each group, in batches."""
    melody = _cascade(model, False)
    texts = [prompt.text for prompt in _prompts(count).values()]
    write_tokens = jax.jit(windows.prefix_to_tokens, static_argnums=1)
    batches = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        seeds = [seed * len(texts) + start + i for i in range(len(part))]
        (batch,) = melody.plan(make_requests(part, dict(lm_settings) | {"seed": seeds}))
        encoded = melody.prompt_encoder.encode_requests(batch.requests)
        controls = melody.controls_at(batch, encoded)([0.0] * len(part))
        keys = item_keys(controls)
        tokens = write_tokens(melody.params["lm"], batch.config, controls, keys)
        batches.append(TokenBatch(batch.config, controls, keys, tokens))
    return batches


@lru_cache(maxsize=2)
def _prompts(count: int) -> dict[int, ComposedPrompt]:
    """Number in the list -> prompt, for the first `count` prompts of each group."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    ranks = [sum(other.group == prompt.group for other in prompts[:i]) for i, prompt in enumerate(prompts)]
    return {i: prompts[i] for i, rank in enumerate(ranks) if rank < count}


@lru_cache(maxsize=1)
def _judge(runs: Path) -> Judge:
    """The group judge; one process composes its training clips, once."""
    with files.claim_folder(runs / "judge", wait=True):
        return group_judge.train_group_judge(runs / "judge", JUDGE_PIECES)


def _described_embeddings(melody: Melody, count: int, runs: Path) -> np.ndarray:
    """Embeddings (N, E) of the pieces that the prompts describe; one process composes them, once."""
    with files.claim_folder(runs / "described", wait=True):
        file = runs / "described" / f"{melody.hashes['mulan'][:16]}-{count}.safetensors"
        if not file.is_file():
            pieces = tqdm(_prompts(count).items(), desc="described pieces", disable=None)
            waves = [composed_prompts.ground_truth(prompt, i, melody.window_seconds) for i, prompt in pieces]
            limited = np.stack([loudness.peak_limit(wave) for wave in waves])
            save_arrays(file, {"embeddings": _embed(melody, limited)})
        return safetensors.numpy.load_file(file)["embeddings"]


def _embed(melody: Melody, waves: np.ndarray) -> np.ndarray:
    params = melody.params["mulan"]
    config = melody.configs["mulan"]
    batches = [_embed_batch(params, config, waves[i : i + BATCH]) for i in range(0, len(waves), BATCH)]
    return np.concatenate([np.asarray(batch) for batch in batches])


_embed_batch = jax.jit(mulan.embed_music, static_argnums=1)
