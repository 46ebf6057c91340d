"""Prepared music as a TensorFlow Datasets dataset, written and read without TensorFlow.

    builder = MelodyMusic(shards="corpus/train", data_dir="tfds")     # a folder of audio shards
    builder.download_and_prepare()                                    # writes tfds/melody_music/1.0.0
    tfds.data_source("melody_music", data_dir="tfds", split="train")  # random access, for Grain or PyTorch

`melody prepare --source tfds/melody_music/1.0.0` reads such a folder, and any TFDS dataset in ArrayRecord with a 1-D
tensor `audio` at 24 kHz and, optionally, `id` and `captions`. The `Audio` feature of TFDS needs TensorFlow, so `audio`
is an int16 tensor here. TFDS returns text as bytes.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from melody_jax import audio
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.data.layouts import Recording
from melody_jax.data.records import Concatenation, decode_json, open_shards
from melody_jax.errors import UserError, first_line

INFO = "dataset_info.json"


class MelodyMusic(tfds.core.GeneratorBasedBuilder):
    """Audio shards of `melody compose` or `melody prepare` as TFDS examples {audio, id, captions, meta}."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, shards: str | os.PathLike = "", split: str = "train", **options: Any) -> None:
        """Takes the folder of `shards` to write from (not needed for reading) and the `split` of their records."""
        self._shards = Path(shards)
        self._split = split
        super().__init__(**{"file_format": "array_record", **options})

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
            "id": tfds.features.Text(doc="unique name"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "meta": tfds.features.Text(doc="JSON: the meta of the audio record"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Music for melody_jax: mono, 24 kHz, 16 bits, whatever the shards hold.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        source = open_shards(self._shards, "audio")
        for i in range(len(source)):
            record = source[i]
            meta = decode_json(record["meta"])
            wave = audio.decode_flac_as(record["audio"].tobytes(), DEFAULT_FORMAT)
            example = {
                "audio": audio.to_int16(wave, meta["id"]),
                "id": meta["id"],
                "captions": list(meta.get("captions") or ()),
                "meta": record["meta"].tobytes(),
            }
            yield f"{i}", example


def recordings(folder: str | os.PathLike) -> list[Recording]:
    """Lists the examples in the folder of a TFDS dataset, with the splits in the order of their names.

    Raises:
        UserError: the dataset is not readable without TensorFlow, or has no 1-D `audio`.
    """
    examples = _examples(str(folder))
    return [_recording(str(folder), i, examples[i]) for i in range(len(examples))]


def read(folder: str, record: int) -> np.ndarray:
    """Reads the audio of one example, float32 (T,); integers are scaled to [-1, 1]."""
    wave = np.asarray(_examples(folder)[record]["audio"])
    scale = -float(np.iinfo(wave.dtype).min) if np.issubdtype(wave.dtype, np.integer) else 1.0
    return wave.astype(np.float32) / np.float32(scale)


@functools.lru_cache(maxsize=4)
def _examples(folder: str) -> Concatenation[Any]:
    """The examples of all splits, one split after the other."""
    try:
        builder: Any = tfds.builder_from_directory(folder)
        shape = builder.info.features["audio"].shape
        splits = builder.as_data_source()
        sources = [splits[name] for name in sorted(splits)]
    except (ImportError, NotImplementedError, ValueError, KeyError, RuntimeError, OSError) as error:
        reason = first_line(error)
        raise UserError(
            f"{folder}: not a TFDS dataset that can be read without TensorFlow ({reason})"
        ) from error
    if len(shape) != 1 or not sources:
        raise UserError(f"{folder}: its audio has the shape {shape}; it must be (None,), mono at 24 kHz")
    return Concatenation(sources)


def _recording(folder: str, i: int, example: dict[str, Any]) -> Recording:
    name = example.get("id")
    return Recording(
        id=_text(name) if name is not None else f"{i:07d}",
        path=folder,
        size=int(np.asarray(example["audio"]).nbytes),
        record=i,
        captions=tuple(_text(caption) for caption in example.get("captions", ())),
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
