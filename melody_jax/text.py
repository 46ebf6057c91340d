"""Tokenisation of prompts into word pieces. `composer/vocabulary.py` made the vocabulary `assets/vocab.txt`.

B texts, N word pieces.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from melody_jax import files
from melody_jax.errors import UserError

VOCABULARY_FILE = Path(__file__).parent / "assets" / "vocab.txt"
MAX_BYTES = 1 << 26
"""Size of the largest `tokenizer.json` that is read."""


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Returns the packaged word pieces; the id of a piece is its index."""
    return tuple(VOCABULARY_FILE.read_text(encoding="ascii").split())


@lru_cache(maxsize=4)
def tokenizer(pieces: tuple[str, ...] | None = None) -> Tokenizer:
    """Returns a WordPiece tokenizer over `pieces` (default: the packaged vocabulary) that adds [CLS] and [SEP].

    It converts text to lower case and strips accents.
    """
    ids = {piece: i for i, piece in enumerate(vocabulary() if pieces is None else pieces)}
    wordpiece: Any = Tokenizer(
        WordPiece(ids, unk_token="[UNK]")
    )  # the stubs declare its properties read-only
    wordpiece.normalizer = BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = BertPreTokenizer()
    wordpiece.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return wordpiece


@lru_cache(maxsize=4)
def read_tokenizer(path: str, size: int | None = None) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face `tokenizer.json` (BERT or RoBERTa); "" is the packaged one.

    Raises:
        UserError: the file is missing, too large or not a tokenizer, or does not have the `size` pieces of the text
            tower.
    """
    loaded = _load_tokenizer(path) if path else tokenizer()
    if size is not None and loaded.get_vocab_size() != size:
        raise UserError(
            f"{path or 'the packaged vocabulary'} has {loaded.get_vocab_size()} word pieces, the text tower {size}"
        )
    return loaded


def _load_tokenizer(path: str) -> Tokenizer:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; a Hugging Face tokenizer.json is needed")
    content = files.read_bytes(path, MAX_BYTES)
    try:
        loaded = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain `Exception`
        raise UserError(f"{path}: not a tokenizer.json ({error})") from None
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


def unknown_words(text: str, tokenizer: Tokenizer) -> tuple[list[str], bool]:
    """The words of a text that the vocabulary cannot spell, each once, and whether no other word is left.

    The network sees such a word as the piece for unknown words, whatever it says. Punctuation is no word.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    spans = [span for piece, span in zip(encoding.ids, encoding.offsets, strict=True) if piece == unknown]
    words = dict.fromkeys(text[begin:end] for begin, end in spans)
    words = [word for word in words if any(unicodedata.category(letter)[0] != "P" for letter in word)]
    return words, len(spans) == len(encoding.ids)


def token_count(text: str, tokenizer: Tokenizer) -> int:
    """Number of word pieces of a text, including [CLS] and [SEP]; it must not exceed the encoder's `max_length`."""
    return len(tokenizer.encode(text).ids)


def tokenize(texts: Sequence[str], length: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns word-piece ids (B, N) int32 and mask (B, N) float32, padded with 0 or truncated to N = `length`.

    Truncation keeps the last piece, [SEP].

    Raises:
        UserError: `length` has no room for one word piece.
    """
    if length < 3:
        raise UserError(f"text length {length} leaves no room for a word: it must be at least 3")
    ids = np.zeros((len(texts), length), np.int32)
    mask = np.zeros((len(texts), length), np.float32)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        pieces = encoding.ids
        if len(pieces) > length:
            pieces = [*pieces[: length - 1], pieces[-1]]
        ids[row, : len(pieces)] = pieces
        mask[row, : len(pieces)] = 1.0
    return ids, mask
