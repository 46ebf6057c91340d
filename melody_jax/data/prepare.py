"""Features of music, cached once: what the LM and the diffusion model are trained on (`melody prepare`).

Each piece becomes 25 Hz semantic tokens, VAE latents, and the prefix tokens of its 10.24 s windows, all computed with
released networks whose hashes the manifest keeps. The semantic tokens and latents of a long piece are stitched from
half-overlapping windows, each position taken from the window whose centre is nearest, so that no position suffers from
a window's edge where it can be helped. T samples, U tokens, L latents, W windows, V variants, E embedding width.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from melody_jax import __version__, release
from melody_jax.audio import TOKEN_SAMPLES
from melody_jax.data import text
from melody_jax.data.records import MANIFEST as MANIFEST_NAME
from melody_jax.data.records import Manifest, Shard, encode_json, read_manifest, shard_name, write_manifest, write_shard
from melody_jax.data.sources import Source, open_source
from melody_jax.errors import UserError
from melody_jax.models import mulan, tokenizer, vae

NETWORKS = ("mulan", "tokenizer", "vae")
REJECTS = "rejects.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turns music into feature shards for training the LM and the diffusion model."""

    source: str = ""
    """Folder of audio shards, or of audio files."""
    networks: str = ""
    """Folder of the released mulan, tokenizer and vae."""
    out: str = ""
    """Folder of the feature shards; run again to go on after an interruption."""
    captions: str = ""
    """CSV or JSONL with file and caption, for a folder of audio files; empty: none."""
    window_tokens: int = 256
    """Window of the networks, semantic tokens (256 = 10.24 s)."""
    hop_tokens: int = 64
    """Hop between the windows that have a prefix, semantic tokens (64 = 2.56 s)."""
    variants: int = 4
    """Prefixes a window: the first clean, the others jittered before the quantiser."""
    jitter: float = 0.3
    """Length of the jitter relative to the embedding's distance from the mean embedding."""
    shard_records: int = 256
    """Pieces a shard; an interruption costs at most one shard's work."""
    batch_size: int = 8
    """Windows a network call."""
    seed: int = 0
    """Seed of the jitter."""

    def check(self) -> None:
        """Raises `UserError` for a folder that was not named, or a number that cannot be."""
        for name in ("source", "networks", "out"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing; see melody prepare --help")
        for name in ("window_tokens", "hop_tokens", "variants", "shard_records", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1")


class Extractor:
    """The three networks as functions of windows, each compiled once for batches of one size."""

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        loaded = {name: release.load_network(config.networks, name) for name in NETWORKS}
        self.hashes = {name: release.network_hash(config.networks, name) for name in NETWORKS}
        self.samples = config.window_tokens * TOKEN_SAMPLES
        self._params = {name: params for name, (params, _, _) in loaded.items()}
        self._configs = {name: model for name, (_, model, _) in loaded.items()}
        self._tokenizer = release.load_tokenizer(config.networks, self._configs["mulan"].text.vocab_size)
        self._content = jax.jit(self._content_of)
        self._prefixes = jax.jit(self._prefixes_of)
        self._text_prefixes = jax.jit(self._text_prefixes_of)

    def features(self, pieces: list[np.ndarray], captions: list[list[str]], first: int) -> list[dict[str, np.ndarray]]:
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
        begins = [(piece, start * TOKEN_SAMPLES) for piece, own in zip(pieces, at, strict=True) for start in own]
        return np.stack([piece[begin : begin + self.samples] for piece, begin in begins])

    def _texts(self, captions: list[list[str]]) -> np.ndarray:
        every = [caption for own in captions for caption in own]
        if not every:
            return np.zeros((0, self._configs["mulan"].levels), np.int16)
        ids, mask = text.tokenize(every, self._configs["mulan"].text.max_length, self._tokenizer)
        return self._batched(self._text_prefixes, np.asarray(ids), np.asarray(mask))[0].astype(np.int16)

    def _batched(self, function: Callable[..., tuple[jax.Array, ...]], *rows: Any) -> tuple[np.ndarray, ...]:
        """Calls the jitted `function` on `batch_size` rows at a time; the last row is repeated to fill up."""
        count, size = len(rows[0]), self._config.batch_size
        parts = []
        for begin in range(0, count, size):
            chosen = np.minimum(np.arange(begin, begin + size), count - 1)
            parts.append(jax.device_get(function(self._params, *(row[chosen] for row in rows))))
        return tuple(np.concatenate(column)[:count] for column in zip(*parts, strict=True))


def prepare(config: PrepareConfig) -> Manifest:
    """Writes the feature shards that are missing in `config.out` and returns its manifest.

    Pieces that cannot be read or are shorter than a window are left out, with the reason in rejects.jsonl.

    Raises:
        UserError: no such source or networks, or `out` holds features made otherwise.
    """
    config.check()
    source, extractor, out = open_source(config.source, config.captions or None), Extractor(config), Path(config.out)
    free = ("source", "networks", "out", "captions", "batch_size")
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in free}
    settings |= {"hashes": extractor.hashes, "source": source.settings}
    manifest = _begin(out, settings, -(-len(source) // config.shard_records))
    done = {shard.name for shard in manifest.shards}
    rejects = [row for row in _rejects(out) if row["shard"] in done]
    with tqdm(total=len(source), desc="prepare", unit="piece") as bar:
        for index in range(manifest.shard_count):
            name = shard_name("features", index, manifest.shard_count)
            numbers = range(index * config.shard_records, min((index + 1) * config.shard_records, len(source)))
            if name in done:
                bar.update(len(numbers))
                continue
            refused: list[dict[str, str]] = []
            shard: Shard = write_shard(out / name, _records(source, extractor, numbers, refused, bar))
            rejects += [{"shard": name, **row} for row in refused]
            (out / REJECTS).write_text("".join(json.dumps(row) + "\n" for row in rejects))
            manifest = dataclasses.replace(manifest, shards=(*manifest.shards, shard))
            write_manifest(out, manifest)
    if rejects:
        print(f"{len(rejects)} of {len(source)} pieces were left out, see {out / REJECTS}")
    if not manifest.records:
        raise UserError(f"{config.source}: no piece could be used; the first: {rejects[0]['reason']}")
    return manifest


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
    parts = [rows[(edges[i] - at[i]) * rate : (edges[i + 1] - at[i]) * rate] for i, rows in enumerate(windows)]
    return np.concatenate(parts)


def _split(rows: np.ndarray, owners: list[Any]) -> list[np.ndarray]:
    """Rows that belong to several pieces, len(owner) each, one array a piece."""
    return np.split(rows, np.cumsum([len(owner) for owner in owners])[:-1])


def _begin(out: Path, settings: dict[str, Any], shard_count: int) -> Manifest:
    if (out / MANIFEST_NAME).is_file():
        manifest = read_manifest(out)
        settings = json.loads(json.dumps(settings))
        differing = [key for key in settings if manifest.settings.get(key) != settings[key]]
        if differing or manifest.shard_count != shard_count:
            what = ", ".join(differing) or "source"
            raise UserError(f"{out}: holds features made with another {what}; choose another --out")
        return manifest
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    manifest = Manifest(
        kind="features", settings=settings, versions={"melody_jax": __version__}, shard_count=shard_count
    )
    write_manifest(out, manifest)
    return manifest


def _rejects(out: Path) -> list[dict[str, str]]:
    file = out / REJECTS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _records(
    source: Source, extractor: Extractor, numbers: range, refused: list[dict[str, str]], bar: Any, together: int = 8
) -> Iterator[dict[str, np.ndarray]]:
    """Feature records of the pieces `numbers`; the unusable ones go to `refused` instead."""
    for begin in range(numbers.start, numbers.stop, together):
        pieces, metas = [], []
        group = range(begin, min(begin + together, numbers.stop))
        for i in group:
            try:
                piece, meta = source.read(i)
                if len(piece) < extractor.samples:
                    raise UserError(f"{len(piece)} samples at 24 kHz, a window needs {extractor.samples}")
            except UserError as error:
                refused.append({"piece": source.name(i), "reason": str(error)})
                continue
            pieces.append(piece)
            metas.append(meta)
        if pieces:
            features = extractor.features(pieces, [meta.get("captions") or [] for meta in metas], begin)
            for meta, record in zip(metas, features, strict=True):
                yield {"meta": encode_json(meta)} | record
        bar.update(len(group))
