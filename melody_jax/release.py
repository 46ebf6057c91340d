"""Released networks: `<folder>/<name>.safetensors` and `<name>.json`, nothing pickled, float32 once loaded.

How a tensor is stored, by path and size:
  a float matrix of at least 4,096 numbers   int8, `<path>` and float32 scales `<path>:scale`; one scale an output
                                             channel (last axis), for `LOOKUP` tables one a row; leading axes
                                             (stacked blocks, convolution taps) have scales of their own
  gains, biases and small floats             float16 (float32 if their size asks for it)
  tensors named in `KEEP`                    the type said there
  a network in `DIFFERENCES`                 what is to be added to its base: matrices in 4 bits, two numbers a byte,
                                             with scales as above
The JSON holds the network's config, the hashes of the networks it was trained on, metrics, and the tensors' sha256.
Beside a MuLan whose text tower has another vocabulary than the packaged one lies its `mulan.tokenizer.json`.
"""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from tokenizers import Tokenizer

from melody_jax.config_json import from_dict, to_dict
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.text import read_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the releases that come with the package."""
FORMAT_VERSION = 1
TOKENIZER = "mulan.tokenizer.json"
NETWORKS = {
    "vae": ("vae", "VAEConfig"),
    "mulan": ("mulan", "MuLanConfig"),
    "tokenizer": ("tokenizer", "TokenizerConfig"),
    "lm": ("lm", "LMConfig"),
    "dpd": ("denoiser", "DenoiserConfig"),
    "dpd_distilled": ("denoiser", "DenoiserConfig"),
}
"""Name -> module in `models/`, and the class of its config; of "dpd" that of any backbone."""
DIFFERENCES = {"dpd_distilled": "dpd"}
"""Networks of which only the difference to another one, in the same folder, is stored; loading gives the sum."""
KEEP = {"codebook": "float16", "codebooks": "float16", "latent_mean": "float32", "latent_scale": "float32"}
LOOKUP = ("embedding", "table", "words", "positions", "prefix", "semantic")  # endings of their paths
SMALLEST_INT8 = 4096  # numbers; below it the scales and the error are not worth the bytes
_SCALE = ":scale"


def save_network(
    path: str | os.PathLike,
    name: str,
    params: Params,
    config: Any,
    hashes: dict[str, str],
    metrics: dict[str, float] | None = None,
    keep: dict[str, str] | None = None,
) -> Path:
    """Writes the network `name` into the folder `path` and returns the tensor file's path.

    `config` is the network's config dataclass, `hashes` maps each network it depends on to its sha256. `keep` maps
    the last part of a tensor's path to its stored type and replaces `KEEP`. Of a network in `DIFFERENCES`, `params` are
    what is added to its base, and what the base lacks.
    """
    folder = Path(path)
    tensors: dict[str, np.ndarray] = {}
    for tensor_name, value in flatten(params).items():
        bits = 4 if name in DIFFERENCES else 8
        tensors |= _store(tensor_name, np.asarray(value), KEEP if keep is None else keep, bits)
    data = safetensors.numpy.save(
        tensors, {"format": "melody_jax"}
    )  # several keys come out in a random order
    description = {
        "format_version": FORMAT_VERSION,
        "network": name,
        "config": to_dict(config),
        "hashes": hashes,
        "metrics": metrics or {},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.safetensors", data)
        _write(folder / f"{name}.json", (json.dumps(description, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder / f"{name}.safetensors"


def load_network(path: str | os.PathLike, name: str) -> tuple[Params, Any, dict[str, str]]:
    """(params, config, hashes) of a released network; params are float32 arrays in nested dicts.

    Raises:
        UserError: a file is missing, cut short, foreign, or of another format or network.
    """
    params, config, hashes = read_network(path, name)
    return jax.tree.map(jnp.asarray, params), config, hashes


def read_network(path: str | os.PathLike, name: str) -> tuple[Params, Any, dict[str, str]]:
    """As `load_network`, but NumPy arrays: for a caller that places them on devices itself."""
    folder = Path(path)
    description = read_description(folder, name)
    data = _read(folder / f"{name}.safetensors")
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise UserError(f"{folder / name}.safetensors: not the file that {name}.json describes, or cut short")
    try:
        stored = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{folder / name}.safetensors: not a safetensors file ({error})") from error
    values = {}
    for tensor_name, value in stored.items():
        if tensor_name.endswith(_SCALE):
            continue
        if tensor_name + _SCALE in stored:
            scale = stored[tensor_name + _SCALE]
            codes = (
                _unpack(value, scale.shape, _scaled_axis(tensor_name)) if value.dtype == np.uint8 else value
            )
            value = codes.astype(np.float32) * scale
        values[tensor_name] = value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value
    params = unflatten(values)
    if name in DIFFERENCES:
        params = add_difference(_read_base(folder, name, description["hashes"]), params)
    return params, from_dict(_config_class(name), description["config"]), description["hashes"]


def add_difference(base: Params, difference: Params) -> Params:
    """The network `base` with what a network of `DIFFERENCES` holds added; what `base` lacks is taken as it is."""
    sums, added = flatten(base), flatten(difference)
    return unflatten(
        sums | {path: sums[path] + value if path in sums else value for path, value in added.items()}
    )


def _read_base(folder: Path, name: str, hashes: dict[str, str]) -> Params:
    base = DIFFERENCES[name]
    if hashes.get(base) != network_hash(folder, base):
        raise UserError(
            f"{folder}: {name} was made from another {base} than the one here; take both from one release"
        )
    return read_network(folder, base)[0]


def save_tokenizer(path: str | os.PathLike, source: str, size: int) -> None:
    """Puts the tokenizer.json `source` beside the MuLan in folder `path`; "" is the packaged one, of no file.

    Raises:
        UserError: it is no tokenizer of `size` word pieces, or the folder cannot be written.
    """
    read_tokenizer(source, size)
    file = Path(path) / TOKENIZER
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if source:
            _write(file, Path(source).read_bytes())
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def save_card(path: str | os.PathLike, name: str, text: str) -> None:
    """Writes the model card `<name>.md`. Raises `UserError` if the folder cannot be written."""
    try:
        _write(Path(path) / f"{name}.md", text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def load_tokenizer(path: str | os.PathLike, size: int) -> Tokenizer:
    """The tokenizer of the MuLan in folder `path`. Raises `UserError` if it has not `size` word pieces."""
    file = Path(path) / TOKENIZER
    return read_tokenizer(str(file) if file.exists() else "", size)


def read_description(path: str | os.PathLike, name: str) -> dict[str, Any]:
    """What `<name>.json` says: format_version, network, config, hashes, metrics, sha256.

    Raises:
        UserError: the file is missing or does not describe this network.
    """
    file = Path(path) / f"{name}.json"
    try:
        description = json.loads(_read(file))
        version, network = description["format_version"], description["network"]
        hashes_ok = isinstance(description["hashes"], dict) and isinstance(description["config"], dict)
        complete = hashes_ok and isinstance(description["sha256"], str)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: not the description of a released network") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format {version} is not known, this version reads {FORMAT_VERSION}")
    if network != name or not complete:
        raise UserError(f"{file}: describes {network!r}, {name!r} is needed")
    return description


def network_hash(path: str | os.PathLike, name: str) -> str:
    """The sha256 of the network's tensor file: the name by which features and later networks refer to it."""
    return hashlib.sha256(_read(Path(path) / f"{name}.safetensors")).hexdigest()


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    nested: Params = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return nested


def _store(name: str, value: np.ndarray, keep: dict[str, str], bits: int) -> dict[str, np.ndarray]:
    last = name.split("/")[-1]
    if not np.issubdtype(value.dtype, np.floating):
        return {name: np.ascontiguousarray(value)}
    if last in keep:
        return {name: np.ascontiguousarray(value, keep[last])}
    if value.ndim < 2 or value.size < SMALLEST_INT8 or last.endswith(("scale", "bias")):
        small = float(np.max(np.abs(value), initial=0.0)) < float(np.finfo(np.float16).max)
        return {name: np.ascontiguousarray(value, np.float16 if small else np.float32)}
    bits = 8 if value.size % 2 else bits
    most, axis = 2 ** (bits - 1) - 1, _scaled_axis(name)
    scale = np.max(np.abs(value), axis=axis, keepdims=True).astype(np.float32) / most
    codes = np.rint(value / np.where(scale == 0, 1, scale)).astype(np.int8)
    stored = _pack(codes) if bits == 4 else np.ascontiguousarray(codes)
    return {name: stored, name + _SCALE: np.ascontiguousarray(scale)}


def _scaled_axis(name: str) -> int:
    """The axis along which numbers share a scale."""
    return -1 if name.split("/")[-1].endswith(LOOKUP) else -2


def _pack(codes: np.ndarray) -> np.ndarray:
    """Evenly many integers from -8 to 7 as bytes (N / 2,), the first of a pair in the low four bits."""
    low, high = (codes.reshape(-1, 2) & 15).astype(np.uint8).T
    return low | high << 4


def _unpack(packed: np.ndarray, scale_shape: tuple[int, ...], axis: int) -> np.ndarray:
    """What `_pack` packed, in its shape: that of its scales, longer along `axis`."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
    shape = list(scale_shape)
    shape[axis] = -1
    return ((pairs ^ 8) - 8).reshape(shape)


def _config_class(name: str) -> Any:
    if name not in NETWORKS:
        raise UserError(f"network {name!r} is unknown; there are {', '.join(NETWORKS)}")
    module, config = NETWORKS[name]
    return getattr(importlib.import_module(f"melody_jax.models.{module}"), config)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _write(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(file)
