"""ArrayRecord shards of records; a record is a dict of arrays, encoded as safetensors bytes.

A folder of shards holds `<name>-00000-of-00012.array_record` files and a `manifest.json` that lists every finished
shard with its count of records, size and sha256. Shards and manifest are written under another name and renamed, so
that a file is whole or not there. Records are stored one a group and uncompressed: FLAC and float16 do not shrink, and
random reads are several times faster.

Audio record: `audio` uint8 (FLAC bytes), `meta` uint8 (JSON: id, facts, captions).
Feature record: `meta`, `latents` float16 (L, D), `semantic_tokens` int16 (U,), `prefix_tokens` int16 (W, V, 12) for W
windows and V variants (0 clean, others jittered), `window_starts` int32 (W,) in tokens, `text_prefix_tokens` int16
(C, 12).
"""

import contextlib
import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsIndex

import numpy as np
import safetensors
import safetensors.numpy

from melody_jax.errors import UserError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished shard: file name, number of records, size in bytes, sha256 of the file."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    `settings` made it (compared on resume), `versions` are those of the packages at work, `shard_count` is the number
    of shards there will be, `shards` those that are finished, `counts` what `melody prepare` found, kept and refused.
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
        """True once every shard is there."""
        return len(self.shards) == self.shard_count


def encode_record(fields: Mapping[str, np.ndarray]) -> bytes:
    """Encodes a dict of arrays; the same arrays always give the same bytes."""
    return safetensors.numpy.save({name: np.ascontiguousarray(fields[name]) for name in sorted(fields)})


def decode_record(data: bytes) -> dict[str, np.ndarray]:
    """Decodes `encode_record`'s bytes. Raises `UserError` for bytes that are anything else."""
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"a record of {len(data)} bytes is not safetensors ({error})") from error


def encode_json(value: Any) -> np.ndarray:
    """JSON as uint8 (N,), the form of a record's `meta`."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)


def decode_json(array: np.ndarray) -> Any:
    """The value behind `encode_json`'s bytes."""
    try:
        return json.loads(np.asarray(array, np.uint8).tobytes())
    except ValueError as error:
        raise UserError(f"a record's meta is not JSON ({error})") from error


def shard_name(prefix: str, index: int, count: int) -> str:
    """The file name of shard `index` of `count`."""
    return f"{prefix}-{index:05d}-of-{count:05d}.array_record"


def write_shard(path: str | os.PathLike, records: Iterable[Mapping[str, np.ndarray]]) -> Shard:
    """Writes records (dicts of arrays) to the shard `path`, which appears only when it is whole.

    If `records` raises, nothing is left behind. Raises `UserError` if the folder cannot be written.
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
                name=path.name, records=count, bytes=temporary.stat().st_size, sha256=file_hash(temporary)
            )
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def read_shard(path: str | os.PathLike) -> Iterator[dict[str, np.ndarray]]:
    """The decoded records of one shard in their order. Raises `UserError` for a file that is missing or damaged."""
    try:
        reader = _array_record("array_record_module").ArrayRecordReader(str(path))
        for i in range(reader.num_records()):
            yield decode_record(reader.read([i])[0])
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: the shard is missing or damaged ({error})") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """ArrayRecord reports a full disk or a missing folder as RuntimeError; what makes the records may raise its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def write_manifest(folder: str | os.PathLike, manifest: Manifest) -> None:
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
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(Path(folder) / MANIFEST, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that appears only when it is whole. Raises `UserError` if the folder cannot be written."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """Reads `manifest.json`. Raises `UserError` if the folder has none, or one of another format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: not a folder of shards, it has no {MANIFEST}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT_VERSION:
            raise UserError(f"{path}: format {content['format']} is not known, only {FORMAT_VERSION}")
        return Manifest(
            kind=content["kind"],
            settings=content["settings"],
            versions=content["versions"],
            shard_count=content["shard_count"],
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            counts=content.get("counts", {}),
        )
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of shards ({type(error).__name__}: {error})") from error


def check_shard(folder: str | os.PathLike, shard: Shard, content: bool = False) -> None:
    """Raises `UserError` unless the shard's file is there with the right size, and hash if `content` is true."""
    path = Path(folder) / shard.name
    if not path.is_file():
        raise UserError(f"{path}: the manifest lists this shard, but it is missing")
    if path.stat().st_size != shard.bytes:
        raise UserError(f"{path}: cut short or foreign, {path.stat().st_size} of {shard.bytes} bytes")
    if content and file_hash(path) != shard.sha256:
        raise UserError(f"{path}: its sha256 is not the manifest's: the file is damaged")


def file_hash(path: str | os.PathLike) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _array_record(module: str) -> ModuleType:
    """ArrayRecord is an extra: reading or writing shards needs it, sampling does not."""
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise UserError('shards need the package array_record: pip install "melody_jax[train]"') from error


class RecordSource:
    """Random access to the decoded records of a folder of shards, in shard order; picklable, for `grain.MapDataset`.

    `len(source)` is the number of records, `source[i]` a dict of arrays, `source.manifest` what the folder says of it.
    """

    def __init__(self, folder: Path, manifest: Manifest):
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
        """Several records at once, read in parallel."""
        try:
            return [
                decode_record(data) for data in self._source.__getitems__([int(index) for index in indices])
            ]
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.folder}: a shard is damaged ({error})") from error

    def __repr__(self) -> str:
        return f"RecordSource({str(self.folder)!r}, {len(self)} records)"


@dataclass(frozen=True)
class _WholeShard:
    """A file of which all records are read: the four fields by which ArrayRecord need not open it to count them."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def open_shards(folder: str | os.PathLike, kind: str | None = None, verify: bool = False) -> RecordSource:
    """Opens every record of a finished folder of shards.

    `kind` is what the manifest must say ("audio", "features"); `verify` compares every file's sha256.
    Raises `UserError` for a folder that is missing, unfinished, empty or of another kind, and for shards that are
    missing, cut short or foreign.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards")
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
