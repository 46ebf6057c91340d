"""Scores of sampled clips: adherence to the prompt, and embeddings for the distance to the pieces that it describes."""

import dataclasses
import hashlib
import json
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from melody_jax import files, loudness
from melody_jax.ablation.files import read_arrays, save_arrays
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.errors import UserError
from melody_jax.evaluation import clip_features, composed_prompts, group_judge
from melody_jax.evaluation.adherence import Judge
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.models import mulan
from melody_jax.sampling.cascade import Melody

BATCH = 16
JUDGE_PIECES = 80
"""Composed clips of each group that the judge is trained on."""


@lru_cache(maxsize=2)
def select_prompts(count: int) -> dict[int, ComposedPrompt]:
    """Number in the list -> prompt, for the first `count` prompts of each group."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    ranks = [sum(other.group == prompt.group for other in prompts[:i]) for i, prompt in enumerate(prompts)]
    return {i: prompts[i] for i, rank in enumerate(ranks) if rank < count}


def hash_prompts(count: int) -> str:
    """Hash of the texts of `select_prompts(count)`."""
    texts = [prompt.text for prompt in select_prompts(count).values()]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def score_clips(
    waves: Float32[np.ndarray, "N T"], count: int, melody: Melody, runs: Path
) -> dict[str, np.ndarray]:
    """Arrays of the clips of `select_prompts(count)`, 24 kHz mono: one row per clip, or per clip with a beat.

    melody: a cascade whose MuLan embeds the clips and prompts. runs: the folder of all runs; it caches the judge and
    the embeddings of the described pieces.
    """
    prompts = list(select_prompts(count).values())
    pairs = list(zip(prompts, waves, strict=True))
    tempi = [clip_features.estimate_tempo(wave) if p.rhythmic else np.nan for p, wave in pairs]
    statistics = _statistics(waves)
    features = {"statistics": statistics, "tempo": np.asarray(tempi)}
    adherence = load_judge(runs).scores(features, [prompt.facts for prompt in prompts])
    tempo_scores = adherence["tempo"][~np.isnan(adherence["tempo"])]
    encoder = melody.prompt_encoder
    similarity = [encoder.target(prompt.text) @ encoder.embed_audio(wave) for prompt, wave in pairs]
    seconds = waves.shape[1] / DEFAULT_FORMAT.sample_rate
    return {
        "group_right": adherence["group"].astype(np.float32),
        "tempo_right": tempo_scores.astype(np.float32),
        "text_similarity": np.asarray(similarity, np.float32),
        "embeddings": _embed(melody, waves),
        "log_mel": statistics,
    } | _described_pieces(melody, count, seconds, runs)


@lru_cache(maxsize=1)
def load_judge(runs: Path) -> Judge:
    """The group judge; one process composes its training clips, once."""
    with files.claim_folder(runs / "judge", wait=True):
        return group_judge.train_group_judge(runs / "judge", JUDGE_PIECES)


def _described_pieces(melody: Melody, count: int, seconds: float, runs: Path) -> dict[str, np.ndarray]:
    """The pieces that the prompts describe, in MuLan and as log-mel statistics; one process composes them, once."""
    with files.claim_folder(runs / "described", wait=True):
        file = described_file(melody.hashes["mulan"], count, seconds, runs)
        if not file.is_file():
            pieces = tqdm(select_prompts(count).items(), desc="described pieces", disable=None)
            waves = [composed_prompts.ground_truth(prompt, i, seconds) for i, prompt in pieces]
            limited = np.stack([loudness.peak_limit(wave) for wave in waves])
            described = {"true_embeddings": _embed(melody, limited), "true_log_mel": _statistics(limited)}
            save_arrays(file, described)
        try:
            arrays = read_arrays(file)
            return {name: arrays[name] for name in ("true_embeddings", "true_log_mel")}
        except (UserError, KeyError) as error:
            raise UserError(
                f"{file}: damaged; delete it, and its pieces are embedded again ({error})"
            ) from None


def described_file(mulan_hash: str, count: int, seconds: float, runs: Path) -> Path:
    """The file of the embeddings of the described pieces; its name has hashes of all that they depend on."""
    prompts = [[i, dataclasses.asdict(prompt)] for i, prompt in select_prompts(count).items()]
    inputs = json.dumps([prompts, composed_prompts.rendering_hash("test")])
    key = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    return runs / "described" / f"{mulan_hash[:16]}-{count}-{seconds:g}-{key}.safetensors"


def _statistics(waves: np.ndarray) -> np.ndarray:
    """Log-mel statistics (N, F): an embedding without a network."""
    return np.stack([clip_features.log_mel_statistics(wave) for wave in waves])


def _embed(melody: Melody, waves: np.ndarray) -> np.ndarray:
    params = melody.params["mulan"]
    config = melody.configs["mulan"]
    batches = [_embed_batch(params, config, waves[i : i + BATCH]) for i in range(0, len(waves), BATCH)]
    return np.concatenate([np.asarray(batch) for batch in batches])


_embed_batch = jax.jit(mulan.embed_music, static_argnums=1)
