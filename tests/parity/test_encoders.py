"""Transformer encoders against Hugging Face's, random weights, through the files that they save."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from melody_jax import spectral
from melody_jax.convert.ast import load_ast
from melody_jax.convert.bert import load_bert
from melody_jax.models import ast, text
from melody_jax.models.ast import ASTConfig
from melody_jax.models.text import TextConfig


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter random, gains and offsets too, so that none can be missed."""
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
                vocab_size=99, num_hidden_layers=3, hidden_size=48, num_attention_heads=4, intermediate_size=80,
                max_position_embeddings=20,
            )  # fmt: skip
        )
    )
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 99, (2, 17)).astype(np.int32)
    mask = np.ones((2, 17), np.float32)
    mask[1, 9:] = 0
    hidden = theirs(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    pooled = (hidden * torch.tensor(mask)[..., None]).sum(1) / torch.tensor(mask).sum(1, keepdim=True)
    compare(text.encode(load_bert(tmp_path, config), config, ids, mask), pooled)


def test_ast(tmp_path: Path, compare) -> None:
    config = ASTConfig(n_mels=36, frames=116, layers=3, width=48, heads=4, ffn=80)
    theirs = shaken(
        transformers.ASTForAudioClassification(
            transformers.ASTConfig(
                num_mel_bins=36, max_length=116, num_hidden_layers=3, hidden_size=48, num_attention_heads=4,
                intermediate_size=80,
            )  # fmt: skip
        )
    )
    theirs.save_pretrained(tmp_path)
    frames = np.random.default_rng(0).normal(size=(2, 116, 36)).astype(np.float32)
    pooled = theirs.audio_spectrogram_transformer(torch.tensor(frames)).pooler_output
    compare(ast.encode(load_ast(tmp_path, config), config, frames), pooled)


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of its own, at 257 bins
def test_ast_frames(compare) -> None:
    """Kaldi's filterbank features and their scaling; the resampling to 16 kHz has a test of its own."""
    audio = 0.1 * np.random.default_rng(0).normal(size=(2, 16_000)).astype(np.float32)
    extract = transformers.ASTFeatureExtractor(max_length=98)
    theirs = np.stack([extract(item, sampling_rate=16_000).input_values[0] for item in audio])
    config = ASTConfig()
    ours = (spectral.kaldi_log_mel(audio) - config.mel_mean) / (2 * config.mel_std)
    compare(ours, theirs)


def test_published_sizes() -> None:
    """AST and BERT-base with two projections to 128: the paper's 195.3 M."""
    towers = jax.eval_shape(lambda key: (ast.init(ASTConfig(), key), text.init(text.BERT_BASE, key)), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(towers)) + 2 * 768 * 128
    assert round(count / 1e6, 1) == 195.3
