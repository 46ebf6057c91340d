"""LAION-CLAP compared with Hugging Face's, with random weights read from the file that it saves."""

from pathlib import Path

import numpy as np
import pytest

from melody_jax.convert.clap import load_clap
from melody_jax.errors import UserError
from melody_jax.models import htsat, mulan
from melody_jax.models.htsat import HTSATConfig
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.text_tower import TextConfig

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs: pip install melody_jax[parity]")

OURS = MuLanConfig(
    embedding=24,
    projection_hidden=24,
    music=HTSATConfig(n_mels=16, side=64, patch=2, width=8, depths=(2, 3, 2), heads=(2, 4, 4), window=8),
    text=TextConfig(vocab_size=50, layers=2, width=16, heads=2, ffn=20, max_length=18, pooling="first"),
)
"""The last stage is as wide as a window, so its windows are not shifted; the two before it are wider."""


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """A small CLAP with every parameter and statistic random, so that the converter cannot miss one."""
    text = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
    audio = {"num_mel_bins": 16, "spec_size": 64, "patch_size": 2, "patch_stride": (2, 2), "window_size": 8}
    shape = {
        "patch_embeds_hidden_size": 8,
        "depths": (2, 3, 2),
        "num_attention_heads": (2, 4, 4),
        "hidden_size": 32,
    }
    config = transformers.ClapConfig(
        text_config=text | {"vocab_size": 50, "max_position_embeddings": 20},
        audio_config=audio | shape,
        projection_dim=24,
    )
    model = transformers.ClapModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def test_music_tower(tmp_path: Path, theirs: torch.nn.Module, compare) -> None:
    """Embeddings of 250 frames, which are stretched to 256: HTSAT and its projection."""
    theirs.save_pretrained(tmp_path)
    frames = np.random.default_rng(0).normal(size=(2, 250, 16)).astype(np.float32)
    expected = theirs.get_audio_features(torch.tensor(frames)[:, None]).pooler_output
    compare(mulan.embed_frames(load_clap(tmp_path, OURS), OURS, frames), expected)


def test_text_tower(tmp_path: Path, theirs: torch.nn.Module, compare) -> None:
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(4, 50, (2, 17)).astype(np.int32)
    mask = np.ones((2, 17), np.float32)
    mask[1, 9:], ids[1, 9:] = 0, 1
    expected = theirs.get_text_features(torch.tensor(ids), torch.tensor(mask)).pooler_output
    compare(mulan.embed_text(load_clap(tmp_path, OURS), OURS, ids, mask), expected)


@pytest.mark.parametrize("seconds", [1.0, 3.3, 10.0])
def test_frames(seconds: float, compare) -> None:
    """Clips shorter than 10 s are repeated; another test covers the resampling from 24 kHz."""
    audio = 0.1 * np.random.default_rng(0).normal(size=(1, round(48_000 * seconds))).astype(np.float32)
    extract = transformers.ClapFeatureExtractor(truncation="rand_trunc")
    expected = extract(audio[0], sampling_rate=48_000).input_features[0]
    compare(htsat.log_mel(htsat.fill(audio), 64), expected)


def test_feature_fusion_is_refused(tmp_path: Path, theirs: torch.nn.Module) -> None:
    config = theirs.config.to_dict()
    config["audio_config"] |= {"enable_fusion": True, "fusion_type": "aff_2d"}
    transformers.ClapModel(transformers.ClapConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"fusion_model.*LAION-CLAP does not have it"):
        load_clap(tmp_path, OURS)
