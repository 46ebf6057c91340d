"""Training of the acoustic models of AudioLM and MusicLM: next-code cross-entropy after a condition.

AudioLM (arXiv 2209.03143, section III) and MusicLM (arXiv 2301.11325, section 3.2) write the codes of a residual
quantiser in two parts, with the network of `models/lm.py`:

    coarse   the first levels of a window, after its semantic tokens and, in MusicLM, the prefix tokens
    fine     the other levels of a shorter window, after its coarse codes alone

Codes are flattened frame by frame, coarse levels first.

B batch, P prefix tokens, U semantic tokens, L frames, V levels, M tokens of the condition, N codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from melody_jax.data.feature_shape import FeatureShape
from melody_jax.errors import UserError
from melody_jax.models import lm
from melody_jax.models.controls import drop_melody
from melody_jax.models.functional import Params
from melody_jax.models.lm_config import Condition, LMConfig
from melody_jax.options import check_fields, option
from melody_jax.release import network_roles
from melody_jax.roles import Roles
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients

Part = Literal["coarse", "fine"]


@dataclass(frozen=True, kw_only=True)
class AcousticStage(Stage):
    """The `coarse` or the `fine` stage. Batches have "codes" (B, L, V), "semantic_tokens" (B, U), "prefix_tokens"."""

    batch: ClassVar[str] = "features"

    part: Part = "coarse"
    """Which codes are written."""
    model: LMConfig = field(
        default_factory=lambda: LMConfig(
            recall=False, prefix_everywhere=False, code_levels=4, condition=Condition(length=250, ids=1024)
        )
    )
    """The network: `code_levels` are those that it writes, `condition` what it follows."""
    coarse_levels: int = option(4, least=1)
    """Levels that the coarse model writes and that the fine one follows."""
    frames_per_token: int = option(2, least=1)
    """Frames of codes in the time of one semantic token."""
    prefix_dropout: float = option(0.1, least=0, most=1)
    """Probability that an item of the coarse model is trained without a prefix, for guidance; 0 to 1."""
    melody_dropout: float = option(0.5, least=0, most=1)
    """As in `LMStage`."""

    def __post_init__(self) -> None:
        check_fields(self)
        model = self.model
        condition = model.condition
        if self.part not in get_args(Part):
            raise UserError(f"part is {self.part!r}; it must be coarse or fine")
        if condition is None:
            raise UserError("the model has no condition; an acoustic model follows other tokens")
        if model.controls is not None:
            raise UserError(
                "the model has control tokens; an acoustic model takes none: set model.controls to None"
            )
        if self.part == "coarse" and model.code_levels != self.coarse_levels:
            raise UserError(
                f"model.code_levels is {model.code_levels} and coarse_levels {self.coarse_levels}; set them alike"
            )
        if self.part == "fine" and (condition.levels != self.coarse_levels or model.prefix_levels):
            raise UserError(
                f"the fine model follows {condition.levels} levels and {model.prefix_levels} prefix tokens; it must "
                f"follow the {self.coarse_levels} coarse levels alone"
            )
        if self.part == "coarse" and condition.levels != 1:
            raise UserError(
                f"the coarse model follows {condition.levels} levels; semantic tokens have 1: set "
                "model.condition.levels"
            )
        token = self.coarse_levels * self.frames_per_token
        if model.melody_span not in ((0,) if self.part == "fine" else (0, token)):
            raise UserError(
                f"model.melody_span is {model.melody_span}; it must be 0, or for a coarse model the {token} codes in "
                "the time of a semantic token"
            )
        if self.part == "fine" and condition.length % token:
            raise UserError(
                f"model.condition.length is {condition.length}; it must be a multiple of the {token} coarse codes in "
                "the time of a semantic token"
            )

    @property
    def name(self) -> str:
        """The network's name: "coarse" or "fine"."""
        return self.part

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        return {"model": network_roles(self.name, self.model)}

    @property
    def window_tokens(self) -> int:
        """Semantic tokens in the time of a window."""
        assert self.model.condition is not None
        length = self.model.condition.length
        return length if self.part == "coarse" else length // (self.coarse_levels * self.frames_per_token)

    @property
    def features(self) -> FeatureShape:
        """The sizes of features that the network needs."""
        model = self.model
        assert model.condition is not None
        is_fine = self.part == "fine"
        return FeatureShape(
            semantic_ids=0 if is_fine else model.condition.ids,
            prefix_levels=model.prefix_levels,
            prefix_ids=model.prefix_codes if model.prefix_levels else 0,
            latents_per_token=self.frames_per_token,
            window_tokens=self.window_tokens,
            code_levels=self.coarse_levels + (model.code_levels if is_fine else 0),
            code_ids=model.semantic_vocab,
            melody=bool(model.melody_span),
        )

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        return {"model": lm.init(self.model, key)}

    def sequence(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What the network follows, (B, P + M), and the codes that it writes, (B, N)."""
        coarse, rest = jnp.split(batch["codes"].astype(jnp.int32), [self.coarse_levels], axis=2)
        flat = coarse.reshape(len(coarse), -1)
        if self.part == "fine":
            fine = rest[:, :, : self.model.code_levels]
            return flat, fine.reshape(len(fine), -1)
        prefix = batch["prefix_tokens"][:, : self.model.prefix_levels]
        return jnp.concatenate([prefix, batch["semantic_tokens"]], axis=1).astype(jnp.int32), flat

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Cross-entropy in nats per code, with dropout of the network and of the prefix."""
        prefix_key, dropout_key, melody_key, ending_key = jax.random.split(key, 4)
        prompt, codes = self.sequence(batch)
        drops = jax.random.bernoulli(prefix_key, self.prefix_dropout, (len(codes),))
        levels = jnp.where(drops, 0, self.model.prefix_levels)
        melody = batch.get("melody")
        if melody is not None:
            drops |= jax.random.bernoulli(melody_key, self.melody_dropout, drops.shape)
            melody = drop_melody(melody, drops, ending_key)
        log_probs = self._log_probs(params, prompt, codes, levels, dropout_key, melody)
        return -log_probs.mean(), {}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients and metrics of one training batch."""
        return loss_gradients(self.loss, params, batch, key)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Cross-entropy ("loss") with the full prefix, of all codes and of each level."""
        prompt, codes = self.sequence(batch)
        levels = jnp.full(len(codes), self.model.prefix_levels)
        losses = -self._log_probs(params, prompt, codes, levels, None, batch.get("melody"))
        by_level = losses.reshape(-1, self.model.code_levels).mean(axis=0)
        first = self.coarse_levels if self.part == "fine" else 0
        return {"loss": losses.mean()} | {
            f"loss/level_{first + i:02d}": by_level[i] for i in range(self.model.code_levels)
        }

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}

    def _log_probs(
        self,
        params: Params,
        prompt: jax.Array,
        codes: jax.Array,
        levels: jax.Array,
        key: jax.Array | None,
        melody: jax.Array | None,
    ) -> jax.Array:
        """Log-probabilities (B, N) of the codes."""
        scores = jax.nn.log_softmax(
            lm.logits(params["model"], self.model, prompt, codes, levels, key, melody)
        )
        return jnp.take_along_axis(scores, codes[..., None], axis=-1)[..., 0]
