"""Every stage at its tiny size, and batches that it can learn from."""

import dataclasses
from typing import Any

import numpy as np

from helpers.toy import ToyBatches
from melody_jax.composer import facts
from melody_jax.config import load_config
from melody_jax.models import diffusion_codec, discriminators, dpd, mulan, unet1d, vae
from melody_jax.models.conditioning import TextCondition
from melody_jax.models.conformer import ConformerConfig
from melody_jax.models.lm_config import LMConfig
from melody_jax.models.tempo_head import TempoHeadConfig
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.training.stages.diffusion_codec import DiffusionCodecStage
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.stages.lm import LMStage
from melody_jax.training.stages.mulan import MuLanStage
from melody_jax.training.stages.tempo import TempoStage
from melody_jax.training.stages.text_diffusion import TextDiffusionStage
from melody_jax.training.stages.tokenizer import TokenizerStage
from melody_jax.training.stages.vae import VAEStage

TOKENS = 16
STEREO = dataclasses.replace(
    vae.TINY,
    codec=dataclasses.replace(vae.TINY.codec, sample_rate=44_100, channels=2, frame_hop=441, n_fft=2048),
)
DPD = dataclasses.replace(dpd.TINY, semantic_tokens=16)
WORDS = dataclasses.replace(
    unet1d.TINY,
    latent_dim=16,
    frames=16,
    chunks=1,
    prefix_conditioning=False,
    text=TextCondition(width=32, length=6),
)
STAGES: dict[str, Any] = {
    "vae": VAEStage(
        model=vae.TINY,
        discriminator=discriminators.DiscriminatorConfig(
            periods=(2,),
            period_widths=(4, 4),
            resolutions=((512, 120, 512),),
            resolution_layers=((4, 16, 8), (4, 3, 2)),
        ),
        resolutions=((1024, 240),),
        adversarial_start=20,
        adversarial_crop=1920,
    ),
    "mulan": MuLanStage(model=mulan.TINY),
    "tokenizer": TokenizerStage(
        model=TokenizerConfig(
            encoder=ConformerConfig(layers=1, width=16, heads=2, ffn=32, kernel=3, layer=1), semantic_vocab=16
        ),
        codebooks=2,
        codes=16,
        mask_span=4,
        mask_start=0.2,
    ),
    "stereo vae": VAEStage(
        model=STEREO, discriminator=discriminators.TINY, resolutions=((1024, 240),), adversarial_start=1_000
    ),
    "codec": VAEStage(
        model=vae.TINY_CODES,
        discriminator=discriminators.TINY,
        resolutions=((1024, 240),),
        adversarial_start=1_000,
    ),
    "lm": LMStage(model=LMConfig(layers=1, width=32, heads=2, ffn=64, prefix_codes=8, semantic_vocab=16)),
    "lm without a prefix": load_config("lm_audiolm_tiny").stage,
    "coarse": load_config("coarse_tiny").stage,
    "fine": load_config("fine_tiny").stage,
    "dpd": DPDStage(model=DPD),
    "generator": TextDiffusionStage(model=WORDS, text=mulan.TINY.text, autoencoder=vae.TINY_MEL),
    "dmae": DiffusionCodecStage(model=diffusion_codec.TINY),
    "tempo": TempoStage(model=TempoHeadConfig(embedding=mulan.TINY.embedding), mulan=mulan.TINY),
    "latent_generator": TextDiffusionStage(
        part="latent_generator",
        model=dataclasses.replace(WORDS, latent_dim=8),
        ratio=1,
        text=mulan.TINY.text,
        autoencoder=diffusion_codec.TINY,
    ),
    "upsampler": TextDiffusionStage(
        part="upsampler",
        model=dataclasses.replace(WORDS, frames=64, lower_ratio=4, lower_noise=0.6),
        text=mulan.TINY.text,
        autoencoder=vae.TINY_MEL,
    ),
}


def music(rng: np.random.Generator, items: int = 4) -> np.ndarray:
    """Two-note tunes with harmonics, (items, 16 tokens) at 24 kHz."""
    time = np.arange(TOKENS * 960) / 24_000
    notes = rng.integers(45, 80, (items, 2))[:, np.arange(len(time)) // 7680 % 2]
    phase = 2 * np.pi * 440 * 2 ** ((notes - 69) / 12) * time
    return (0.1 * sum(np.sin(h * phase) / h for h in range(1, 5))).astype(np.float32)


def captioned(rng: np.random.Generator) -> dict[str, Any]:
    """Music whose loudness pattern and caption both tell one of four classes."""
    kind = rng.permutation(4)
    gate = (np.arange(TOKENS * 960)[None] // 960) % (kind[:, None] + 2) == 0
    labels = [facts.labels({"genre": facts.TABLES["genre"][k], "tempo_bpm": 80.0 + 20 * k}) for k in kind]
    return {
        "audio": music(rng) * gate.astype(np.float32),
        "text_ids": np.stack([np.full(6, 10 + k, np.int32) for k in kind]),
        "text_mask": np.ones((4, 6), np.float32),
        "facts": {name: np.stack([item[name] for item in labels]) for name in labels[0]},
    }


def features(rng: np.random.Generator) -> dict[str, Any]:
    """Counting tokens from a start that the prefix names, with latents that are a code of the token."""
    start = rng.integers(0, 8, 4)
    tokens = (start[:, None] + np.arange(DPD.frames // DPD.frames_per_token)) % 16
    code = np.sin(np.arange(16)[:, None] * np.arange(1, DPD.latent_dim + 1)) * 1.4
    return {
        "prefix_tokens": np.repeat(start[:, None], 12, axis=1).astype(np.int32),
        "semantic_tokens": tokens.astype(np.int32),
        "latents": code[np.repeat(tokens, DPD.frames_per_token, axis=1)].astype(np.float32),
    }


def acoustic(rng: np.random.Generator) -> dict[str, Any]:
    """Semantic tokens that count from a start, and 3 levels of codes that follow from them."""
    start = rng.integers(0, 8, 4)
    tokens = (start[:, None] + np.arange(TOKENS)) % 16
    codes = np.stack([tokens, (3 * tokens + 1) % 16, (5 * tokens + 2) % 16], axis=2)
    return {
        "prefix_tokens": np.repeat(start[:, None], 12, axis=1).astype(np.int32),
        "semantic_tokens": tokens.astype(np.int32),
        "codes": codes.astype(np.int32),
    }


class Batches(ToyBatches):
    """Batch i of a stage as a function of i."""

    def __init__(self, stage: Any, position: int = 0) -> None:
        super().__init__()
        self.kind = stage.batch
        self.samples = 4 * stage.model.hop if stage.name == "vae" else TOKENS * 960
        self.position = position
        self.channels = stage.audio_format.channels
        self.has_codes = bool(stage.features and stage.features.code_levels)

    def __next__(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.position)
        self.position += 1
        if self.kind == "audio":
            left = music(rng)[:, : self.samples]
            both = np.stack([left, 0.5 * np.roll(left, 12, axis=1)], axis=2)
            return {"audio": left if self.channels == 1 else both}
        if self.has_codes:
            return acoustic(rng)
        return captioned(rng) if self.kind == "audio_text" else features(rng)
