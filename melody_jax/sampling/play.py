"""Plays an exported sampler. Needs this folder, jax, flatbuffers, numpy, safetensors and tokenizers.

python play.py "a calm solo piano piece" --seed 0 --out song.wav
"""

import argparse
import json
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
parser.add_argument("--out", default="song.wav")
arguments = parser.parse_args()
if arguments.seed == -1:
    arguments.seed = secrets.randbelow(2**32)
    print(f"seed {arguments.seed}")

folder = Path(__file__).parent
jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # the second start is fast
description = json.loads((folder / "sampler.json").read_text())
platform = "cpu" if jax.default_backend() == "cpu" else "accelerator"
tensors = load_file(folder / "weights.safetensors")


def program(name):
    """The program as a function of its inputs."""
    serialized = (folder / description["programs"][name][platform]).read_bytes()
    exported = jax.export.deserialize(bytearray(serialized))
    networks = description["weights"][name]
    weights = {key: value for key, value in tensors.items() if key.split("/")[0] in networks}
    return lambda inputs: jax.jit(exported.call)(weights, inputs)


inputs = {
    name: np.full(entry["shape"], entry["default"], entry["dtype"])
    for name, entry in description["inputs"].items()
}
encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(arguments.prompt)
inputs["ids"][:] = encoding.ids
inputs["mask"][:] = encoding.attention_mask
seeds = [description["seed"] + arguments.seed + number for number in range(description["batch"])]
inputs["seeds"][:] = [divmod(seed % 2**64, 2**32) for seed in seeds]  # upper and lower half
window = program("sampler")(inputs)
clips = np.asarray(program("decoder")(window["latents"]))

for number, clip in enumerate(clips):
    path = Path(arguments.out)
    if len(clips) > 1:
        path = path.with_stem(f"{path.stem}-{number}")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(description["channels"])
        file.setsampwidth(2)
        file.setframerate(description["sample_rate"])
        file.writeframes((np.clip(clip, -1, 1) * 32767).astype("<i2").tobytes())
