"""Transformer encoders compared with Hugging Face's, with random weights read from the files that it saves."""

from pathlib import Path

import numpy as np
import pytest

from melody_jax import spectral
from melody_jax.convert.ast import load_ast
from melody_jax.convert.bert import load_bert
from melody_jax.convert.wav2vec2 import load_wav2vec2
from melody_jax.models import ast, text_tower, wav2vec2
from melody_jax.models.ast import ASTConfig
from melody_jax.models.text_tower import TextConfig
from melody_jax.models.wav2vec2 import Wav2Vec2Config

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs: pip install melody_jax[parity]")

SIZES = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter random, gains and offsets included, so that a converter cannot miss one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_bert(tmp_path: Path, compare) -> None:
    config = TextConfig(vocab_size=99, layers=3, width=48, heads=4, ffn=80, max_length=20)
    theirs = shaken(
        transformers.BertModel(
            transformers.BertConfig(
                vocab_size=99,
                **SIZES,
                max_position_embeddings=20,
            )
        )
    )
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 99, (2, 17)).astype(np.int32)
    mask = np.ones((2, 17), np.float32)
    mask[1, 9:] = 0
    hidden = theirs(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    pooled = (hidden * torch.tensor(mask)[..., None]).sum(1) / torch.tensor(mask).sum(1, keepdim=True)
    compare(text_tower.encode(load_bert(tmp_path, config), config, ids, mask), pooled)


def test_ast(tmp_path: Path, compare) -> None:
    config = ASTConfig(n_mels=36, frames=116, layers=3, width=48, heads=4, ffn=80)
    theirs = shaken(
        transformers.ASTForAudioClassification(
            transformers.ASTConfig(
                num_mel_bins=36,
                max_length=116,
                **SIZES,
            )
        )
    )
    theirs.save_pretrained(tmp_path)
    frames = np.random.default_rng(0).normal(size=(2, 116, 36)).astype(np.float32)
    pooled = theirs.audio_spectrogram_transformer(torch.tensor(frames)).pooler_output
    compare(ast.encode(load_ast(tmp_path, config), config, frames), pooled)


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # its own filterbank has 257 bins
def test_ast_frames(compare) -> None:
    """Kaldi's filterbank features and their scaling; another test covers the resampling to 16 kHz."""
    audio = 0.1 * np.random.default_rng(0).normal(size=(2, 16_000)).astype(np.float32)
    extract = transformers.ASTFeatureExtractor(max_length=98)
    theirs = np.stack([extract(item, sampling_rate=16_000).input_values[0] for item in audio])
    config = ASTConfig()
    ours = (spectral.kaldi_log_mel(audio) - config.mel_mean) / (2 * config.mel_std)
    compare(ours, theirs)


SMALL = SIZES | {
    "conv_dim": (24,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 7,
}
OURS = {"channels": 24, "layers": 3, "layer": 2, "width": 48, "heads": 4, "ffn": 80}


def waves() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 9_000)).astype(np.float32)


def test_wav2vec2_conformer(tmp_path: Path, compare) -> None:
    """Two of three blocks, with different statistics in each batch norm."""
    config = Wav2Vec2Config(**OURS, kernel=7)
    theirs = shaken(
        transformers.Wav2Vec2ConformerModel(
            transformers.Wav2Vec2ConformerConfig(
                **SMALL,
                position_embeddings_type="rotary",
                feat_extract_norm="layer",
                conv_bias=True,
                hidden_act="swish",
                conv_depthwise_kernel_size=7,
            )
        )
    )
    generator = torch.Generator().manual_seed(1)
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    theirs.save_pretrained(tmp_path)
    hidden = theirs(torch.tensor(waves()), output_hidden_states=True).hidden_states[2]
    compare(wav2vec2.hidden(load_wav2vec2(tmp_path, config), config, waves(), 2), hidden)


def test_mert(tmp_path: Path, compare) -> None:
    """MERT-v1 has HuBERT's network. Its code is not a package, so the reference is HuBERT."""
    config = Wav2Vec2Config(
        **OURS,
        channel_norm=False,
        conformer=False,
        position_kernel=16,
        position_groups=4,
        resample=(1, 1),
        pool=3,
    )
    theirs = shaken(transformers.HubertModel(transformers.HubertConfig(**SMALL)))
    theirs.save_pretrained(tmp_path)
    hidden = theirs(torch.tensor(waves()), output_hidden_states=True).hidden_states[2]
    params = load_wav2vec2(tmp_path, config)
    compare(wav2vec2.hidden(params, config, waves(), 2), hidden)
    tokens = wav2vec2.features(params, config, waves(), 2)
    assert tokens.shape == (2, 9_000 // 960, 48)


def test_waveform_is_normalised_as_published(compare) -> None:
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    audio = 0.1 + 0.01 * waves()
    theirs = np.stack([extract(item, sampling_rate=16_000).input_values[0] for item in audio])
    compare(wav2vec2.waveform(Wav2Vec2Config(resample=(1, 1)), audio), theirs)
