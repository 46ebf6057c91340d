"""Features of music, on which the LM and the diffusion model train, computed with three released networks.

Each piece becomes 25 Hz semantic tokens, VAE latents or the codes of a quantiser, and the prefix tokens of its 10.24 s
windows. The semantic tokens and latents of a long piece are stitched from half-overlapping windows: each position is
taken from the window with the nearest centre, so that positions at window edges are avoided where possible.

The VAE hears pieces in its own format, MuLan and the tokenizer in the one that they were trained on (24 kHz mono).

T samples, U tokens, L latents, N windows, V variants, C captions or channels, Q codebooks, D latent channels.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import release, text
from melody_jax.audio_format import AudioFormat
from melody_jax.data.prepare_config import FEATURE_NETWORKS, FeatureConfig
from melody_jax.data.records import FRAMES
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.channels import default_format


class Extractor:
    """The three networks as functions of windows, each compiled once for a fixed batch size."""

    def __init__(self, networks: str, config: FeatureConfig, batch_size: int) -> None:
        self._config = config
        self._batch_size = batch_size
        self._params: dict[str, Any] = {}
        self._configs: dict[str, Any] = {}
        for name in FEATURE_NETWORKS:
            self._params[name], self._configs[name], _ = release.load_network(networks, name)
        self.audio_format: AudioFormat = self._configs["vae"].audio_format
        self._frames = "codes" if self._configs["vae"].quantiser else "latents"
        self.samples = config.window_tokens * self.audio_format.token_samples
        self._tokenizer = release.load_tokenizer(networks, self._configs["mulan"].text.vocab_size)
        self._content = jax.jit(self._compute_content)
        self._music_prefixes = jax.jit(self._compute_music_prefixes)
        self._text_prefixes = jax.jit(self._compute_text_prefixes)

    def features(
        self, pieces: list[np.ndarray], captions: list[list[str]], first: int
    ) -> list[dict[str, np.ndarray]]:
        """A feature record (without meta) for each piece, in `audio_format`; piece i has the jitter of `first` + i."""
        window = self._config.window_tokens
        lengths = [len(piece) // self.audio_format.token_samples for piece in pieces]
        starts = [window_starts(length, window, window // 2) for length in lengths]
        tokens, frames = self._batched(self._content, self._cut(pieces, starts))
        tokens_by_piece = _split(tokens.astype(np.int16), starts)
        frames_by_piece = _split(frames.astype(FRAMES[self._frames][0]), starts)

        prefix_starts = [window_starts(length, window, self._config.hop_tokens) for length in lengths]
        keys = jnp.concatenate([self._keys(first + i, len(rows)) for i, rows in enumerate(prefix_starts)])
        prefixes = self._batched(self._music_prefixes, self._cut(pieces, prefix_starts), keys)[0]
        prefixes_by_piece = _split(prefixes.astype(np.int16), prefix_starts)
        text_prefixes_by_piece = _split(self._encode_captions(captions), captions)
        return [
            {
                "semantic_tokens": stitch_windows(tokens_by_piece[i], starts[i], length),
                self._frames: stitch_windows(frames_by_piece[i], starts[i], length),
                "prefix_tokens": prefixes_by_piece[i],
                "window_starts": np.array(prefix_starts[i], np.int32),
                "text_prefix_tokens": text_prefixes_by_piece[i],
            }
            for i, length in enumerate(lengths)
        ]

    def _compute_content(self, params: Any, windows: jax.Array) -> tuple[jax.Array, jax.Array]:
        mono = default_format(windows, self.audio_format)
        tokens = tokenizer.tokenize(params["tokenizer"], self._configs["tokenizer"], mono)
        config = self._configs["vae"]
        if config.quantiser:
            return tokens, vae.codes(params["vae"], config, windows)
        return tokens, vae.encode(params["vae"], config, windows)

    def _compute_music_prefixes(self, params: Any, windows: jax.Array, keys: jax.Array) -> tuple[jax.Array]:
        """(N, V, Q): the clean prefix tokens of each window, then those of jittered embeddings."""
        config = self._configs["mulan"]
        weights = params["mulan"]
        clean = mulan.embed_music(weights, config, default_format(windows, self.audio_format))[:, None]
        shape = (self._config.variants - 1, clean.shape[-1])
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys) * clean.shape[-1] ** -0.5
        distance = jnp.linalg.norm(clean - weights["music_mean"], axis=-1, keepdims=True)
        variants = jnp.concatenate([clean, clean + self._config.jitter * distance * noise], axis=1)
        return (mulan.quantise(weights, config, variants, "music"),)

    def _compute_text_prefixes(self, params: Any, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array]:
        config = self._configs["mulan"]
        weights = params["mulan"]
        return (mulan.quantise(weights, config, mulan.embed_text(weights, config, ids, mask), "text"),)

    def _keys(self, piece: int, count: int) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.key(self._config.seed), piece), count)

    def _cut(self, pieces: list[np.ndarray], starts: list[list[int]]) -> np.ndarray:
        """(N, T) or (N, T, C) windows of all pieces, which begin at `starts` tokens."""
        hop = self.audio_format.token_samples
        return np.stack(
            [
                piece[start * hop : start * hop + self.samples]
                for piece, piece_starts in zip(pieces, starts, strict=True)
                for start in piece_starts
            ]
        )

    def _encode_captions(self, captions: list[list[str]]) -> np.ndarray:
        """(C, Q) prefix tokens of the captions of all pieces."""
        texts = [caption for piece_captions in captions for caption in piece_captions]
        if not texts:
            return np.zeros((0, self._configs["mulan"].levels), np.int16)
        ids, mask = text.tokenize(texts, self._configs["mulan"].text.max_length, self._tokenizer)
        return self._batched(self._text_prefixes, ids, mask)[0].astype(np.int16)

    def _batched(self, function: Callable[..., tuple[jax.Array, ...]], *rows: Any) -> tuple[np.ndarray, ...]:
        """Calls the jitted `function` on `batch_size` rows at a time; the last row is repeated to fill up."""
        count = len(rows[0])
        outputs = []
        for begin in range(0, count, self._batch_size):
            indices = np.minimum(np.arange(begin, begin + self._batch_size), count - 1)
            outputs.append(jax.device_get(function(self._params, *(row[indices] for row in rows))))
        return tuple(np.concatenate(column)[:count] for column in zip(*outputs, strict=True))


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Starts of windows that cover `length` >= `window` tokens: one every `hop`, and one that ends at the end."""
    starts = list(range(0, length - window + 1, hop))
    return starts if starts[-1] == length - window else [*starts, length - window]


def stitch_windows(windows: np.ndarray, starts: Sequence[int], length: int) -> np.ndarray:
    """One sequence (length * rate, ...) from overlapping windows (N, window * rate, ...) that begin at `starts` tokens.

    Each position is taken from the window with the nearest centre, so that neighbours share their overlap equally.
    `rate` is the number of rows per token.
    """
    window = length - starts[-1]
    rate = windows.shape[1] // window
    middles = [(start + window + following) // 2 for start, following in itertools.pairwise(starts)]
    edges = [0, *middles, length]
    parts = [
        rows[(edges[i] - starts[i]) * rate : (edges[i + 1] - starts[i]) * rate]
        for i, rows in enumerate(windows)
    ]
    return np.concatenate(parts)


def _split(rows: np.ndarray, counts: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """Splits the rows of all pieces into one array per piece, of as many rows as its entry of `counts` is long."""
    return np.split(rows, np.cumsum([len(entry) for entry in counts])[:-1])
