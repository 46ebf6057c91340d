"""Training of the tempo head: predicts the tempo of a piece from its caption, which need not mention it.

The text tower is that of a released MuLan and stays frozen (`params["frozen"]`). The audio of the batches is not used.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from melody_jax import release
from melody_jax.config_json import network_difference
from melody_jax.errors import UserError
from melody_jax.models import mulan, tempo_head
from melody_jax.models.functional import Params
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.tempo_head import TempoHeadConfig
from melody_jax.roles import Roles
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients
from melody_jax.training.tempo_target import tempo_target
from melody_jax.training.text_tokenizer import check_tokenizer

TEXT = ("text", "text_mean")
"""Parts of a MuLan that embed text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TempoStage(Stage):
    """The `tempo` stage, on audio with captions and facts."""

    batch: ClassVar[str] = "audio_text"
    name: ClassVar[str] = "tempo"

    model: TempoHeadConfig = dataclasses.field(default_factory=TempoHeadConfig)
    """The classifier."""
    mulan: MuLanConfig = dataclasses.field(default_factory=MuLanConfig)
    """The MuLan in whose space captions are read."""
    networks: str = ""
    """Folder with the released mulan; empty: a fresh one, for tests."""

    def __post_init__(self) -> None:
        if self.model.embedding != self.mulan.embedding:
            raise UserError(
                f"model.embedding is {self.model.embedding}; the space of mulan has {self.mulan.embedding} dimensions"
            )

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        text = {name: part for name, part in mulan.roles(self.mulan).items() if name in TEXT}
        return {"model": tempo_head.roles(self.model), "frozen": text}

    @property
    def vocabulary(self) -> int:
        """Word pieces of the text tower."""
        return self.mulan.text.vocab_size

    def check_tokenizer(self, tokenizer: str) -> None:
        """Raises `UserError` if captions would be read with another tokenizer than that of the released mulan."""
        check_tokenizer(self.networks, tokenizer)

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of the frozen mulan. Raises `UserError` if there is none."""
        if not self.networks:
            raise UserError("stage.networks is missing: the folder of the released mulan to train with")
        return {"mulan": release.network_hash(self.networks, "mulan")}

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, float32, and the frozen text tower."""
        frozen = self._released() if self.networks else mulan.init(self.mulan, key)
        frozen = {"text_mean": jnp.zeros(self.mulan.embedding)} | frozen
        return {
            "model": tempo_head.init(self.model, key),
            "frozen": {name: jax.tree.map(jnp.asarray, frozen[name]) for name in TEXT},
        }

    def _released(self) -> Params:
        params, config, _ = release.read_network(self.networks, "mulan")
        if fields := network_difference(config, self.mulan):
            name, (released, given) = next(iter(fields.items()))
            raise UserError(
                f"{self.networks} has another mulan than stage.mulan: {name} is {released} there and {given} here"
            )
        return params

    def gradients(
        self, params: Params, batch: Batch, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
        """Gradients of the cross-entropy on {"text_ids" (B, U), "text_mask", "facts"}."""

        def loss(trained: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            weight = jnp.sum(_has_facts(batch)).astype(jnp.float32)
            return self._loss(trained["model"], params["frozen"], batch), {"weight": weight}

        return loss_gradients(loss, {"model": params["model"]}, batch, key)

    def _loss(self, model: Params, frozen: Params, batch: Batch) -> Array:
        """The mean over the items that have facts."""
        embedded = mulan.embed_text(frozen, self.mulan, batch["text_ids"], batch["text_mask"])
        log_probabilities = tempo_head.log_probabilities(model, mulan.centre(frozen, embedded, "text"))
        losses = -jnp.sum(self._target(jnp.asarray(batch["facts"]["tempo"])) * log_probabilities, axis=-1)
        has_facts = _has_facts(batch)
        return jnp.sum(losses * has_facts) / jnp.maximum(jnp.sum(has_facts), 1)

    def _target(self, tempo: Float[Array, " B"]) -> Float[Array, "B _"]:
        """Target probabilities: a Gaussian around the true tempo, one class wide; the last class if it is nan."""
        controls = self.model.controls
        has_beat = jnp.isfinite(tempo)
        near = tempo_target(tempo, controls.slowest, controls.fastest, controls.tempos)
        return jnp.concatenate([near * has_beat[:, None], ~has_beat[:, None]], axis=-1)

    def evaluate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """The cross-entropy of a held-out batch."""
        return {"loss": self._loss(params["model"], params["frozen"], batch)}

    def finish(self, model: Params, batches: Iterator[Any], key: PRNGKeyArray) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}


def _has_facts(batch: Batch) -> Bool[Array, " B"]:
    return jnp.asarray(batch["facts"]["genre"]) >= 0
