"""The text vocabulary: MiniLM's WordPiece vocabulary pruned to what music prompts need.

`assets/vocab.txt` was made from the 30,522 entries of `all-MiniLM-L6-v2` (Apache-2.0, the vocabulary of
`bert-base-uncased`) by

    python -m melody_jax.composer.vocabulary PATH/TO/minilm/vocab.txt

It keeps, in the original order: the special tokens, every ASCII character alone and as a continuation, the numbers to
200 and the decades, every piece that the full vocabulary needs for the words of `music_words.txt` (genres, moods,
instruments, places, eras) and for the composer's captions, and then the most frequent entries (the original ids are
roughly ordered by frequency) up to `SIZE`. A text with only such pieces is tokenised as with the full vocabulary, since
both take the longest match; other words become shorter pieces, never an unknown token.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from melody_jax.composer import captions, compose
from melody_jax.errors import UserError, cli_entry
from melody_jax.text import VOCABULARY_FILE, tokenizer

SIZE = 7680
COMPOSED = 2000
"""Number of composed pieces with captions that the vocabulary covers."""
MUSIC_WORDS_FILE = Path(__file__).with_name("music_words.txt")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def prune(full: list[str], texts: Iterable[str], size: int = SIZE) -> list[str]:
    """Selects `size` entries of the vocabulary `full`, in its order, with all pieces of `texts`.

    Raises:
        UserError: `full` is not a BERT vocabulary, or more than `size` pieces are required.
    """
    rank = {token: i for i, token in enumerate(full)}
    if missing := [token for token in SPECIAL if token not in rank]:
        raise UserError(f"the vocabulary lacks {missing[0]}: a BERT-style WordPiece vocab.txt is needed")
    ascii_only = [
        t for t in full if t.isascii() and not (t.startswith("[") and t.endswith("]") and len(t) > 1)
    ]
    selected = set(SPECIAL) | {t for t in ascii_only if len(t.removeprefix("##")) == 1}
    selected |= {t for t in map(str, range(201)) if t in rank} | {
        f"{y}s" for y in range(1900, 2030, 10) if f"{y}s" in rank
    }
    full_tokenizer = tokenizer(tuple(full))
    selected |= {
        t for e in full_tokenizer.encode_batch(list(texts)) for t in e.tokens if t in rank and t.isascii()
    }
    if len(selected) > size:
        raise UserError(f"{len(selected)} pieces are required, more than the size of {size}")
    for token in ascii_only:
        if len(selected) == size:
            break
        selected.add(token)
    return sorted(selected, key=rank.__getitem__)


def main() -> None:
    """Writes the packaged vocabulary; the only argument is the path of MiniLM's `vocab.txt`."""
    if len(sys.argv) != 2:
        raise UserError("one argument is needed: the path of all-MiniLM-L6-v2's vocab.txt")
    words = MUSIC_WORDS_FILE.read_text(encoding="ascii").split()
    facts = [compose.compose(seed).facts for seed in range(COMPOSED)]
    caption_texts = [text for seed, fact in enumerate(facts) for text in captions.captions(fact, seed, 8)]
    full = [token for token in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n") if token]
    VOCABULARY_FILE.write_text("\n".join(prune(full, [*words, *caption_texts])) + "\n", encoding="ascii")


if __name__ == "__main__":
    cli_entry(main)()
