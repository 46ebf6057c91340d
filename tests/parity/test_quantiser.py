"""The residual quantiser of the codec against that of EnCodec in transformers, on the same codebooks."""

import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import rvq

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs: pip install melody_jax[parity]")

LEVELS, CODES, WIDTH = 5, 32, 12


def test_codes_and_embeddings(compare) -> None:
    """Codes are equal, and so are the sums of all levels and of the first two."""
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    rng = np.random.default_rng(0)
    scales = 0.6 ** np.arange(LEVELS)
    codebooks = (rng.normal(size=(LEVELS, CODES, WIDTH)) * scales[:, None, None]).astype(np.float32)
    x = rng.normal(size=(3, 40, WIDTH)).astype(np.float32)
    config = transformers.EncodecConfig(codebook_size=CODES, codebook_dim=WIDTH)
    theirs = EncodecResidualVectorQuantizer(config)
    for layer, codebook in zip(theirs.layers, codebooks, strict=False):
        layer.codebook.embed.copy_(torch.tensor(codebook))
    theirs.layers = theirs.layers[:LEVELS]
    theirs.num_quantizers = LEVELS
    with torch.no_grad():
        expected = theirs.encode(torch.tensor(x).permute(0, 2, 1)).permute(1, 2, 0)
        whole, two = (theirs.decode(expected.permute(2, 0, 1)[:count]) for count in (LEVELS, 2))
    codes = rvq.quantise(jnp.asarray(codebooks), jnp.asarray(x))
    np.testing.assert_array_equal(codes, expected)
    compare(rvq.dequantise(jnp.asarray(codebooks), codes), whole.permute(0, 2, 1))
    compare(rvq.dequantise(jnp.asarray(codebooks), codes, 2), two.permute(0, 2, 1))
