"""Batches from shards, with Grain. Item i of a run is a pure function of (records, config, i).

Its record comes from a permutation drawn anew each epoch, its crop, caption and prefix from a generator seeded with
(seed, i): the order does not depend on threads or processes, and an iterator's state is one number, the step.

Kinds of batches (B items, T samples, N word pieces, U tokens, L latents, D channels):
  audio       {"audio" (B, T) float32}
  audio_text  audio, "text_ids" (B, N) int32, "text_mask" (B, N) float32, "facts" {name: (B, ...)} (see facts.py)
  features    {"semantic_tokens" (B, U) int32, "prefix_tokens" (B, 12) int32, "latents" (B, L, D) float32}
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np
from tokenizers import Tokenizer

from melody_jax import audio, release, text
from melody_jax.composer import facts
from melody_jax.config import DataConfig
from melody_jax.data.records import RecordSource, decode_json, open_shards
from melody_jax.errors import UserError

Batch = dict[str, Any]
Record = dict[str, np.ndarray]
Item = Callable[[Record, np.random.Generator], Batch]

RECORD_KINDS = {"audio": "audio", "audio_text": "audio", "features": "features"}


class BatchIterator(Protocol):
    """An endless iterator of batches whose position is a JSON-able dict."""

    def __iter__(self) -> Iterator[Batch]:
        """Itself."""
        ...

    def __next__(self) -> Batch:
        """The next batch: this process's rows."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...

    def records_of(self, state: dict[str, Any]) -> list[str]:
        """Which records the batch at a position is made of, all processes' rows in order."""
        ...


class TrainingBatches:
    """Endless shuffled batches of `kind`, a `BatchIterator`; of several processes each gets its share of every batch.

    Raises:
        UserError: no folder, unreadable shards, records too short for the window, or a batch that does not divide.
    """

    def __init__(self, config: DataConfig, kind: str, process: int = 0, processes: int = 1) -> None:
        if config.batch_size % processes:
            raise UserError(f"data.batch_size {config.batch_size} does not divide over {processes} processes")
        self._size, self._records = config.batch_size, Records(config.folder, kind)
        chosen = range(len(self._records) - _held_out(config, len(self._records)))
        groups = (
            self._records.genres()[chosen.start : chosen.stop] if config.hard_negative_group > 1 else None
        )
        self._order = order = EpochOrder(len(chosen), config.seed, config.hard_negative_group, groups)
        make, records = _item_maker(config, kind, random=True), self._records

        def item(i: int, _: int) -> Batch:
            return make(records[order(i)], np.random.default_rng([config.seed, i]))

        items = grain.MapDataset.range(len(chosen)).repeat().map_with_index(item)
        batches = items.batch(config.batch_size // processes)[process::processes]
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
        self._batches: Any = iter(batches.to_iter_dataset(options))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """{"next_index": batches taken}."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self._batches.set_state(state)

    def records_of(self, state: dict[str, Any]) -> list[str]:
        """ "folder: id" of every item of the batch at a position, all processes' rows in order."""
        first = state["next_index"] * self._size
        return [self._records.name(self._order(i)) for i in range(first, first + self._size)]


def validation_batches(
    config: DataConfig, kind: str, count: int, process: int = 0, processes: int = 1
) -> Sequence[Batch]:
    """The first `count` batches of the held-out records in their order, the same crops every time."""
    if config.validation_folder:
        records, first = Records(config.validation_folder, kind), 0
    else:
        records = Records(config.folder, kind)
        first = len(records) - _held_out(config, len(records))
    make, held = _item_maker(config, kind, random=False), len(records) - first
    share = config.batch_size // processes

    def batch(n: int) -> Batch:
        numbers = range(
            n * config.batch_size + process * share, n * config.batch_size + (process + 1) * share
        )
        return _stack([make(records[first + i % held], np.random.default_rng([0, i])) for i in numbers])

    return [batch(n) for n in range(count)]


def finishing_batches(config: DataConfig, kind: str, count: int) -> Iterator[Batch]:
    """The first `count` training batches, for `Stage.finish`: the same whatever the run did before."""
    return itertools.islice(TrainingBatches(config, kind), count)


def check_provenance(config: DataConfig, kind: str) -> dict[str, str]:
    """The hashes of the networks that feature shards were made with; {} for audio.

    Raises:
        UserError: two folders, or a folder and the networks of `config.networks`, do not belong together.
    """
    if kind != "features":
        return {}
    folders = (*config.folder, *config.validation_folder)
    if not folders:
        raise UserError("no data: give a folder of shards with --data.folder")
    hashes: dict[str, str] = {}
    for folder in folders:
        for network, digest in open_shards(folder, "features").manifest.settings["hashes"].items():
            if hashes.setdefault(network, digest) != digest:
                raise UserError(
                    f"{folder} and {folders[0]} were made with different networks: {network} differs"
                )
            if config.networks and release.network_hash(config.networks, network) != digest:
                raise UserError(
                    f"{folder} was made with another {network} ({digest[:12]}) than {config.networks} holds; "
                    "run `melody prepare` again"
                )
    return hashes


class Records:
    """The records of several folders of shards, one after the other."""

    def __init__(self, folders: Sequence[str], kind: str) -> None:
        if not folders:
            raise UserError("no data: give a folder of shards with --data.folder")
        self._sources: list[RecordSource] = [open_shards(folder, RECORD_KINDS[kind]) for folder in folders]
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Record:
        source, own = self._place(i)
        return source[own]

    def name(self, i: int) -> str:
        """ "folder: id" of record i."""
        source, own = self._place(i)
        return f"{source.folder}: {decode_json(source[own]['meta']).get('id', own)}"

    def _place(self, i: int) -> tuple[RecordSource, int]:
        which = int(np.searchsorted(self._ends, i, side="right"))
        return self._sources[which], i - int(self._ends[which]) + len(self._sources[which])

    def genres(self) -> np.ndarray:
        """The genre of every record (int, -1 unknown); read once from all records, then kept beside the shards."""
        return np.concatenate([_genres(source) for source in self._sources])


class EpochOrder:
    """Which record the i-th item of an endless run is: a new permutation each epoch.

    With `group` > 1, items i to i + group - 1 (i a multiple of it) share a genre, as far as the genres divide so.
    """

    def __init__(self, length: int, seed: int, group: int = 1, genres: np.ndarray | None = None) -> None:
        if length < 1:
            raise UserError("no record is left to train on; lower data.holdout or give more data")
        self._length, self._seed, self._group, self._genres = length, seed, group, genres
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def __call__(self, i: int) -> int:
        """The number of the i-th item's record."""
        return int(self._epoch(i // self._length)[i % self._length])

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch, 1])
        order = rng.permutation(self._length)
        if self._genres is None:
            return order
        runs: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for genre in np.unique(self._genres):
            members = order[self._genres[order] == genre]
            whole = len(members) // self._group * self._group
            runs.extend(members[:whole].reshape(-1, self._group))
            rest.append(members[whole:])
        rng.shuffle(runs)
        return np.concatenate([*runs, *rest])


def _held_out(config: DataConfig, length: int) -> int:
    return 0 if config.validation_folder else max(1, round(length * config.holdout))


def _item_maker(config: DataConfig, kind: str, random: bool) -> Item:
    if kind == "features":
        return functools.partial(
            _feature_item,
            window=config.window_tokens,
            jitter=config.jitter_probability if random else 0.0,
            from_text=config.text_prefix_probability if random else 0.0,
        )
    crop = functools.partial(_audio_item, samples=config.crop_samples)
    if kind == "audio":
        return crop
    pieces = text.read_tokenizer(config.text_tokenizer)
    return functools.partial(_audio_text_item, crop=crop, length=config.text_length, tokenizer=pieces)


def _audio_item(record: Record, rng: np.random.Generator, samples: int) -> Batch:
    """A random crop; only its part of the FLAC is decoded. Shorter records are followed by silence."""
    flac = record["audio"].tobytes()
    length = audio.flac_length(flac)
    start = int(rng.integers(0, max(length - samples, 0) + 1))
    crop = audio.decode_flac(flac, start, min(samples, length))
    return {"audio": np.pad(crop, (0, samples - len(crop)))}


def _audio_text_item(
    record: Record, rng: np.random.Generator, crop: Item, length: int, tokenizer: Tokenizer
) -> Batch:
    meta = decode_json(record["meta"])
    captions = meta.get("captions") or ()
    if not captions:
        raise UserError(f"record {meta.get('id')!r} has no caption; this stage trains on captioned audio")
    ids, mask = text.tokenize([captions[int(rng.integers(len(captions)))]], length, tokenizer)
    found = {"text_ids": np.asarray(ids[0], np.int32), "text_mask": np.asarray(mask[0], np.float32)}
    return crop(record, rng) | found | {"facts": facts.labels(meta.get("facts") or {})}


def _feature_item(
    record: Record, rng: np.random.Generator, window: int, jitter: float, from_text: float
) -> Batch:
    """A window at any token offset, with the prefix of the nearest MuLan window."""
    tokens, latents, prefixes = record["semantic_tokens"], record["latents"], record["prefix_tokens"]
    if len(tokens) < window:
        name = decode_json(record["meta"]).get("id")
        raise UserError(f"record {name!r} has {len(tokens)} tokens, data.window_tokens is {window}")
    start = int(rng.integers(0, len(tokens) - window + 1))
    choice, variant, caption = rng.random(2), rng.integers(2**31), rng.integers(2**31)
    nearest = int(np.argmin(np.abs(record["window_starts"] - start)))
    noisy = prefixes.shape[1] > 1 and choice[0] < jitter
    prefix = prefixes[nearest, 1 + variant % (prefixes.shape[1] - 1) if noisy else 0]
    texts = record["text_prefix_tokens"]
    if len(texts) and choice[1] < from_text:
        prefix = texts[caption % len(texts)]
    rate = len(latents) // len(tokens)
    return {
        "semantic_tokens": tokens[start : start + window].astype(np.int32),
        "prefix_tokens": prefix.astype(np.int32),
        "latents": latents[start * rate : (start + window) * rate].astype(np.float32),
    }


def _stack(items: Sequence[Any]) -> Any:
    if isinstance(items[0], dict):
        return {name: _stack([item[name] for item in items]) for name in items[0]}
    return np.stack(items)


def _genres(source: RecordSource) -> np.ndarray:
    path = Path(source.folder) / "genres.json"
    shards = [shard.sha256 for shard in source.manifest.shards]
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["shards"] == shards:
            return np.array([facts.index("genre", name) for name in kept["genres"]])
    metas = (decode_json(source[i]["meta"]) for i in range(len(source)))
    names = [(meta.get("facts") or {}).get("genre") for meta in metas]
    path.write_text(json.dumps({"shards": shards, "genres": names}))
    return np.array([facts.index("genre", name) for name in names])
