"""Features of music: what the LM and the diffusion model are trained on, computed with three released networks.

Each piece becomes 25 Hz semantic tokens, VAE latents, and the prefix tokens of its 10.24 s windows. The semantic tokens
and latents of a long piece are stitched from half-overlapping windows, each position taken from the window whose centre
is nearest, so that no position suffers from a window's edge where it can be helped. T samples, U tokens, L latents,
W windows, V variants, E embedding width.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import release, text
from melody_jax.audio import TOKEN_SAMPLES
from melody_jax.errors import UserError
from melody_jax.models import mulan, tokenizer, vae

NETWORKS = ("mulan", "tokenizer", "vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How the networks are run over pieces."""

    window_tokens: int = 256
    """Window of the networks, semantic tokens (256 = 10.24 s); shorter pieces are refused."""
    hop_tokens: int = 64
    """Hop between the windows that have a prefix, semantic tokens (64 = 2.56 s)."""
    variants: int = 4
    """Prefixes a window: the first clean, the others jittered before the quantiser."""
    jitter: float = 0.3
    """Length of the jitter relative to the embedding's distance from the mean embedding."""
    seed: int = 0
    """Seed of the jitter."""

    def __post_init__(self) -> None:
        for name in ("window_tokens", "hop_tokens", "variants"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1")


class Extractor:
    """The three networks as functions of windows, each compiled once for batches of one size."""

    def __init__(self, networks: str, config: FeatureConfig, batch_size: int) -> None:
        self._config, self._batch_size = config, batch_size
        loaded = {name: release.load_network(networks, name) for name in NETWORKS}
        self.samples = config.window_tokens * TOKEN_SAMPLES
        self._params = {name: params for name, (params, _, _) in loaded.items()}
        self._configs = {name: model for name, (_, model, _) in loaded.items()}
        self._tokenizer = release.load_tokenizer(networks, self._configs["mulan"].text.vocab_size)
        self._content = jax.jit(self._content_of)
        self._prefixes = jax.jit(self._prefixes_of)
        self._text_prefixes = jax.jit(self._text_prefixes_of)

    def features(
        self, pieces: list[np.ndarray], captions: list[list[str]], first: int
    ) -> list[dict[str, np.ndarray]]:
        """A feature record (without meta) for each piece (T,); `first` numbers the first piece's jitter."""
        window, lengths = self._config.window_tokens, [len(piece) // TOKEN_SAMPLES for piece in pieces]
        at = [starts(length, window, window // 2) for length in lengths]
        codes, latents = self._batched(self._content, self._cut(pieces, at))
        prefix_at = [starts(length, window, self._config.hop_tokens) for length in lengths]
        keys = jnp.concatenate([self._keys(first + i, len(found)) for i, found in enumerate(prefix_at)])
        prefixes = self._batched(self._prefixes, self._cut(pieces, prefix_at), keys)[0].astype(np.int16)
        columns = zip(
            lengths,
            at,
            prefix_at,
            _split(codes.astype(np.int16), at),
            _split(latents.astype(np.float16), at),
            _split(prefixes, prefix_at),
            _split(self._texts(captions), captions),
            strict=True,
        )
        return [
            {
                "semantic_tokens": stitch(own_codes, own_at, length),
                "latents": stitch(own_latents, own_at, length),
                "prefix_tokens": own_prefixes,
                "window_starts": np.array(own_prefix_at, np.int32),
                "text_prefix_tokens": own_texts,
            }
            for length, own_at, own_prefix_at, own_codes, own_latents, own_prefixes, own_texts in columns
        ]

    def _content_of(self, params: Any, windows: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = tokenizer.tokenize(params["tokenizer"], self._configs["tokenizer"], windows)
        return tokens, vae.encode(params["vae"], self._configs["vae"], windows)

    def _prefixes_of(self, params: Any, windows: jax.Array, keys: jax.Array) -> tuple[jax.Array]:
        model, weights = self._configs["mulan"], params["mulan"]
        clean = mulan.embed_music(weights, model, windows)[:, None]
        shape = (self._config.variants - 1, clean.shape[-1])
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys) * clean.shape[-1] ** -0.5
        spread = jnp.linalg.norm(clean - weights["music_mean"], axis=-1, keepdims=True)
        variants = jnp.concatenate([clean, clean + self._config.jitter * spread * noise], axis=1)
        return (mulan.quantise(weights, model, variants, "music"),)

    def _text_prefixes_of(self, params: Any, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array]:
        model, weights = self._configs["mulan"], params["mulan"]
        return (mulan.quantise(weights, model, mulan.embed_text(weights, model, ids, mask), "text"),)

    def _keys(self, piece: int, count: int) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.key(self._config.seed), piece), count)

    def _cut(self, pieces: list[np.ndarray], at: list[list[int]]) -> np.ndarray:
        begins = [
            (piece, start * TOKEN_SAMPLES) for piece, own in zip(pieces, at, strict=True) for start in own
        ]
        return np.stack([piece[begin : begin + self.samples] for piece, begin in begins])

    def _texts(self, captions: list[list[str]]) -> np.ndarray:
        every = [caption for own in captions for caption in own]
        if not every:
            return np.zeros((0, self._configs["mulan"].levels), np.int16)
        ids, mask = text.tokenize(every, self._configs["mulan"].text.max_length, self._tokenizer)
        return self._batched(self._text_prefixes, np.asarray(ids), np.asarray(mask))[0].astype(np.int16)

    def _batched(self, function: Callable[..., tuple[jax.Array, ...]], *rows: Any) -> tuple[np.ndarray, ...]:
        """Calls the jitted `function` on `batch_size` rows at a time; the last row is repeated to fill up."""
        count, size = len(rows[0]), self._batch_size
        parts = []
        for begin in range(0, count, size):
            chosen = np.minimum(np.arange(begin, begin + size), count - 1)
            parts.append(jax.device_get(function(self._params, *(row[chosen] for row in rows))))
        return tuple(np.concatenate(column)[:count] for column in zip(*parts, strict=True))


def starts(length: int, window: int, hop: int) -> list[int]:
    """Window starts that cover `length` >= `window` tokens: every `hop`, and a last one that ends at the end."""
    regular = list(range(0, length - window + 1, hop))
    return regular if regular[-1] == length - window else [*regular, length - window]


def stitch(windows: np.ndarray, at: Sequence[int], length: int) -> np.ndarray:
    """One sequence (length * rate, ...) from overlapping windows (N, window * rate, ...) starting at `at` tokens.

    A position is taken from the window whose centre is nearest: neighbours share their overlap half and half. `rate`
    is the number of rows a token.
    """
    window = length - at[-1]
    rate = windows.shape[1] // window
    edges = [0, *((a + window + b) // 2 for a, b in itertools.pairwise(at)), length]
    parts = [
        rows[(edges[i] - at[i]) * rate : (edges[i + 1] - at[i]) * rate] for i, rows in enumerate(windows)
    ]
    return np.concatenate(parts)


def _split(rows: np.ndarray, owners: list[Any]) -> list[np.ndarray]:
    """Rows that belong to several pieces, len(owner) each, one array a piece."""
    return np.split(rows, np.cumsum([len(owner) for owner in owners])[:-1])
