"""The discriminators' forward pass against those of descript-audio-codec."""

import importlib.metadata
import importlib.util
import sys
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models.discriminators import (
    DiscriminatorConfig,
    PeriodDiscriminator,
    SpectrogramDiscriminator,
)
from melody_jax.models.functional import Params, bind

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
pytest.importorskip("einops", reason="parity needs: pip install melody_jax[parity]")

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # theirs uses torch's older one

WIDTHS = (32, 128, 512, 1024, 1024)
LAYERS = ((32, 9, 1), (32, 9, 2), (32, 9, 2), (32, 9, 2), (32, 3, 1))


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """Its `discriminator.py` alone: the package imports an audio library of many dependencies, not needed here."""
    try:
        files = importlib.metadata.files("descript-audio-codec") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("parity needs: pip install --no-deps descript-audio-codec==1.0.0")
    path = next(file for file in files if str(file).endswith("model/discriminator.py")).locate()
    spec = importlib.util.spec_from_file_location("dac_discriminator", path)
    module = importlib.util.module_from_spec(spec)
    stand_in = ModuleType("audiotools")
    stand_in.AudioSignal, stand_in.STFTParams = None, dict
    stand_in.ml = ModuleType("ml")
    stand_in.ml.BaseModel = torch.nn.Module
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "audiotools", stand_in)
        spec.loader.exec_module(module)
    return module


def layer(convolution: torch.nn.Module, axes: tuple[int, ...]) -> Params:
    """Kernel, its axes in our order, and bias; weight norm multiplied out."""
    convolution = convolution[0] if isinstance(convolution, torch.nn.Sequential) else convolution
    kernel = convolution.weight.detach().numpy()
    return {"kernel": kernel.transpose(axes), "bias": convolution.bias.detach().numpy()}


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module with random biases too."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data = 0.1 * torch.randn_like(parameter)
    return module.eval()


@pytest.mark.parametrize("period", [2, 5, 11])
def test_multi_period(period, theirs, compare) -> None:
    network = shaken(theirs.MPD(period))

    def ours(convolution: torch.nn.Module) -> Params:
        params = layer(convolution, (2, 3, 1, 0))
        return params | {"kernel": params["kernel"][:, 0]}

    params = {
        "layers": {str(i): ours(convolution) for i, convolution in enumerate(network.convs)},
        "out": ours(network.conv_post),
    }
    audio = np.random.default_rng(0).standard_normal((2, 4001)).astype(np.float32)  # no multiple of a period
    logits, hidden = bind(PeriodDiscriminator, period, 1, WIDTHS, params=params)(jnp.asarray(audio))
    *features, their_logits = network(torch.tensor(audio)[:, None])
    compare(logits.reshape(2, period, -1).swapaxes(1, 2), their_logits[:, 0])
    for mine, feature in zip(hidden, features, strict=True):  # (B * period, T', C) and (B, C, T', period)
        compare(mine.reshape(2, period, *mine.shape[1:]).transpose(0, 3, 2, 1), feature)


def test_bands_of_complex_spectra(theirs, compare) -> None:
    config = DiscriminatorConfig(
        resolutions=((512, 128, 512),),
        resolution_layers=LAYERS,
        bands=tuple(theirs.BANDS),
        complex_spectra=True,
    )
    network = shaken(theirs.MRD(512))
    stacks = {
        str(b): {str(i): layer(convolution, (2, 3, 1, 0)) for i, convolution in enumerate(stack)}
        for b, stack in enumerate(network.band_convs)
    }
    params = {"bands": stacks, "out": layer(network.conv_post, (2, 3, 1, 0))}
    module = bind(SpectrogramDiscriminator, config, config.resolutions[0], params=params)
    audio = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    image = module.spectrogram(jnp.asarray(audio))  # spectra have a parity test of their own
    seen = torch.tensor(np.array(image)).permute(0, 3, 1, 2)
    network.spectrogram = lambda _: [seen[..., low:high] for low, high in network.bands]
    logits, hidden = module.discriminate(image)
    *features, their_logits = network(None)
    compare(logits, their_logits[:, 0])
    for mine, feature in zip(hidden, features, strict=True):
        compare(mine.transpose(0, 3, 1, 2), feature)
