"""`melody import` of weights saved by Hugging Face's code into a cascade."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from melody_jax import audio, release, text
from melody_jax.cli import run
from melody_jax.convert.wav2vec2 import load_wav2vec2
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError
from melody_jax.models import mulan, tokenizer
from melody_jax.models.htsat import HTSATConfig
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.text_tower import TextConfig
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.models.wav2vec2 import Wav2Vec2Config
from melody_jax.training import import_published

pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs: pip install melody_jax[parity]")

CLAP = MuLanConfig(
    embedding=24,
    levels=3,
    codes=4,
    projection_hidden=24,
    music=HTSATConfig(n_mels=16, side=64, patch=2, width=8, depths=(2, 2), heads=(2, 4)),
    text=TextConfig(vocab_size=7, layers=1, width=16, heads=2, ffn=20, max_length=48, pooling="first"),
)
ENCODER = Wav2Vec2Config(
    channels=24,
    channel_norm=False,
    conformer=False,
    resample=(1, 1),
    pool=3,
    layers=2,
    layer=1,
    width=48,
    heads=4,
    ffn=80,
    position_kernel=16,
    position_groups=4,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight captioned clips of noise, 10.24 s."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)

    def records() -> Any:
        for i in range(8):
            flac = audio.encode_flac((0.1 * rng.normal(size=245_760)).astype(np.float32))
            meta = {"id": str(i), "captions": ["slow piano"], "facts": {}}
            yield {"audio": np.frombuffer(flac, np.uint8), "meta": encode_json(meta)}

    shard = write_shard(folder / shard_name("audio", 0, 1), records())
    write_manifest(
        folder, ShardManifest(kind="audio", settings={}, versions={}, shard_count=1, shards=(shard,))
    )
    return str(folder)


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    words = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
    mels = {"num_mel_bins": 16, "spec_size": 64, "patch_size": 2, "patch_stride": (2, 2), "window_size": 8}
    shape = {
        "patch_embeds_hidden_size": 8,
        "depths": (2, 2),
        "num_attention_heads": (2, 4),
        "hidden_size": 16,
    }
    config = transformers.ClapConfig(
        text_config=words | {"vocab_size": 7, "max_position_embeddings": 50},
        audio_config=mels | shape,
        projection_dim=24,
    )
    transformers.ClapModel(config).save_pretrained(folder)
    pieces = text.tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "slow", "piano", "loud"))
    pieces.save(str(folder / "tokenizer.json"))
    return folder


def small(monkeypatch: pytest.MonkeyPatch, kind: str, **changes: Any) -> None:
    imported = import_published.KINDS[kind]
    stage = dataclasses.replace(imported.stage, **changes)
    monkeypatch.setitem(import_published.KINDS, kind, imported._replace(stage=stage))


def test_clap_becomes_a_mulan(
    corpus: str, clap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, "clap-music", model=CLAP)
    monkeypatch.setattr("melody_jax.models.htsat.SECONDS", 1)
    arguments = [
        "import",
        "--kind",
        "clap-music",
        "--weights",
        str(clap),
        "--data",
        corpus,
        "--out",
        str(tmp_path),
    ]
    arguments += ["--codes", "4", "--batches", "2", "--batch_size", "4"]
    with pytest.raises(UserError, match="the packaged vocabulary has 7680 word pieces, the text tower 7"):
        run(arguments)
    assert not list(tmp_path.iterdir())
    run([*arguments, "--text_tokenizer", str(clap / "tokenizer.json")])
    params, config, _ = release.load_network(tmp_path, "mulan")
    assert config == CLAP
    pieces = release.load_tokenizer(tmp_path, 7)
    ids, mask = text.tokenize(["slow piano", "loud piano"], 8, pieces)
    assert ids[0].tolist() == [2, 4, 5, 3, 0, 0, 0, 0]
    codes = mulan.quantise(params, config, mulan.embed_text(params, config, ids, mask), "text")
    assert codes.shape == (2, 3)


def test_mert_becomes_a_tokenizer(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Any
) -> None:
    model = TokenizerConfig(encoder=ENCODER, spectral_share=0.0)
    small(monkeypatch, "mert", model=model, cluster_frames=1000)
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    theirs = transformers.HubertModel(
        transformers.HubertConfig(**sizes, **positions, conv_dim=(24,) * 7)
    ).eval()
    theirs.save_pretrained(tmp_path / "weights")
    arguments = ["--kind", "mert", "--weights", str(tmp_path / "weights"), "--data", corpus, "--codes", "8"]
    run(["import", *arguments, "--out", str(tmp_path / "release"), "--batches", "2", "--batch_size", "4"])
    params, config, _ = release.load_network(tmp_path / "release", "tokenizer")
    assert config == dataclasses.replace(model, semantic_vocab=8)
    assert "CC-BY-NC-4.0, not for commercial use" in (tmp_path / "release" / "tokenizer.md").read_text()
    wave = np.random.default_rng(1).normal(size=(2, 9_600)).astype(np.float32)
    exact = tokenizer.encode(
        tokenizer.init(model, jax.random.key(0)) | load_wav2vec2(tmp_path / "weights", ENCODER),
        model,
        wave,
        1,
    )
    compare(tokenizer.encode(params, config, wave, 1), exact, 0.05)  # matrices are stored in 8 bits
    assert len(np.unique(tokenizer.tokenize(params, config, wave))) > 1
