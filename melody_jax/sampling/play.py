"""Plays an exported sampler. Needs this folder, jax, flatbuffers, numpy, safetensors and tokenizers.

python play.py "a calm solo piano piece" --seed 0 --out song.wav
"""

import argparse
import contextlib
import io
import json
import os
import secrets
import wave
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--seed", type=int, default=0, help="added to the exported seed; -1 draws one")
parser.add_argument("--out", type=Path, default=Path("song.wav"), help="a .wav file in a folder that exists")
arguments = parser.parse_args()


def refuse(message):
    """Ends the program with one line."""
    parser.exit(2, f"error: {message}\n")


folder = Path(__file__).parent
description = json.loads((folder / "sampler.json").read_text())
out = arguments.out
if out.suffix.lower() != ".wav":
    refuse(f"{out}: the name must end in .wav")
if not os.access(out.parent, os.W_OK):
    refuse(f"{out}: the folder {out.parent} does not exist or cannot be written")
paths = [out]
if description["batch"] > 1:
    paths = [out.with_stem(f"{out.stem}-{number}") for number in range(description["batch"])]
encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(arguments.prompt)
if encoding.overflowing:
    refuse(f"the prompt has more than {len(encoding.ids) - 2} word pieces; shorten it")
if arguments.seed == -1:
    arguments.seed = secrets.randbelow(2**32)
    print(f"seed {arguments.seed}")

jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # the second start is fast
platform = "cpu" if jax.default_backend() == "cpu" else "accelerator"
tensors = load_file(folder / "weights.safetensors")


def program(name):
    """The program as a function of its inputs."""
    serialized = (folder / description["programs"][name][platform]).read_bytes()
    exported = jax.export.deserialize(bytearray(serialized))
    networks = description["weights"][name]
    weights = {key: value for key, value in tensors.items() if key.split("/")[0] in networks}
    return lambda inputs: jax.jit(exported.call)(weights, inputs)


def write(path, clip):
    """Writes a clip that appears under its name only when it is complete."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(description["channels"])
        file.setsampwidth(2)
        file.setframerate(description["sample_rate"])
        file.writeframes((np.clip(clip, -1, 1) * 32767).astype("<i2").tobytes())
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        refuse(f"{path}: cannot be written ({error.strerror})")


inputs = {
    name: np.full(entry["shape"], entry["default"], entry["dtype"])
    for name, entry in description["inputs"].items()
}
inputs["ids"][:] = encoding.ids
inputs["mask"][:] = encoding.attention_mask
seeds = [description["seed"] + arguments.seed + number for number in range(description["batch"])]
inputs["seeds"][:] = [divmod(seed % 2**64, 2**32) for seed in seeds]  # upper and lower half
window = program("sampler")(inputs)
clips = np.asarray(program("decoder")(window["latents"]))
for path, clip in zip(paths, clips, strict=True):
    write(path, clip)
