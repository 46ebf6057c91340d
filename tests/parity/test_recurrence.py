"""DPD's SRU against the authors' package `sru`, which compiles its C++ when it is imported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import sru
from melody_jax.models.sru import SRUConfig

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")

package = pytest.importorskip("sru", reason="parity needs: pip install melody_jax[parity]")


def test_two_bidirectional_layers(compare) -> None:
    """The package's kernel holds, for each direction and channel, candidate, forget gate, output gate and skip.

    Where widths match it skips the input itself; there our projected skip is given the identity.
    """
    config = SRUConfig(inputs=10, hidden=6, layers=2)
    theirs = package.SRU(
        10,
        6,
        num_layers=2,
        bidirectional=True,
        layer_norm=False,
        rescale=False,
        highway_bias=0.0,
        dropout=0.0,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for i, layer in enumerate(theirs.rnn_lst):
        for parameter in layer.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        inputs = 10 if i == 0 else 12
        kernel = layer.weight.detach().numpy().reshape(inputs, 12, layer.num_matrices).transpose(0, 2, 1)
        if layer.num_matrices == 3:
            kernel = np.concatenate([kernel, np.eye(12, dtype=np.float32)[:, None]], axis=1)
        layers[str(i)] = {
            "kernel": kernel.reshape(inputs, 48),
            "bias": layer.bias.detach().numpy().reshape(2, 12),
            "recurrent": layer.weight_c.detach().numpy().reshape(2, 12),
        }
    x = np.random.default_rng(0).normal(size=(9, 3, 10)).astype(np.float32)
    with torch.no_grad():
        expected, _ = theirs(torch.tensor(x))
    compare(sru.apply(jax.tree.map(jnp.asarray, {"layers": layers}), config, jnp.asarray(x)), expected)
