"""Plays an exported sampler; needs only jax, flatbuffers, numpy, safetensors and tokenizers, and this folder.

python play.py "a calm solo piano piece" --seed 0 --out song.wav
"""

import argparse
import json
import wave
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="song.wav")
arguments = parser.parse_args()

folder = Path(__file__).parent
jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # the second start is fast
about = json.loads((folder / "sampler.json").read_text())
platform = "cpu" if jax.default_backend() == "cpu" else "accelerator"


def program(name):
    """The program as a function of its inputs."""
    exported = jax.export.deserialize(bytearray((folder / about["programs"][name][platform]).read_bytes()))
    weights = {key: value for key, value in tensors.items() if key.split("/")[0] in about["weights"][name]}
    return lambda inputs: jax.jit(exported.call)(weights, inputs)


tensors = load_file(folder / "weights.safetensors")
words = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(arguments.prompt)
inputs = {name: np.full(at["shape"], at["default"], at["dtype"]) for name, at in about["inputs"].items()}
inputs["ids"][:], inputs["mask"][:] = words.ids, words.attention_mask
inputs["seeds"] += arguments.seed + np.arange(about["batch"], dtype=np.int32)
made = program("sampler")(inputs)
sound = np.asarray(program("decoder")(made["latents"]))

for number, clip in enumerate(sound):
    path = (
        Path(arguments.out)
        if len(sound) == 1
        else Path(arguments.out).with_stem(f"{Path(arguments.out).stem}-{number}")
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(about["sample_rate"])
        file.writeframes((np.clip(clip, -1, 1) * 32767).astype("<i2").tobytes())
