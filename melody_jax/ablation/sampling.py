"""One run of a study that only samples: clips of the committed prompts, with their scores. The run folder
holds:

  config.json           the resolved `Sampling`
  metrics.jsonl         for every batch of clips the digests of the arms' shared inputs: prefixes, tokens, first noise
  sampled.safetensors   one row per clip (tempo: one per clip with a beat), the MuLan embeddings of the clips, and those
                        of the pieces that the prompts describe
  cost.json             network passes, FLOPs, seconds

The LM draws the semantic tokens once per seed, so arms differ in the diffusion only.
"""

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
from tqdm import tqdm

from melody_jax import audio, diffusion, files, loudness
from melody_jax.ablation.clip_scores import BATCH, hash_prompts, score_clips, select_prompts
from melody_jax.ablation.files import COST, save_arrays, write_config
from melody_jax.ablation.measures import SAMPLED
from melody_jax.ablation.study import Sampling
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.models import denoiser
from melody_jax.models.functional import count
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody, load
from melody_jax.sampling.item_controls import item_keys
from melody_jax.sampling.request import make_requests
from melody_jax.training.digests import DIGEST, digest

LM_SETTINGS = ("lm_guidance_scale", "temperature", "top_k", "top_p")
"""Settings of the language model; all arms of a study share its tokens unless an arm changes one."""


def identity(config: Sampling) -> dict[str, Any]:
    """The identity of a run's data: the hashes of the networks and of the prompts."""
    return {
        "networks": _cascade(config.model, config.distilled).hashes,
        "prompts": hash_prompts(config.prompts),
    }


def run_arm(config: Sampling, folder: Path, measures: Iterable[str], minutes: float, quiet: bool) -> bool:
    """Samples and scores the clips; takes minutes and ignores the time limit. Always returns True."""
    write_config(folder, config)
    melody = _cascade(config.model, config.distilled)
    waves, cost = _sample(config, melody, folder / "metrics.jsonl", quiet)
    scores = score_clips(waves, config.prompts, melody, folder.parent)
    files.write_json(folder / COST, cost)
    save_arrays(folder / f"{SAMPLED}.safetensors", scores)
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
    texts = [prompt.text for prompt in select_prompts(count).values()]
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
