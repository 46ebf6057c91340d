"""Prompts become word pieces. The vocabulary is `assets/vocab.txt` (`composer/vocabulary.py` made it).

B texts, N word pieces.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from melody_jax.errors import UserError

VOCABULARY_FILE = Path(__file__).parent / "assets" / "vocab.txt"


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


@lru_cache(maxsize=4)
def read_tokenizer(path: str, size: int | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face `tokenizer.json` (BERT's or RoBERTa's kind); "" is the packaged one.

    Raises:
        UserError: no such file, not a tokenizer, or not one of `size` pieces, which is what the text tower has.
    """
    if not path:
        found = tokenizer()
    elif not Path(path).is_file():
        raise UserError(f"{path}: no such file; a Hugging Face tokenizer.json is needed")
    else:
        try:
            found = Tokenizer.from_file(path)
        except Exception as error:  # the library has no class of its own
            raise UserError(f"{path}: not a tokenizer.json ({error})") from None
        found.no_padding()
        found.no_truncation()
    if size is not None and found.get_vocab_size() != size:
        raise UserError(
            f"{path or 'the packaged vocabulary'} has {found.get_vocab_size()} word pieces, the text tower {size}"
        )
    return found


def token_count(text: str, tokenizer: Tokenizer) -> int:
    """Word pieces of a text, those around it included: what must not exceed the encoder's `max_length`."""
    return len(tokenizer.encode(text).ids)


def tokenize(texts: Sequence[str], length: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Word-piece ids (B, N) int32 and mask (B, N) float32, padded with 0 or cut to N = `length` (the last is kept).

    Raises:
        UserError: `length` has no room for one word piece.
    """
    if length < 3:
        raise UserError(f"text length {length} leaves no room for a word: it must be at least 3")
    ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), np.float32)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        found = (
            encoding.ids if len(encoding.ids) <= length else [*encoding.ids[: length - 1], encoding.ids[-1]]
        )
        ids[row, : len(found)], mask[row, : len(found)] = found, 1.0
    return ids, mask
