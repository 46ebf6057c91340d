"""Training of the semantic tokenizer: masked prediction of random-projection codes, then k-means.

Noise replaces spans of the input (spectra, or the waveform for a wav2vec 2.0 encoder). At the masked tokens
the network predicts which entries of frozen random codebooks are nearest to random projections of the
original input (BEST-RQ, arXiv 2202.01855). Half of the codebooks quantise the token's four log-mel frames
(timbre), half its semitone spectrum without its level (pitch).
B batch, T samples, U tokens, D channels, Q codebooks, C codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax import roles
from melody_jax.audio_format import TOKEN_SAMPLES
from melody_jax.convert.tensors import read_once
from melody_jax.convert.wav2vec2 import load_wav2vec2
from melody_jax.errors import UserError
from melody_jax.models import functional, nearest_code, tokenizer
from melody_jax.models.conformer import ConformerConfig
from melody_jax.models.functional import Params
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.options import check_fields, option
from melody_jax.release import network_roles
from melody_jax.roles import Roles
from melody_jax.training.fit_kmeans import fit_kmeans
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients


@lru_cache(maxsize=16)
def _random_quantiser(
    seed: tuple[int, int], channels: int, dim: int, codes: int
) -> tuple[np.ndarray, np.ndarray]:
    """A frozen projection (channels, dim) and a codebook (codes, dim) of unit vectors, determined by the seed."""
    rng = np.random.default_rng(seed)
    projection = rng.uniform(-1, 1, (channels, dim)) * (6 / (channels + dim)) ** 0.5
    codebook = rng.standard_normal((codes, dim))
    codebook /= np.linalg.norm(codebook, axis=-1, keepdims=True)
    return projection.astype(np.float32), codebook.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class TokenizerStage(Stage):
    """The `tokenizer` stage. Batches have "audio" (B, T), mono at 24 kHz.

    `params["heads"]` are the classifiers of the codes; they are not released.
    """

    batch: ClassVar[str] = "audio"
    name: ClassVar[str] = "tokenizer"

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The network."""
    weights: str = ""
    """Folder or safetensors file of a Wav2Vec2-Conformer, HuBERT or MERT for the encoder; empty: random."""
    codebooks: int = option(4, least=2)
    """Random codebooks Q, even: the first half for timbre, the second for pitch."""
    codes: int = option(512, least=1)
    """Entries C per codebook."""
    code_dim: int = option(16, least=1)
    """Dimensions of the random projections."""
    target_seed: int = option(0, least=0)
    """Seed of the projections and codebooks."""
    mask_start: float = option(0.07, least=0, most=1)
    """Probability that a masked span begins at a token."""
    mask_span: int = option(5, least=1)
    """Tokens in a masked span."""
    mask_noise: float = option(0.1, least=0)
    """Standard deviation of the noise that replaces masked (normalised) input."""
    cluster_frames: int = option(100_000, least=1)
    """Tokens to fit the clusters on."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.codebooks % 2:
            raise UserError(f"codebooks is {self.codebooks}; it must be even")

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        heads = {"kernel": roles.HEAD, "bias": roles.BIAS}
        return {"model": network_roles(self.name, self.model), "heads": heads}

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32; those of the encoder come from `weights` if given."""
        model_key, head_key = jax.random.split(key)
        width = self.model.encoder.width
        outputs = self.codebooks * self.codes
        model = tokenizer.init(self.model, model_key)
        if self.weights:
            model |= jax.tree.map(jnp.asarray, read_once(load_wav2vec2, self.weights, self.model.encoder))
        return {
            "model": model,
            "heads": functional.init(nnx.Linear, width, outputs, key=head_key),
        }

    def targets(self, mel: jax.Array, bands: jax.Array) -> jax.Array:
        """Codes int (B, U, Q) of spectra (B, U, 4, M) and (B, U, S), standardised by the statistics of the batch.

        Without standardisation most frames would have the same codes. Nothing outside training depends on it.
        """
        views = (mel.reshape(*mel.shape[:2], -1), tokenizer.subtract_level(bands))
        codes = []
        for i in range(self.codebooks):
            view = views[2 * i // self.codebooks]
            view = (view - view.mean(axis=(0, 1))) / (view.std(axis=(0, 1)) + 1e-3)
            seed = (self.target_seed, i)
            projection, codebook = _random_quantiser(seed, view.shape[-1], self.code_dim, self.codes)
            codes.append(jnp.argmax((view @ projection) @ codebook.T, axis=-1))
        return jax.lax.stop_gradient(jnp.stack(codes, axis=-1))

    def mask(self, key: jax.Array, batch: int, tokens: int) -> jax.Array:
        """The mask, float 0 or 1 (B, U): spans that begin anywhere, at least one per item."""
        start_key, first_key = jax.random.split(key)
        starts = jax.random.bernoulli(start_key, self.mask_start, (batch, tokens))
        guaranteed = jax.random.randint(first_key, (batch, 1), 0, max(tokens - self.mask_span, 0) + 1)
        starts = starts | (jnp.arange(tokens) == guaranteed)
        spans = [jnp.pad(starts, ((0, 0), (i, 0)))[:, :tokens] for i in range(self.mask_span)]
        return jnp.stack(spans).any(axis=0).astype(jnp.float32)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Cross-entropy in nats at the masked tokens, mean over the codebooks, and accuracies of timbre and pitch."""
        mask_key, noise_key = jax.random.split(key)
        mel, bands = tokenizer.spectrum(self.model, batch["audio"])
        targets = self.targets(mel, bands)
        mask = self.mask(mask_key, *targets.shape[:2])[..., None]
        encoder = self.model.encoder
        if isinstance(encoder, ConformerConfig):
            inputs = self._mask_inputs(tokenizer.stack(mel, bands), mask, noise_key)
            x = tokenizer.encode(params["model"], self.model, inputs, encoder.layers)
        else:
            tokens = mask.shape[1]
            wave = batch["audio"][:, : tokens * TOKEN_SAMPLES].reshape(-1, tokens, TOKEN_SAMPLES)
            wave = wave * jax.lax.rsqrt(jnp.mean(wave**2, axis=(1, 2), keepdims=True) + 1e-9)
            wave = self._mask_inputs(wave, mask, noise_key).reshape(len(wave), -1)
            x = tokenizer.encode(params["model"], self.model, wave, encoder.layers)
        heads = functional.bind(nnx.Linear, x.shape[-1], self.codebooks * self.codes, params=params["heads"])
        logits = heads(x).reshape(*x.shape[:2], self.codebooks, self.codes)
        log_probs = jax.nn.log_softmax(logits)
        target_log_probs = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        weight = mask / mask.sum()
        accuracy = ((target_log_probs >= log_probs.max(axis=-1)) * weight).sum(axis=(0, 1))
        timbre, pitch = jnp.split(accuracy, 2)
        loss = -(target_log_probs * weight).sum() / self.codebooks
        return loss, {"timbre_accuracy": timbre.mean(), "pitch_accuracy": pitch.mean(), "weight": mask.sum()}

    def _mask_inputs(self, inputs: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Inputs (B, U, F) of about unit variance, replaced by noise where the mask (B, U, 1) is 1."""
        return (1.0 - mask) * inputs + mask * self.mask_noise * jax.random.normal(key, inputs.shape)

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients and metrics of one training batch."""
        return loss_gradients(self.loss, params, batch, key)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """The training loss and accuracies, with masks fixed by the key."""
        loss, metrics = self.loss(params, batch, key)
        del metrics["weight"]
        return {"loss": loss, **metrics}

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Fits the standardisation and the codebook on the features of up to `cluster_frames` tokens.

        The blocks above `encoder.layer` are dropped: tokens do not need them.

        Metrics: `usage`, the share of clusters in use; `perplexity` of the ids, relative to the number of clusters;
        `left`, the share of the standardised features' variance that the clusters do not explain.

        Raises:
            UserError: there are fewer tokens than clusters.
        """
        compute = jax.jit(lambda model, audio: tokenizer.features(model, self.model, audio))
        rows: list[np.ndarray] = []
        for batch in batches:
            x = np.asarray(compute(model, batch["audio"]))
            rows.append(x.reshape(-1, x.shape[-1]))
            if sum(len(row) for row in rows) >= self.cluster_frames:
                break
        if not rows:
            raise UserError("no audio to fit the tokenizer's clusters to")
        x = np.concatenate(rows)
        fitted = model | self._standardisation(x)
        vectors = tokenizer.standardise(fitted, jnp.asarray(x))
        codebook = fit_kmeans(vectors, self.model.semantic_vocab, key)
        codes = nearest_code.assign(vectors, codebook)
        usage, perplexity = nearest_code.usage(codes, self.model.semantic_vocab)
        left = jnp.mean((vectors - codebook[codes]) ** 2) / jnp.var(vectors)
        blocks = jax.tree.map(lambda leaf: leaf[: self.model.encoder.layer], model["blocks"])
        metrics = {"usage": usage, "perplexity": perplexity, "left": left}
        return fitted | {"blocks": blocks, "codebook": codebook}, metrics

    def _standardisation(self, x: np.ndarray) -> Params:
        """Mean and scale of features (N, feature_width), so that each part has its share of the variance."""
        width = self.model.encoder.width
        share = self.model.spectral_share
        spectral_width = self.model.feature_width - width
        shares = np.full(x.shape[-1], (1.0 - share) / width)
        shares[width:] = share / max(spectral_width, 1)
        mean = x.mean(axis=0, dtype=np.float64)
        std = x.std(axis=0, dtype=np.float64)
        scale = np.sqrt(shares) / np.maximum(std, 1e-3)
        return {
            "feature_mean": jnp.asarray(mean, jnp.float32),
            "feature_scale": jnp.asarray(scale, jnp.float32),
        }
