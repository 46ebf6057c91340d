"""ArrayRecord shards of records; a record is a dict of arrays, encoded as safetensors bytes.

A folder of shards holds `<name>-00000-of-00012.array_record` files and a `manifest.json` that lists each finished shard
with its number of records, size and sha256. Shards and manifest are written atomically. Records are uncompressed, one
per group: FLAC and float16 do not compress further, and random reads are several times faster.

Audio record: `audio` uint8 (FLAC bytes), `meta` uint8 (JSON: id, facts, captions).
Feature record: `meta`, `latents` float16 (L, D) or, of an autoencoder with a quantiser, `codes` int16 (L, V) of V
levels, `semantic_tokens` int16 (U,), `prefix_tokens` int16 (N, V, Q) for N
windows, V variants (0 clean, others jittered) and Q codebooks, `window_starts` int32 (N,) in tokens,
`text_prefix_tokens` int16 (C, Q) for C captions.
"""

import contextlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, SupportsIndex, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from melody_jax import files, folders
from melody_jax.errors import UserError
from melody_jax.object_store import RemoteFolder, is_remote, local_copy

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
FIELDS = {
    "audio": {"audio": (np.uint8, 1), "meta": (np.uint8, 1)},
    "features": {
        "meta": (np.uint8, 1),
        "semantic_tokens": (np.int16, 1),
        "prefix_tokens": (np.int16, 3),
        "window_starts": (np.int32, 1),
        "text_prefix_tokens": (np.int16, 2),
    },
}
"""Kind -> name of each array of a record -> its type and number of dimensions."""
FRAMES = {"latents": (np.float16, 2), "codes": (np.int16, 2)}
"""The two forms of what an autoencoder makes of music; a feature record has one of them."""
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished shard: file name, number of records, size in bytes, sha256 of the file."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    """The contents of a folder of shards.

    `settings` are those it was made with (compared on resume), `versions` those of the packages, `shard_count` the
    number of shards of the finished folder, `shards` the finished ones, `counts` the statistics of `melody prepare`.
    """

    kind: str
    settings: dict[str, Any]
    versions: dict[str, str]
    shard_count: int
    shards: tuple[Shard, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Records in the finished shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def finished(self) -> bool:
        """True once every shard is written."""
        return len(self.shards) == self.shard_count


def encode_record(fields: Mapping[str, np.ndarray]) -> bytes:
    """Encodes a dict of arrays; the same arrays always give the same bytes."""
    return safetensors.numpy.save({name: np.ascontiguousarray(fields[name]) for name in sorted(fields)})


def decode_record(data: bytes) -> dict[str, np.ndarray]:
    """Decodes the bytes of `encode_record`. Raises `UserError` for any other bytes."""
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"a record of {len(data)} bytes is not safetensors ({error})") from error


def encode_json(value: Any) -> np.ndarray:
    """JSON as uint8 (N,), the form of a record's `meta`."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return np.frombuffer(
        text.encode("utf-8", "backslashreplace"), np.uint8
    )  # parts of names that are not UTF-8


def decode_json(array: np.ndarray) -> Any:
    """Decodes the bytes of `encode_json`. Raises `UserError` for bytes that are not JSON."""
    try:
        text = np.asarray(array, np.uint8).tobytes().decode()
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"a record's meta is not JSON ({error})") from error
    return files.parse_json(text, "a record's meta")


def shard_name(prefix: str, index: int, count: int) -> str:
    """The file name of shard `index` of `count`."""
    return f"{prefix}-{index:05d}-of-{count:05d}.array_record"


def write_shard(path: str | os.PathLike, records: Iterable[Mapping[str, np.ndarray]]) -> Shard:
    """Writes records (dicts of arrays) to the shard `path` atomically; if `records` raises, no file is left.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with _writing(path):
            writer = _array_record("array_record_module").ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            for record in records:
                data = encode_record(record)
                with _writing(path):
                    writer.write(data)
                count += 1
        finally:
            with _writing(path):
                writer.close()
        with _writing(path):
            shard = Shard(
                name=path.name,
                records=count,
                bytes=temporary.stat().st_size,
                sha256=files.file_hash(temporary),
            )
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def read_shard(path: str | os.PathLike) -> Iterator[dict[str, np.ndarray]]:
    """Yields the decoded records of one shard in order. Raises `UserError` for a file that is missing or damaged."""
    try:
        reader = _array_record("array_record_module").ArrayRecordReader(str(path))
        for i in range(reader.num_records()):
            yield decode_record(reader.read([i])[0])
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: the shard is missing or damaged ({error})") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns ArrayRecord's errors (RuntimeError for a full disk or a missing folder) into `UserError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def write_manifest(folder: str | os.PathLike, manifest: ShardManifest) -> None:
    """Writes `manifest.json` atomically; shards are listed in the order of their names."""
    content = {
        "format": FORMAT_VERSION,
        "kind": manifest.kind,
        "records": manifest.records,
        "shard_count": manifest.shard_count,
        "settings": manifest.settings,
        "versions": manifest.versions,
        "counts": manifest.counts,
        "shards": [asdict(shard) for shard in sorted(manifest.shards, key=lambda shard: shard.name)],
    }
    files.write_json(Path(folder) / MANIFEST, content)


def read_manifest(folder: str | os.PathLike) -> ShardManifest:
    """Reads `manifest.json`. Raises `UserError` if it is missing, has another format or is not what we write."""
    path = Path(folder) / MANIFEST
    if is_remote(folder):
        content = files.parse_json(RemoteFolder(folder).read(MANIFEST).decode("utf-8", "replace"), str(path))
    elif folders.size_of(path) < 0:
        raise UserError(f"{folder}: not a folder of shards, it has no {MANIFEST}")
    else:
        content = files.read_json(path)
    try:
        if content["format"] != FORMAT_VERSION:
            raise UserError(
                f"{path}: format {content['format']} is unknown; this version reads format {FORMAT_VERSION}"
            )
        manifest = ShardManifest(
            kind=content["kind"],
            settings=content["settings"],
            versions=content["versions"],
            shard_count=content["shard_count"],
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            counts=content.get("counts", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a manifest of shards ({type(error).__name__}: {error})") from error
    problem = _manifest_problem(manifest)
    if problem:
        raise UserError(f"{path}: not a manifest of shards ({problem})")
    return manifest


def _manifest_problem(manifest: ShardManifest) -> str:
    """What a manifest holds that this package never writes; empty if there is nothing."""
    if not isinstance(manifest.kind, str):
        return f"kind is {manifest.kind!r}"
    for name in ("settings", "versions", "counts"):
        if not isinstance(getattr(manifest, name), dict):
            return f"{name} is no object"
    if not _is_count(manifest.shard_count):
        return f"shard_count is {manifest.shard_count!r}"
    for shard in manifest.shards:
        if not (isinstance(shard.name, str) and re.fullmatch(r"[\w.-]+", shard.name)):
            return f"{str(shard.name)[:80]!r} is no name of a shard in this folder"
        if not (_is_count(shard.records) and _is_count(shard.bytes) and isinstance(shard.sha256, str)):
            return f"shard {shard.name} has no numbers of records and bytes, or no hash"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def check_shard(folder: str | os.PathLike, shard: Shard, content: bool = False) -> None:
    """Raises `UserError` unless the file of the shard has the right size, and the right hash if `content` is true."""
    path = Path(folder) / shard.name
    size = folders.size_of(path)
    if size < 0:
        raise UserError(f"{path}: the manifest lists this shard, but it is missing")
    if size != shard.bytes:
        raise UserError(f"{path}: cut short or not the shard of the manifest, {size} of {shard.bytes} bytes")
    if content and files.file_hash(path) != shard.sha256:
        raise UserError(f"{path}: its sha256 is not the manifest's: the file is damaged")


def _array_record(module: str) -> ModuleType:
    """Imports a module of ArrayRecord, which sampling does not need; the command line reports a missing extra."""
    return importlib.import_module(f"array_record.python.{module}")


class IndexedItems(Protocol):
    """Anything with a length and integer indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Source = TypeVar("Source", bound=IndexedItems)


class Concatenation(Generic[Source]):
    """Several sequences as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Any:
        source, index = self.locate(i)
        return source[index]

    def locate(self, i: int) -> tuple[Source, int]:
        """Returns the sequence that item `i` is in, and the item's index in it."""
        position = int(np.searchsorted(self._ends, i, side="right"))
        source = self.sources[position]
        return source, i - int(self._ends[position]) + len(source)


class RecordSource:
    """Random access to the decoded records of a folder of shards, in shard order; picklable, for `grain.MapDataset`.

    `len(source)` is the number of records, `source[i]` a dict of arrays, `source.manifest` the folder's manifest.
    """

    def __init__(self, folder: Path, manifest: ShardManifest):
        self.folder = folder
        self.manifest = manifest
        instructions = [
            _WholeShard(str(folder / shard.name), 0, shard.records, shard.records)
            for shard in manifest.shards
        ]
        self._source = _array_record("array_record_data_source").ArrayRecordDataSource(instructions)

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[dict[str, np.ndarray]]:
        """Reads several records in parallel."""
        try:
            data = self._source.__getitems__([int(index) for index in indices])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.folder}: a shard is damaged ({error})") from error
        decoded = [decode_record(part) for part in data]
        for record in decoded:
            _check_fields(record, self.manifest.kind, self.folder)
        return decoded

    def __repr__(self) -> str:
        return f"RecordSource({str(self.folder)!r}, {len(self)} records)"


def frames_name(record: Mapping[str, np.ndarray]) -> str:
    """Which of `FRAMES` a feature record has: "latents" unless it has "codes"."""
    return "codes" if "codes" in record else "latents"


def _check_fields(record: Mapping[str, np.ndarray], kind: str, folder: Path) -> None:
    """Raises `UserError` unless a record has the arrays of its kind."""
    needed = FIELDS.get(kind, {})
    if kind == "features":
        name = frames_name(record)
        needed = needed | {name: FRAMES[name]}
    for name, (dtype, dimensions) in needed.items():
        array = record.get(name)
        if array is None or array.dtype != dtype or array.ndim != dimensions:
            has = "is missing" if array is None else f"is {array.dtype} {array.shape}"
            raise UserError(f"{folder}: not a shard of {kind} records: {name} {has}")


@dataclass(frozen=True)
class _WholeShard:
    """A shard file with the number of its records, so that ArrayRecord need not open it to count them."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def local_shards(folder: str | os.PathLike) -> Path:
    """A local folder with the shards of `folder`: itself or, if it is in a bucket, a copy. Raises `UserError`."""
    if not is_remote(folder):
        folders.check_present(folder, "shards")
        return Path(folder)

    def listed(copy: Path) -> dict[str, tuple[int, str]]:
        return {shard.name: (shard.bytes, shard.sha256) for shard in read_manifest(copy).shards}

    return local_copy(RemoteFolder(folder), MANIFEST, listed)


def open_shards(folder: str | os.PathLike, kind: str | None = None, verify: bool = False) -> RecordSource:
    """Opens the records of a finished folder of shards; those in a bucket are copied to this machine first.

    `kind` is the kind that the manifest must have ("audio" or "features"); `verify` compares the sha256 of every file.

    Raises:
        UserError: the folder is missing, unfinished, empty or of another kind, or a shard does not match the manifest.
    """
    folder = local_shards(folder)
    manifest = read_manifest(folder)
    if kind is not None and manifest.kind != kind:
        raise UserError(f"{folder}: holds {manifest.kind} records, {kind} records are needed")
    if not manifest.finished:
        raise UserError(
            f"{folder}: unfinished, {len(manifest.shards)} of {manifest.shard_count} shards; run again to finish"
        )
    if manifest.records == 0:
        raise UserError(f"{folder}: holds no records")
    for shard in manifest.shards:
        check_shard(folder, shard, content=verify)
    try:
        return RecordSource(folder, manifest)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: a shard cannot be opened ({error})") from error
