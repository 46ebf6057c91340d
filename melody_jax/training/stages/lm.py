"""Training of the semantic language model: next-token cross-entropy on the semantic positions.

MeLoDy (arXiv 2305.15719) section 3.1. Two kinds of prefix dropout let one model serve every prompt.
`prefix_dropout` replaces the full prefix by null, for guidance and negative prompts. `level_dropout` keeps
the leading levels only: twelve codes can identify one training clip, and the codes of a text agree with those
of audio at the leading levels only.
B batch, P prefix levels, U semantic tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from melody_jax.control_tokens import NAMES
from melody_jax.data.feature_shape import FeatureShape
from melody_jax.errors import UserError
from melody_jax.models import lm
from melody_jax.models.controls import drop_controls, drop_melody, partners
from melody_jax.models.functional import Params
from melody_jax.models.lm_config import LMConfig
from melody_jax.options import check_fields, option
from melody_jax.release import network_roles
from melody_jax.roles import Roles
from melody_jax.training.codebooks import prefix_embeddings, semantic_embeddings
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients

OPENING = 25
"""Tokens of a window's opening, 1 s: the history is still too short to replace the prefix."""


@dataclass(frozen=True, kw_only=True)
class LMStage(Stage):
    """The `lm` stage. Batches have "prefix_tokens" (B, P) and "semantic_tokens" (B, U), ints."""

    batch: ClassVar[str] = "features"
    name: ClassVar[str] = "lm"

    model: LMConfig = field(default_factory=LMConfig)
    """The network."""
    prefix_dropout: float = option(0.1, least=0, most=1)
    """Probability that an item is trained without a prefix, 0 to 1."""
    level_dropout: float = option(0.3, least=0, most=1)
    """Probability that an item with a prefix keeps only its leading 1 to P levels, uniformly drawn; 0 to 1."""
    other_prefix: float = option(0.0, least=0, most=1)
    """Probability that an item with a tempo token is trained with the prefix tokens of another one, if the batch has
    one of the same genre, 0 to 1; the tempo token stays then, unless `prefix_dropout` drops everything. A prefix
    suggests a tempo, which agrees with the tempo token of its piece: a network that always sees both need not listen to
    the latter."""
    melody_dropout: float = option(0.5, least=0, most=1)
    """Probability that an item of a model that follows a melody is trained without, 0 to 1; an item without a prefix
    has none either, for guidance."""
    history_corruption: float = option(0.0, least=0, most=1)
    """Share of the input semantic tokens that training replaces by random ones; targets are unchanged. The last token
    alone predicts most of the next one, and a network that relies on it learns to use the prefix late."""
    mulan: str = ""
    """Folder of the released MuLan whose codebooks initialise the prefix embeddings; empty: random embeddings."""
    tokenizer: str = ""
    """Folder of the released tokenizer whose codebook initialises the token embeddings; empty: random embeddings."""
    label_smoothing: float = option(0.0, least=0, most=1)
    """Share of the target probability spread evenly over the vocabulary, in training only."""

    def __post_init__(self) -> None:
        check_fields(self)
        has_genres = self.model.controls is not None and self.model.controls.genres
        if self.other_prefix and not has_genres:
            raise UserError(
                f"other_prefix is {self.other_prefix}; it must be 0 for a model without tokens of genres"
            )
        if self.model.melody_span not in (0, 1):
            raise UserError(
                f"model.melody_span is {self.model.melody_span}; it must be 0 or 1, one for each semantic token"
            )
        if self.mulan and not self.model.prefix_levels:
            raise UserError(f"mulan is {self.mulan!r}, but the model has no prefix_levels; leave it out")

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        return {"model": network_roles(self.name, self.model)}

    @property
    def features(self) -> FeatureShape:
        """The sizes of features that the network needs."""
        model = self.model
        return FeatureShape(
            semantic_ids=model.semantic_vocab,
            prefix_levels=model.prefix_levels,
            prefix_ids=model.prefix_codes if model.prefix_levels else 0,
            controls=model.controls,
            melody=bool(model.melody_span),
        )

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        model = lm.init(self.model, key)
        if self.mulan:
            config = self.model
            codes = prefix_embeddings(
                self.mulan, (config.prefix_levels, config.prefix_codes, config.width), key
            )
            rows = config.prefix_levels * (config.prefix_codes + 1)
            null = model["prefix"][:rows].reshape(config.prefix_levels, -1, config.width)[:, -1:]
            codes = jnp.concatenate([codes, null], axis=1).reshape(-1, config.width)
            model["prefix"] = model["prefix"].at[:rows].set(codes)
        if self.tokenizer:
            model["semantic"] = semantic_embeddings(self.tokenizer, model["semantic"].shape, key)
        return {"model": model}

    def draw_levels(self, key: jax.Array, batch: int) -> jax.Array:
        """Leading prefix levels that each item keeps, int (B,) in 0..P."""
        keys = jax.random.split(key, 3)
        levels = jax.random.randint(keys[0], (batch,), 1, self.model.prefix_levels + 1)
        drops_levels = jax.random.bernoulli(keys[1], self.level_dropout, (batch,))
        levels = jnp.where(drops_levels, levels, self.model.prefix_levels)
        return jnp.where(jax.random.bernoulli(keys[2], self.prefix_dropout, (batch,)), 0, levels)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Smoothed cross-entropy in nats per token, with dropout of the network, the prefix and its levels."""
        keys = jax.random.split(key, 7)
        level_key, dropout_key, mask_key, token_key, prompt_key, melody_key, ending_key = keys
        targets = batch["semantic_tokens"]
        levels = self.draw_levels(level_key, targets.shape[0])
        is_corrupted = jax.random.bernoulli(mask_key, self.history_corruption, targets.shape)
        random_tokens = jax.random.randint(
            token_key, targets.shape, 0, self.model.semantic_vocab, targets.dtype
        )
        history = jnp.where(is_corrupted, random_tokens, targets)
        if self.model.controls is not None:
            batch = batch | {"prefix_tokens": self.perturb_prompt(batch["prefix_tokens"], prompt_key)}
        if self.model.melody_span:
            is_dropped = (levels == 0) | jax.random.bernoulli(melody_key, self.melody_dropout, levels.shape)
            batch = batch | {"melody": drop_melody(batch["melody"], is_dropped, ending_key)}
        log_probs = self._log_probs(params, batch, history, levels, dropout_key)
        target_log_probs = _of_targets(log_probs, targets)
        cross_entropy = -target_log_probs.mean()
        uniform = -log_probs.mean()
        accuracy = (target_log_probs >= log_probs.max(axis=-1)).mean()
        loss = (1 - self.label_smoothing) * cross_entropy + self.label_smoothing * uniform
        return loss, {"cross_entropy": cross_entropy, "accuracy": accuracy}

    def perturb_prompt(self, prefix_tokens: jax.Array, key: jax.Array) -> jax.Array:
        """Prefix and control tokens (B, P + C), some of the latter replaced by -1 and some prefixes by others'."""
        prefix, controls = jnp.split(prefix_tokens, [self.model.prefix_levels], axis=1)
        drop_key, other_key, partner_key = jax.random.split(key, 3)
        dropped = drop_controls(controls, drop_key)
        if not self.other_prefix:  # partners may be on other devices
            return jnp.concatenate([prefix, dropped], axis=1)
        tempo, genre = NAMES.index("tempo_bpm"), NAMES.index("genre")
        partner, has_partner = partners(controls[:, genre], partner_key)
        is_eligible = has_partner & (controls[:, tempo] >= 0)
        has_other = is_eligible & jax.random.bernoulli(other_key, self.other_prefix, (len(prefix),))
        prefix = jnp.where(has_other[:, None], prefix[partner], prefix)
        dropped = dropped.at[:, tempo].set(jnp.where(has_other, controls[:, tempo], dropped[:, tempo]))
        return jnp.concatenate([prefix, dropped], axis=1)

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients and metrics of one training batch."""
        return loss_gradients(self.loss, params, batch, key)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Cross-entropy ("loss") and accuracy with the full prefix, and if the network has one, the cross-entropy with
        the null prefix.

        "loss_opening" and "loss_opening_null_prefix" are those of the first second. The difference to the null prefix
        is the information that the prefix adds, in nats per token: much in the opening, little once the history has it.
        "loss_no_melody" is the cross-entropy with the prefix alone, of a network that follows a melody.
        """
        targets = batch["semantic_tokens"]
        metrics = {}
        without = {name: value for name, value in batch.items() if name != "melody"}
        cases = {"": (batch, self.model.prefix_levels)}
        if self.model.prefix_levels:
            cases["_null_prefix"] = (without, 0)
        if self.model.melody_span:
            cases["_no_melody"] = (without, self.model.prefix_levels)
        for suffix, (given, levels) in cases.items():
            log_probs = self._log_probs(params, given, targets, jnp.full(targets.shape[0], levels), None)
            target_log_probs = _of_targets(log_probs, targets)
            metrics["loss" + suffix] = -target_log_probs.mean()
            metrics["loss_opening" + suffix] = -target_log_probs[:, :OPENING].mean()
            if not suffix:
                metrics["accuracy"] = (target_log_probs >= log_probs.max(axis=-1)).mean()
        return metrics

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}

    def _log_probs(
        self, params: Params, batch: Batch, history: jax.Array, levels: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Log-probabilities (B, U, V); `history` (B, U) are the tokens that the network reads."""
        prefix = batch["prefix_tokens"].astype(jnp.int32)
        history = history.astype(jnp.int32)
        melody = batch.get("melody")
        logits = lm.logits(params["model"], self.model, prefix, history, levels, key, melody)
        return jax.nn.log_softmax(logits)


def _of_targets(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    """The log-probabilities (B, U) of the targets (B, U), from log-probabilities (B, U, V)."""
    return jnp.take_along_axis(log_probs, targets.astype(jnp.int32)[..., None], axis=-1)[..., 0]
