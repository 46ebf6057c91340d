"""Released networks whose description or tensors were changed; the hashes agree with the changes, or do not."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.kind import Kind
from hostile.prompts import VALUES
from melody_jax import release
from melody_jax.models import lm, lm_config


@functools.cache
def valid_release() -> tuple[bytes, bytes]:
    """The description and the tensors of a tiny language model."""
    import tempfile

    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), lm.shapes(lm_config.TINY))
    with tempfile.TemporaryDirectory() as name:
        release.save_network(name, "lm", params, lm_config.TINY, {"mulan": "0" * 64})
        return Path(name, "lm.json").read_bytes(), Path(name, "lm.safetensors").read_bytes()


def _places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every value in nested dicts."""
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(place for name, child in inner for place in _places(child, (*path, name)))]


@st.composite
def _description(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A description with one to three values replaced, removed or added; without its own hash in half of the cases."""
    text, tensors = valid_release()
    description = json.loads(text)
    if draw(st.booleans()):
        del description[release.DESCRIPTION_HASH]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(description)[1:]))
        parent = functools.reduce(lambda node, name: node[name], place[:-1], description)
        change = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if change == "remove":
            parent.pop(place[-1], None)
        else:
            parent[place[-1] if change == "replace" else "x"] = draw(st.one_of(VALUES, st.integers(-9, 2000)))
    return json.dumps(description).encode("utf-8", "surrogatepass"), tensors


@st.composite
def _bytes(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Changed bytes of the description, or of the tensors with a description whose hash agrees."""
    text, tensors = valid_release()
    if draw(st.booleans()):
        return draw(mutated(text, len(text))), tensors
    tensors = draw(mutated(tensors, 2000))
    description = json.loads(text) | {"sha256": hashlib.sha256(tensors).hexdigest()}
    del description[release.DESCRIPTION_HASH]
    return json.dumps(description).encode(), tensors


def load(files: tuple[bytes, bytes], folder: Path) -> None:
    """Loads a release; what is accepted has the tensors of its config, finite and in float32."""
    Path(folder, "lm.json").write_bytes(files[0])
    Path(folder, "lm.safetensors").write_bytes(files[1])
    params, config, hashes = release.load_network(folder, "lm")
    shapes = release.flatten(lm.shapes(config))
    values = release.flatten(params)
    assert {path: value.shape for path, value in values.items()} == {
        p: leaf.shape for p, leaf in shapes.items()
    }
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in values.values())
    assert all(isinstance(digest, str) for digest in hashes.values())


KINDS = {
    "release, description": Kind(strategy=_description, run=load),
    "release, bytes": Kind(strategy=_bytes, run=load),
}
