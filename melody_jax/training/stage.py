"""The interface of a training stage: a frozen config object with pure methods. One file per stage in `stages/`."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.data.feature_shape import FeatureShape
from melody_jax.models.functional import Params
from melody_jax.roles import Roles

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


class RandomDraws(Protocol):
    """A named tuple of arrays."""

    def _asdict(self) -> dict[str, Any]: ...


class Stage(Protocol):
    """A stage of the cascade: which network, which loss, which batches. Implementations are frozen dataclasses.

    `params` is a dict of dicts. `params["model"]` is averaged (EMA), evaluated and released. Other entries
    ("discriminator", "heads") exist in training only. `params["base"]` and `params["frozen"]`, if present, have neither
    gradients nor optimiser state.
    """

    model: Any
    """The config of the network."""

    @property
    def batch(self) -> str:
        """The kind of batch: "audio", "audio_text" or "features" (data/pipeline.py)."""
        ...

    @property
    def name(self) -> str:
        """The network's name, one of `release.NETWORKS`."""
        ...

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns (melody_jax/roles.py)."""
        ...

    @property
    def features(self) -> FeatureShape | None:
        """The sizes of features that the network needs; None for stages that train on audio."""
        return None

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the audio in the batches of stages that train on audio."""
        return DEFAULT_FORMAT

    @property
    def vocabulary(self) -> int | None:
        """Word pieces of the text tower that reads the captions; None: the stage reads none."""
        return None

    def check_tokenizer(self, tokenizer: str) -> None:
        """Raises `UserError` if the file `tokenizer` is not that of the text tower; the packaged one is ""."""

    @property
    def hashes(self) -> dict[str, str]:
        """The hashes of released networks that the stage trains with, beside those that made the data."""
        return {}

    @property
    def teacher(self) -> "Stage | None":
        """The stage whose released network a run must start from; None: a run may start from scratch."""
        return None

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        ...

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients with the structure of what is trained of `params`, and scalar metrics; traced once, then jitted.

        A loss that is a mean over a varying number of terms returns that number as the metric "weight".
        """
        ...

    def draw(self, batch: Batch, key: jax.Array) -> RandomDraws | None:
        """The random arrays that `gradients` draws for a batch; None: the stage does not report them."""
        return None

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """Scalar metrics of a held-out batch without dropout, "loss" among them; the key fixes all noise."""
        ...

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """`params["model"]` with the parts that are fitted after training (k-means, quantiser, statistics), and metrics
        of the fit."""
        ...


def loss_gradients(
    loss: Callable[..., tuple[jax.Array, Metrics]], params: Params, batch: Batch, key: jax.Array
) -> tuple[Params, Metrics]:
    """`Stage.gradients` for a stage with a single loss `loss(params, batch, key) -> (scalar, metrics)`."""
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    return grads, {"loss": value, **metrics}
