"""Batches from shards, with Grain. Item i of a run is a pure function of (records, config, i).

Each epoch draws a new permutation of the records; a generator seeded with (seed, i) draws the crop, caption and prefix
of item i. The order therefore does not depend on threads or processes, and the state of an iterator is one number, the
step.

Kinds of batches (B items, T samples, N word pieces, U tokens, L latents, D channels):
  audio       {"audio" (B, T) float32}, or (B, T, C) for a network that takes C channels
  audio_text  audio, "text_ids" (B, N) int32, "text_mask" (B, N) float32, "facts" {name: (B, ...)} (composer/facts.py)
  features    {"semantic_tokens" (B, U) int32, "prefix_tokens" (B, 12) int32, "latents" (B, L, D) float32}, or "codes"
              (B, L, V) int32 in place of latents; for a network with control tokens, "prefix_tokens" (B, 12 + C) with
              these behind the prefix tokens; for one that follows a melody, "melody" (B, U) int32
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from melody_jax import audio, files, release, text
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.composer import facts
from melody_jax.config import DataConfig
from melody_jax.control_tokens import ControlVocabulary
from melody_jax.data.feature_shape import FeatureShape, check_audio_source, check_item, check_source
from melody_jax.data.records import Concatenation, RecordSource, decode_json, frames_name, open_shards
from melody_jax.errors import UserError
from melody_jax.melody_tokens import melody_of_meta

Batch = dict[str, Any]
Record = dict[str, np.ndarray]
ItemMaker = Callable[[Record, np.random.Generator], Batch]
"""Makes an item (a batch without the dimension B) of a record."""

ENDLESS = 2**62
"""More items than any run reads."""
FRAME_TYPES = {"latents": np.float32, "codes": np.int32}
"""Types of `records.FRAMES` in batches."""
RECORD_KINDS = {"audio": "audio", "audio_text": "audio", "features": "features"}
"""Kind of batch -> kind of shards."""


class BatchIterator(Protocol):
    """An endless iterator of batches with a JSON-serialisable position."""

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        ...

    def __next__(self) -> Batch:
        """Returns this process's rows of the next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position."""
        ...

    def records_of(self, state: dict[str, Any]) -> list[str]:
        """Names the records of the batch at a position, for the rows of all processes in order."""
        ...


class TrainingBatches:
    """Endless shuffled batches of `kind`, a `BatchIterator`; each reader gets its rows of every batch.

    Processes whose devices hold the same rows are one reader (`sharding.reader`). `shape` are the sizes of features,
    `audio_format` is the format of audio, that the network needs.

    Raises:
        UserError: no folder, unreadable shards, records shorter than the window, features of other sizes, or a batch
            size that is not a multiple of `readers`.
    """

    def __init__(
        self,
        config: DataConfig,
        kind: str,
        reader: int = 0,
        readers: int = 1,
        shape: FeatureShape | None = None,
        audio_format: AudioFormat = DEFAULT_FORMAT,
    ) -> None:
        if config.batch_size % readers:
            raise UserError(f"data.batch_size {config.batch_size} does not divide over {readers} processes")
        records = ConcatenatedRecords(config.folder, kind, config, shape, audio_format)
        count = len(records) - _validation_count(config, len(records))
        genres = records.genres()[:count] if config.hard_negative_group > 1 else None
        order = EpochOrder(count, config.seed, config.hard_negative_group, genres)
        make_item = _item_maker(config, kind, random=True, shape=shape, audio_format=audio_format)

        import grain  # an extra: the options of commands are shown without it

        def item(i: int, _: int) -> Batch:
            return make_item(records[order(i)], np.random.default_rng([config.seed, i]))

        self._batch_size = config.batch_size
        self._records = records
        self._order = order
        epochs = ENDLESS // count  # Grain's own endless repetition overflows with batches of one item
        items = grain.MapDataset.range(count).repeat(epochs).map_with_index(item)
        batches = items.batch(config.batch_size // readers)[reader::readers]
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
        self._batches: Any = iter(batches.to_iter_dataset(options))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """Returns {"next_index": number of batches taken}."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position. Raises `UserError` for what is not a position."""
        index = state.get("next_index") if isinstance(state, dict) else None
        if type(index) is not int or not 0 <= index < 2**53 or len(state) != 1:
            raise UserError(f"{str(state)[:100]}: not a position in the data, such as {{'next_index': 10}}")
        self._batches.set_state(state)

    def records_of(self, state: dict[str, Any]) -> list[str]:
        """Returns "folder: id" for the rows of all processes in order."""
        first = state["next_index"] * self._batch_size
        return [self._records.name(self._order(i)) for i in range(first, first + self._batch_size)]


def validation_batches(
    config: DataConfig,
    kind: str,
    count: int,
    reader: int = 0,
    readers: int = 1,
    shape: FeatureShape | None = None,
    audio_format: AudioFormat = DEFAULT_FORMAT,
) -> Sequence[Batch]:
    """The first `count` batches of the held-out records in their order, with the same crops every time."""
    folders = config.validation_folder or config.folder
    records = ConcatenatedRecords(folders, kind, config, shape, audio_format)
    first = 0 if config.validation_folder else len(records) - _validation_count(config, len(records))
    held_out = len(records) - first
    make_item = _item_maker(config, kind, random=False, shape=shape, audio_format=audio_format)
    rows = config.batch_size // readers

    def batch(step: int) -> Batch:
        begin = step * config.batch_size + reader * rows
        return _stack(
            [
                make_item(records[first + i % held_out], np.random.default_rng([0, i]))
                for i in range(begin, begin + rows)
            ]
        )

    return [batch(step) for step in range(count)]


def finishing_batches(
    config: DataConfig, kind: str, count: int, audio_format: AudioFormat = DEFAULT_FORMAT
) -> Iterator[Batch]:
    """The first `count` training batches, for `Stage.finish`; they do not depend on how far training went."""
    return itertools.islice(TrainingBatches(config, kind, audio_format=audio_format), count)


def check_provenance(config: DataConfig, kind: str) -> dict[str, str]:
    """The hashes of the networks that feature shards were made with; {} for audio.

    Raises:
        UserError: two folders were made with different networks, or a folder with others than `config.networks`.
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


class ConcatenatedRecords(Concatenation[RecordSource]):
    """The records of several folders of shards, one folder after the other; `shape` as in `TrainingBatches`."""

    def __init__(
        self,
        folders: Sequence[str],
        kind: str,
        config: DataConfig | None = None,
        shape: FeatureShape | None = None,
        audio_format: AudioFormat = DEFAULT_FORMAT,
    ) -> None:
        if not folders:
            raise UserError("no data: give a folder of shards with --data.folder")
        super().__init__([open_shards(folder, RECORD_KINDS[kind]) for folder in folders])
        if config is not None and shape is not None:
            for source in self.sources:
                check_source(source, shape, config.window_tokens)
        if RECORD_KINDS[kind] == "audio":
            for source in self.sources:
                check_audio_source(source, audio_format)

    def name(self, i: int) -> str:
        """Returns "folder: id" of record i."""
        source, index = self.locate(i)
        return f"{source.folder}: {decode_json(source[index]['meta']).get('id', index)}"

    def genres(self) -> np.ndarray:
        """The genre of each record, int (N,), -1 if unknown; cached in a file in the folder of the shards."""
        return np.concatenate([_genres(source) for source in self.sources])


class EpochOrder:
    """Maps the i-th item of an endless run to a record, with a new permutation each epoch.

    With `group` > 1, items i to i + group - 1 of an epoch (i a multiple of `group`, counted from the epoch's first
    item) share a genre, except for the items that are left over when a genre is divided into groups.
    """

    def __init__(self, length: int, seed: int, group: int = 1, genres: np.ndarray | None = None) -> None:
        if length < 1:
            raise UserError("no record is left to train on; lower --data.holdout or give more data")
        self._length = length
        self._seed = seed
        self._group = group
        self._genres = genres
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def __call__(self, i: int) -> int:
        """Returns the index of the record of item i."""
        return int(self._epoch(i // self._length)[i % self._length])

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch, 1])
        order = rng.permutation(self._length)
        if self._genres is None:
            return order
        groups: list[np.ndarray] = []
        remainders: list[np.ndarray] = []
        for genre in np.unique(self._genres):
            members = order[self._genres[order] == genre]
            divisible = len(members) // self._group * self._group
            groups.extend(members[:divisible].reshape(-1, self._group))
            remainders.append(members[divisible:])
        rng.shuffle(groups)
        return np.concatenate([*groups, *remainders])


def _validation_count(config: DataConfig, length: int) -> int:
    return 0 if config.validation_folder else max(1, round(length * config.holdout))


def _item_maker(
    config: DataConfig, kind: str, random: bool, shape: FeatureShape | None, audio_format: AudioFormat
) -> ItemMaker:
    if kind == "features":
        return functools.partial(
            _feature_item,
            window=config.window_tokens,
            jitter_probability=config.jitter_probability if random else 0.0,
            text_probability=config.text_prefix_probability if random else 0.0,
            shape=shape,
        )
    crop = functools.partial(_audio_item, samples=config.crop_samples, audio_format=audio_format)
    if kind == "audio":
        return crop
    tokenizer = text.read_tokenizer(config.text_tokenizer)
    return functools.partial(_audio_text_item, crop=crop, length=config.text_length, tokenizer=tokenizer)


def _audio_item(
    record: Record, rng: np.random.Generator, samples: int, audio_format: AudioFormat = DEFAULT_FORMAT
) -> Batch:
    """A random crop; only that part of the FLAC is decoded. Shorter records are padded with silence."""
    flac = record["audio"].tobytes()
    length, stored = audio.flac_info(flac)
    stored_samples = -(-samples * stored.sample_rate // audio_format.sample_rate)
    start = int(rng.integers(0, max(length - stored_samples, 0) + 1))
    crop = audio.decode_flac(flac, start, min(stored_samples, length))
    crop = audio.convert(crop, stored, audio_format)[:samples]
    return {"audio": np.pad(crop, ((0, samples - len(crop)), *[(0, 0)] * (crop.ndim - 1)))}


def _audio_text_item(
    record: Record, rng: np.random.Generator, crop: ItemMaker, length: int, tokenizer: Tokenizer
) -> Batch:
    meta = decode_json(record["meta"])
    captions = meta.get("captions") or ()
    if not captions:
        raise UserError(f"record {meta.get('id')!r} has no caption; this stage trains on captioned audio")
    caption = captions[int(rng.integers(len(captions)))]
    ids, mask = text.tokenize([caption], length, tokenizer)
    return crop(record, rng) | {
        "text_ids": ids[0],
        "text_mask": mask[0],
        "facts": facts.labels(facts.without_absent_pulse(meta.get("facts") or {})),
    }


def _feature_item(
    record: Record,
    rng: np.random.Generator,
    window: int,
    jitter_probability: float,
    text_probability: float,
    shape: FeatureShape | None = None,
) -> Batch:
    """A window at a random token offset, with the prefix of the nearest MuLan window."""
    tokens = record["semantic_tokens"]
    form = frames_name(record)
    frames = record[form]
    prefixes = record["prefix_tokens"]
    if len(tokens) < window:
        name = decode_json(record["meta"]).get("id")
        raise UserError(f"record {name!r} has {len(tokens)} tokens, data.window_tokens is {window}")
    start = int(rng.integers(0, len(tokens) - window + 1))
    jitter_draw, text_draw = rng.random(2)
    variant = rng.integers(2**31)
    caption = rng.integers(2**31)
    nearest = int(np.argmin(np.abs(record["window_starts"] - start)))
    jittered = prefixes.shape[1] - 1
    prefix = prefixes[nearest, 1 + variant % jittered if jittered and jitter_draw < jitter_probability else 0]
    text_prefixes = record["text_prefix_tokens"]
    if len(text_prefixes) and text_draw < text_probability:
        prefix = text_prefixes[caption % len(text_prefixes)]
    rate = len(frames) // len(tokens)
    item = {
        "semantic_tokens": tokens[start : start + window].astype(np.int32),
        "prefix_tokens": prefix.astype(np.int32),
        form: frames[start * rate : (start + window) * rate].astype(FRAME_TYPES[form]),
    }
    if shape is not None:
        check_item(item, record, shape)
        if shape.controls is not None:
            controls = _control_tokens(record, shape.controls)
            item["prefix_tokens"] = np.concatenate([item["prefix_tokens"], controls])
        if shape.melody:
            item["melody"] = melody_of_meta(decode_json(record["meta"]), len(tokens))[start : start + window]
    return item


def _control_tokens(record: Record, vocabulary: ControlVocabulary) -> np.ndarray:
    """The control tokens (C,) of a piece's facts. Music without a pulse has neither tempo nor metre."""
    return vocabulary.tokens(facts.without_absent_pulse(decode_json(record["meta"]).get("facts") or {}))


def _stack(items: Sequence[Any]) -> Any:
    """Stacks arrays, or dicts of arrays, along a new first dimension."""
    if isinstance(items[0], dict):
        return {name: _stack([item[name] for item in items]) for name in items[0]}
    return np.stack(items)


def _genres(source: RecordSource) -> np.ndarray:
    """The genre of each record of a folder, int (N,); reading all records once is slow, hence the file."""
    path = Path(source.folder) / "genres.json"
    shards = [shard.sha256 for shard in source.manifest.shards]
    names = _cached_genres(path, shards, len(source))
    if names is None:
        metas = (decode_json(source[i]["meta"]) for i in range(len(source)))
        names = [(meta.get("facts") or {}).get("genre") for meta in metas]
        if Path(source.folder).stat().st_mode & 0o222:  # not into a corpus that was made read-only
            with contextlib.suppress(
                UserError
            ):  # no permission, or a full disk: they are read again the next time
                files.write_json(path, {"shards": shards, "genres": names}, indent=None)
    return np.array([facts.index("genre", name) for name in names])


def _cached_genres(path: Path, shards: list[str], count: int) -> list[str | None] | None:
    """The genres in a file of `_genres`; None if it is missing, damaged, or of other shards."""
    try:
        cached = files.read_json(path)
    except UserError:
        return None
    if not isinstance(cached, dict) or cached.get("shards") != shards:
        return None
    names = cached.get("genres")
    if not isinstance(names, list) or len(names) != count:
        return None
    return names if all(name is None or isinstance(name, str) for name in names) else None
