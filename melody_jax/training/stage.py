"""What the training loop knows of a stage: a frozen config object with pure methods. One file a stage in `stages/`."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from melody_jax.models.functional import Params

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


class Stage(Protocol):
    """A stage of the cascade: which network, which loss, which batches. Implementations are frozen dataclasses.

    `params` is a dict of dicts: `params["model"]` is what is averaged (EMA), kept and released; further entries
    ("discriminator", "heads") exist in training only. `params["base"]`, where there is one, is not trained: it has
    neither gradients nor optimiser state.
    """

    @property
    def name(self) -> str:
        """The network's name: "vae", "mulan", "tokenizer", "lm" or "dpd"."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        ...

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients with the structure of `params` but its "base", and scalar metrics; traced once, then jitted.

        A loss that is a mean over a varying number of terms gives that number as the metric "weight".
        """
        ...

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Scalar metrics of a held-out batch without dropout, "loss" among them; the key fixes all noise."""
        ...

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """`params["model"]` with what is fitted after training (k-means, quantiser, statistics), and how well."""
        ...


def loss_gradients(
    loss: Callable[..., tuple[jax.Array, Metrics]], params: Params, batch: Batch, key: jax.Array
) -> tuple[Params, Metrics]:
    """`Stage.gradients` for a stage with a single loss `loss(params, batch, key) -> (scalar, metrics)`."""
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    return grads, {"loss": value, **metrics}
