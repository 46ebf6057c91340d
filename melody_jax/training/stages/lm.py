"""Training the semantic language model: next-token cross-entropy on the semantic positions (MeLoDy section 3.1).

Two kinds of prefix dropout make one model serve every prompt. With `prefix_dropout` the whole prefix is null, which is
what guidance and negative prompts need. With `level_dropout` only the leading levels stay: twelve codes can name one
training clip, and a quantised text agrees with audio at the leading levels only.
B batch, P prefix levels, U semantic tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from melody_jax.models import lm
from melody_jax.models.functional import Params
from melody_jax.models.lm import LMConfig
from melody_jax.training.codebooks import prefix_embeddings, semantic_embeddings
from melody_jax.training.stage import Batch, Metrics, loss_gradients

OPENING = 25
"""Tokens of a window's opening, where no history tells yet what the prefix does: 1 s."""


@dataclass(frozen=True, kw_only=True)
class LMStage:
    """The `lm` stage. Batches hold "prefix_tokens" (B, P) and "semantic_tokens" (B, U), ints."""

    batch: ClassVar[str] = "features"

    model: LMConfig = field(default_factory=LMConfig)
    """The network."""
    prefix_dropout: float = 0.1
    """How often an item is trained without any prefix, 0 to 1."""
    level_dropout: float = 0.3
    """How often an item that has a prefix keeps only its leading 1 to P levels, their number uniform; 0 to 1."""
    history_corruption: float = 0.0
    """Share of the semantic tokens the network sees, in training only, that are replaced by random ones (the targets
    stay): the last token alone foretells most of the next, and a network that trusts it learns the prefix late."""
    mulan: str = ""
    """Folder of the released MuLan whose codebooks the prefix embeddings start from; empty: random embeddings."""
    tokenizer: str = ""
    """Folder of the released tokenizer whose codebook the token embeddings start from; empty: random embeddings."""
    label_smoothing: float = 0.0
    """Share of the target mass spread evenly over the vocabulary, in training only."""

    @property
    def name(self) -> str:
        """The network's name."""
        return "lm"

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        model = lm.init(self.model, key)
        if self.mulan:
            config = self.model
            codes = prefix_embeddings(
                self.mulan, (config.prefix_levels, config.prefix_codes, config.width), key
            )
            null = model["prefix"].reshape(config.prefix_levels, -1, config.width)[:, -1:]
            model["prefix"] = jnp.concatenate([codes, null], axis=1).reshape(-1, config.width)
        if self.tokenizer:
            model["semantic"] = semantic_embeddings(self.tokenizer, model["semantic"].shape, key)
        return {"model": model}

    def draw_levels(self, key: jax.Array, batch: int) -> jax.Array:
        """How many leading prefix levels each item keeps, int (B,) in 0..P."""
        keys = jax.random.split(key, 3)
        kept = jax.random.randint(keys[0], (batch,), 1, self.model.prefix_levels + 1)
        kept = jnp.where(
            jax.random.bernoulli(keys[1], self.level_dropout, (batch,)), kept, self.model.prefix_levels
        )
        return jnp.where(jax.random.bernoulli(keys[2], self.prefix_dropout, (batch,)), 0, kept)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Smoothed cross-entropy in nats a token, with dropout of the network, the prefix and its levels."""
        level_key, dropout_key, where_key, which_key = jax.random.split(key, 4)
        targets = batch["semantic_tokens"]
        levels = self.draw_levels(level_key, targets.shape[0])
        replaced = jax.random.bernoulli(where_key, self.history_corruption, targets.shape)
        others = jax.random.randint(which_key, targets.shape, 0, self.model.semantic_vocab, targets.dtype)
        history = jnp.where(replaced, others, targets)
        scores = self._scores(params, batch, history, levels, dropout_key)
        chosen = _of_targets(scores, targets)
        cross_entropy, uniform = -chosen.mean(), -scores.mean()
        accuracy = (chosen >= scores.max(axis=-1)).mean()
        loss = (1 - self.label_smoothing) * cross_entropy + self.label_smoothing * uniform
        return loss, {"cross_entropy": cross_entropy, "accuracy": accuracy}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients and metrics of one training batch."""
        return loss_gradients(self.loss, params, batch, key)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Cross-entropy ("loss") and accuracy with the whole prefix, and the cross-entropy without any.

        "loss_opening" and its null are those of the first second. The difference to the null is what the prefix is
        worth, in nats a token: much in the opening, little once the history tells the same.
        """
        targets = batch["semantic_tokens"]
        metrics = {}
        for suffix, levels in (("", self.model.prefix_levels), ("_null_prefix", 0)):
            scores = self._scores(params, batch, targets, jnp.full(targets.shape[0], levels), None)
            chosen = _of_targets(scores, targets)
            metrics["loss" + suffix] = -chosen.mean()
            metrics["loss_opening" + suffix] = -chosen[:, :OPENING].mean()
            if levels:
                metrics["accuracy"] = (chosen >= scores.max(axis=-1)).mean()
        return metrics

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}

    def _scores(
        self, params: Params, batch: Batch, history: jax.Array, levels: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Log-probabilities (B, U, vocab); `history` (B, U) is what the network sees of the tokens before each."""
        prefix, history = batch["prefix_tokens"].astype(jnp.int32), history.astype(jnp.int32)
        return jax.nn.log_softmax(lm.logits(params["model"], self.model, prefix, history, levels, key))


def _of_targets(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probabilities (B, U) of the targets (B, U) out of those of all ids (B, U, vocab)."""
    return jnp.take_along_axis(scores, targets.astype(jnp.int32)[..., None], axis=-1)[..., 0]
