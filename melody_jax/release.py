"""Released networks: `<folder>/<name>.safetensors` and `<name>.json`. Nothing is pickled; loaded arrays are float32.

The role of a parameter (roles.py) and its size decide how its tensor is stored:
  matrix, at least 4,096 numbers             int8, `<path>` and float32 scales `<path>:scale`: one scale per output
                                             channel (last axis), for embeddings one per row; leading axes (stacked
                                             blocks, convolution taps) have separate scales
  norm, bias, vector, codebook, small matrix float16 (float32 if a value exceeds float16)
  statistic                                  float32
  network in `DIFFERENCES`                   the difference to its base: matrices in 4 bits, two numbers per byte, with
                                             scales as above
The JSON holds the network's config, the hashes of the networks it was trained with, metrics, the sha256 of the
tensors, and its own. A network is loaded only if its tensors are those that its config describes.
`mulan.tokenizer.json` is written if the vocabulary of MuLan's text tower is not the packaged one.
A release may take networks from others (release_folder.py).
"""

import hashlib
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from ml_dtypes import bfloat16
from tokenizers import Tokenizer

from melody_jax import files, release_check
from melody_jax.config_json import from_dict, to_dict
from melody_jax.errors import UserError, first_line
from melody_jax.models.functional import Params
from melody_jax.release_folder import network_folder
from melody_jax.roles import Kind, Role, Roles, find_role
from melody_jax.runtime import check_devices
from melody_jax.tensor_file import parse_tensors
from melody_jax.text import read_tokenizer

FORMAT_VERSION = 1
TOKENIZER = "mulan.tokenizer.json"
NETWORKS = {
    "vae": ("vae", "VAEConfig"),
    "mulan": ("mulan", "MuLanConfig"),
    "tokenizer": ("tokenizer", "TokenizerConfig"),
    "lm": ("lm", "LMConfig"),
    "coarse": ("lm", "LMConfig"),
    "fine": ("lm", "LMConfig"),
    "dpd": ("denoiser", "DenoiserConfig"),
    "dpd_distilled": ("denoiser", "DenoiserConfig"),
    "generator": ("denoiser", "DenoiserConfig"),
    "upsampler": ("denoiser", "DenoiserConfig"),
    "latent_generator": ("denoiser", "DenoiserConfig"),
    "dmae": ("diffusion_codec", "DiffusionCodecConfig"),
    "tempo": ("tempo_head", "TempoHeadConfig"),
}
"""Name -> module in `models/` and class of its config, which for diffusions is the base class of all backbones."""
INDEPENDENT = {"lm": ("vae",), "fine": ("mulan", "tokenizer")}
"""Network -> networks that its features were made with, but that it has nothing from: others may take their place."""
DIFFERENCES = {"dpd_distilled": "dpd"}
"""Networks stored as the difference to another network in the same folder; loading returns the sum."""
SMALLEST_INT8 = 4096
"""Smallest number of values for int8: in smaller tensors, the scales and the error outweigh the bytes saved."""
UNSCALED: dict[Kind, str] = {
    "norm": "float16", "bias": "float16", "vector": "float16", "codebook": "float16", "tracked": "float16",
    "statistic": "float32",
}  # fmt: skip
"""Roles that are never stored as int8, and their type."""
MAY_LACK = {"mulan": ("music", "text", "music_mean", "text_mean", "codebooks")}
"""Network -> parts of it that a release may lack."""
MAX_BYTES = 1 << 36
"""Size of the largest file of tensors that is read."""
MAX_DESCRIPTION = 1 << 24
"""Size of the largest description that is read."""
DESCRIPTION_HASH = "description_sha256"
_SCALE = ":scale"


def save_network(
    path: str | os.PathLike,
    name: str,
    params: Params,
    config: Any,
    hashes: dict[str, str],
    metrics: dict[str, float] | None = None,
    roles: Roles | None = None,
) -> Path:
    """Writes the network `name` into the folder `path` and returns the path of the tensor file.

    `config` is the network's config dataclass, `hashes` maps each network it depends on to its sha256. `roles` are the
    roles of `params`, by default `network_roles`. For a network in `DIFFERENCES`, `params` are the differences to its
    base and the parameters that the base lacks.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(path)
    bits = 4 if name in DIFFERENCES else 8
    roles = network_roles(name, config) if roles is None else roles
    tensors: dict[str, np.ndarray] = {}
    for tensor_name, value in flatten(params).items():
        tensors |= _store(
            tensor_name, np.asarray(value), find_role(roles, tuple(tensor_name.split("/"))), bits
        )
    # one metadata key only: several would be written in a random order
    data = safetensors.numpy.save(tensors, {"format": "melody_jax"})
    description = {
        "format_version": FORMAT_VERSION,
        "network": name,
        "config": to_dict(config),
        "hashes": hashes,
        "metrics": metrics or {},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    description[DESCRIPTION_HASH] = _description_hash(json.loads(json.dumps(description)))
    files.make_folder(folder)
    files.write_bytes(folder / f"{name}.safetensors", data)
    files.write_bytes(folder / f"{name}.json", (json.dumps(description, indent=2) + "\n").encode())
    return folder / f"{name}.safetensors"


def load_network(path: str | os.PathLike, name: str) -> tuple[Params, Any, dict[str, str]]:
    """(params, config, hashes) of a released network; params are float32 arrays in nested dicts.

    Raises:
        UserError: there is no device; a file is missing, truncated, not a released network, or of another format
            version or network; the tensors are not those of a network with this config, or not finite.
    """
    check_devices()
    params, config, hashes = read_network(path, name)
    return jax.device_put(params), config, hashes


def read_network(path: str | os.PathLike, name: str) -> tuple[Params, Any, dict[str, str]]:
    """`load_network` with NumPy arrays, for callers that place them on devices themselves."""
    folder = network_folder(path, name)
    description = read_description(folder, name)
    place = f"{folder / name}.safetensors"
    data = files.read_bytes(place, MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise UserError(f"{place}: truncated, or not the file that {name}.json describes")
    config = _read_config(folder / f"{name}.json", name, description["config"])
    shapes = _network_shapes(folder / f"{name}.json", name, config)
    params = _decode(parse_tensors(data, place), name, config, place)
    if name in DIFFERENCES:
        base = _read_base(path, name, description["hashes"])
        if differ := [path for path in params if path in base and base[path].shape != params[path].shape]:
            raise UserError(f"{place}: {differ[0]} has another shape than in {DIFFERENCES[name]}")
        params = _add(base, params)
    if name == "tokenizer":
        shapes = release_check.without_later_blocks(shapes, params, config.encoder.layer)
    release_check.check_tensors(params, shapes, MAY_LACK.get(name, ()), place)
    return unflatten(params), config, description["hashes"]


def _read_config(file: Path, name: str, values: dict[str, Any]) -> Any:
    """The config of a network from its description. Raises `UserError` for values that no network has."""
    try:
        config = from_dict(_config_class(name), values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    release_check.check_numbers(config, str(file))
    return config


def _network_shapes(file: Path, name: str, config: Any) -> dict[str, Any]:
    """Path -> shape and type of every parameter. Raises `UserError` if there is no network with this config."""
    try:
        return flatten(_network_module(name).shapes(config))
    except Exception as error:  # Flax and JAX raise errors of all kinds
        reason = first_line(error)
        raise UserError(f"{file}: no network has this config ({reason})") from error


def _decode(stored: dict[str, np.ndarray], name: str, config: Any, place: str) -> dict[str, np.ndarray]:
    """Path -> float32 array of the tensors of a file; integers keep their type.

    Raises `UserError` if a scale does not fit its tensor.
    """
    packed = any(value.dtype == np.uint8 for value in stored.values())
    roles = network_roles(name, config) if packed else {}
    values = {}
    for path, value in stored.items():
        if path.endswith(_SCALE) and path.removesuffix(_SCALE) in stored:
            continue
        if path + _SCALE in stored:
            value = _scaled(
                value, stored[path + _SCALE], find_role(roles, tuple(path.split("/"))), f"{place}: {path}"
            )
        values[path] = value.astype(np.float32) if _is_float(value) else value
    return values


def _scaled(value: np.ndarray, scale: np.ndarray, role: Role | None, place: str) -> np.ndarray:
    """The float32 values of integers with one scale per row or column."""
    axis = _scaled_axis(role)
    try:
        codes = _unpack(value, scale.shape, axis) if value.dtype == np.uint8 else value
        fits = all(a in (1, b) for a, b in zip(scale.shape, codes.shape, strict=True))
    except (ValueError, IndexError):
        fits = False
    if not fits or codes.dtype != np.int8 or scale.dtype != np.float32:
        raise UserError(
            f"{place} is {value.dtype} {value.shape} with scales {scale.dtype} {scale.shape}, which do not fit"
        )
    return codes.astype(np.float32) * scale


def _is_float(value: np.ndarray) -> bool:
    return np.issubdtype(value.dtype, np.floating) or value.dtype == bfloat16


def network_roles(name: str, config: Any) -> Roles:
    """The role of every parameter of the network `name` with this config."""
    return _network_module(name).roles(config)


def needed(network: str, hashes: dict[str, str]) -> dict[str, str]:
    """Those of `hashes` (network -> sha256) that a network cannot do without (see `INDEPENDENT`)."""
    others = INDEPENDENT.get(network, ())
    return {name: digest for name, digest in hashes.items() if name not in others}


def add_difference(base: Params, difference: Params) -> Params:
    """The network `base` plus the tensors of a network in `DIFFERENCES`; tensors that `base` lacks are copied."""
    return unflatten(_add(flatten(base), flatten(difference)))


def _add(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    """`add_difference` of path -> array."""
    return base | {path: base[path] + value if path in base else value for path, value in difference.items()}


def _read_base(path: str | os.PathLike, name: str, hashes: dict[str, str]) -> dict[str, np.ndarray]:
    base = DIFFERENCES[name]
    if hashes.get(base) != network_hash(path, base):
        raise UserError(
            f"{path}: {name} was made from another {base} than the one here; use both from one release"
        )
    return flatten(read_network(path, base)[0])


def save_tokenizer(path: str | os.PathLike, source: str, size: int) -> None:
    """Copies the tokenizer.json `source` into the folder of a MuLan; "" is the packaged tokenizer and writes no file.

    Raises:
        UserError: it is not a tokenizer of `size` word pieces, or the folder cannot be written.
    """
    read_tokenizer(source, size)
    file = Path(path) / TOKENIZER
    files.make_folder(path)
    if source:
        files.write_bytes(file, files.read_bytes(source))
    else:
        file.unlink(missing_ok=True)


def save_card(path: str | os.PathLike, name: str, text: str) -> None:
    """Writes the model card `<name>.md`. Raises `UserError` if the folder cannot be written."""
    files.write_bytes(Path(path) / f"{name}.md", text.encode())


def load_tokenizer(path: str | os.PathLike, size: int) -> Tokenizer:
    """The tokenizer of the MuLan in folder `path`. Raises `UserError` unless it has `size` word pieces."""
    file = network_folder(path, "mulan") / TOKENIZER
    return read_tokenizer(str(file) if file.exists() else "", size)


def read_description(path: str | os.PathLike, name: str) -> dict[str, Any]:
    """The contents of `<name>.json`: format_version, network, config, hashes, metrics, sha256, description_sha256.

    Raises:
        UserError: the file is missing, does not describe this network, or was changed after it was written.
    """
    file = network_folder(path, name) / f"{name}.json"
    description = files.read_json(file, MAX_DESCRIPTION)
    types = {"config": dict, "hashes": dict, "metrics": dict, "sha256": str}
    if not isinstance(description, dict) or not description.keys() >= {"format_version", "network"}:
        raise UserError(f"{file}: not the description of a released network")
    version, network = description["format_version"], description["network"]
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format {version!r}; this version reads format {FORMAT_VERSION}")
    if network != name:
        raise UserError(f"{file}: describes network {network!r}; it must describe {name!r}")
    for field, kind in types.items():
        if not isinstance(description.get(field), kind):
            raise UserError(f"{file}: {field} is missing or no {'text' if kind is str else 'object'}")
    if not all(isinstance(digest, str) for digest in description["hashes"].values()):
        raise UserError(f"{file}: hashes must be texts")
    if DESCRIPTION_HASH in description and description[DESCRIPTION_HASH] != _description_hash(description):
        raise UserError(f"{file}: changed since it was written; take the file from the release again")
    return description


def _description_hash(description: dict[str, Any]) -> str:
    """The sha256 of a description without its own hash, of the same values in one form."""
    values = {name: value for name, value in description.items() if name != DESCRIPTION_HASH}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def network_hash(path: str | os.PathLike, name: str) -> str:
    """The sha256 of the network's tensor file, which identifies it in features and in networks trained on it."""
    return files.file_hash(network_folder(path, name) / f"{name}.safetensors")


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


def _store(name: str, value: np.ndarray, role: Role | None, bits: int) -> dict[str, np.ndarray]:
    """The tensors that store one parameter: its values and, if it is quantised, its scales."""
    if not np.issubdtype(value.dtype, np.floating):
        return {name: np.ascontiguousarray(value)}
    dtype = stored_type(value.shape, role)
    if dtype != "int8":
        if np.max(np.abs(value), initial=0.0) >= np.finfo(np.float16).max:
            dtype = "float32"
        return {name: np.ascontiguousarray(value, dtype)}
    bits = 8 if value.size % 2 else bits
    largest = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(value), axis=_scaled_axis(role), keepdims=True).astype(np.float32) / largest
    codes = np.rint(value / np.where(scale == 0, 1, scale)).astype(np.int8)
    stored = _pack(codes) if bits == 4 else np.ascontiguousarray(codes)
    return {name: stored, name + _SCALE: np.ascontiguousarray(scale)}


def stored_type(shape: tuple[int, ...], role: Role | None) -> str:
    """The type in which a release stores a float parameter whose values float16 can represent: "int8", "float16" or
    "float32"."""
    kind: Kind = "weight" if role is None else role.kind
    if kind in UNSCALED or len(shape) < 2 or math.prod(shape) < SMALLEST_INT8:
        return UNSCALED.get(kind, "float16")
    return "int8"


def _scaled_axis(role: Role | None) -> int:
    """The axis along which values share a scale."""
    return -1 if role is not None and role.kind == "embedding" else -2


def _pack(codes: np.ndarray) -> np.ndarray:
    """An even number N of integers from -8 to 7 as bytes (N / 2,), the first of a pair in the low four bits."""
    low, high = (codes.reshape(-1, 2) & 15).astype(np.uint8).T
    return low | high << 4


def _unpack(packed: np.ndarray, scale_shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The inverse of `_pack`. The shape is that of the scales, with the remaining length along `axis`."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
    shape = list(scale_shape)
    shape[axis] = -1
    return ((pairs ^ 8) - 8).reshape(shape)


def _network_module(name: str) -> Any:
    if name not in NETWORKS:
        raise UserError(f"network {name!r} is unknown; it must be one of {', '.join(NETWORKS)}")
    return importlib.import_module(f"melody_jax.models.{NETWORKS[name][0]}")


def _config_class(name: str) -> Any:
    return getattr(_network_module(name), NETWORKS[name][1])
