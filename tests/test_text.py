import jax
import numpy as np
import pytest

from melody_jax import text as prompts
from melody_jax.composer import vocabulary
from melody_jax.errors import UserError
from melody_jax.models import text_tower
from melody_jax.models.text_tower import TextConfig

TINY = TextConfig(layers=2, width=16, heads=2, ffn=32, max_length=16)


def test_packaged_vocabulary_fits_the_config():
    pieces = prompts.vocabulary()
    assert len(pieces) == len(set(pieces)) == TextConfig().vocab_size == vocabulary.SIZE
    assert pieces[:5] == vocabulary.SPECIAL
    assert all(piece.isascii() for piece in pieces)
    assert {
        *map(str, range(100)),
        *"abcdefghijklmnopqrstuvwxyz#&",
        "##a",
        "##9",
        "piano",
        "techno",
        "melancholy",
    } <= set(pieces)


def test_tokenize_lowers_strips_accents_and_pads():
    ids, mask = prompts.tokenize(["Café PIANO, 120 bpm", ""], 16, prompts.tokenizer())
    again, _ = prompts.tokenize(["cafe piano , 120 bpm"], 16, prompts.tokenizer())
    assert ids.shape == mask.shape == (2, 16)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0], again[0])
    np.testing.assert_array_equal(ids[1], [2, 3] + [0] * 14)
    assert mask.sum(1).tolist() == [prompts.token_count("Café PIANO, 120 bpm", prompts.tokenizer()), 2]


def test_rare_words_fall_into_pieces_and_long_texts_keep_their_end():
    ids, _ = prompts.tokenize(["floccinaucinihilipilification zymurgy"], 64, prompts.tokenizer())
    assert prompts.vocabulary().index("[UNK]") not in ids
    long, mask = prompts.tokenize(["piano " * 100], 8, prompts.tokenizer())
    assert prompts.token_count("piano " * 100, prompts.tokenizer()) == 102
    assert long[0, -1] == prompts.vocabulary().index("[SEP]")
    assert mask.sum() == 8
    with pytest.raises(UserError, match="at least 3"):
        prompts.tokenize(["piano"], 2, prompts.tokenizer())


def test_prune_keeps_order_needed_pieces_and_size():
    full = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "##a",
        "é",
        "the",
        "of",
        "##ab",
        "7",
        "banjo",
    ]
    pruned = vocabulary.prune(full, ["banjo"], 11)
    assert pruned == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "the", "of", "7", "banjo"]
    with pytest.raises(UserError, match="pieces are required"):
        vocabulary.prune(full, ["banjo"], 8)
    with pytest.raises(UserError, match=r"\[UNK\]"):
        vocabulary.prune(["[PAD]", "a"], [], 2)


def test_padding_and_neighbours_do_not_matter():
    params = jax.jit(lambda key: text_tower.init(TINY, key))(jax.random.key(0))
    ids, mask = prompts.tokenize(["slow piano", "fast techno with drums"], 16, prompts.tokenizer())
    together = text_tower.encode(params, TINY, ids, mask)
    alone = text_tower.encode(params, TINY, ids[:1, :6], mask[:1, :6])
    assert together.shape == (2, 16)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    with pytest.raises(UserError, match="at most 16"):
        text_tower.encode(params, TINY, np.zeros((1, 17), np.int32), np.ones((1, 17), np.float32))


def test_other_tokenizers_are_read_from_their_file(tmp_path):
    file = tmp_path / "tokenizer.json"
    short_tokenizer = prompts.tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "slow", "piano"))
    short_tokenizer.enable_truncation(3)
    short_tokenizer.save(str(file))
    short_tokenizer.no_truncation()
    ids, _ = prompts.tokenize(["Slow piano"], 6, prompts.read_tokenizer(str(file), 6))
    np.testing.assert_array_equal(ids[0], [2, 4, 5, 3, 0, 0])
    assert prompts.read_tokenizer("", 7680) is prompts.tokenizer()
    with pytest.raises(UserError, match=r"tokenizer.json has 6 word pieces, the text tower 7680"):
        prompts.read_tokenizer(str(file), 7680)
    with pytest.raises(UserError, match=r"none.json: no such file"):
        prompts.read_tokenizer(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad.json: not a tokenizer.json"):
        prompts.read_tokenizer(str(tmp_path / "bad.json"))
    with (tmp_path / "huge.json").open("wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(UserError, match=r"huge.json: 1099511627776 bytes, at most 67108864 are read"):
        prompts.read_tokenizer(str(tmp_path / "huge.json"))


@pytest.mark.parametrize(
    ("prompt", "words", "is_all"),
    [
        ("a slow waltz, 90 bpm", [], False),
        ("悲しいチェロ", ["悲", "しいチェロ"], True),
        ("Slow 悲 CELLO 悲", ["悲"], False),
        ("rock ’n’ roll — live", [], False),
        ("🎻🎻", ["🎻🎻"], True),
        ("A" * 300, ["A" * 300], True),
        ("\u200b", [], True),
    ],
)
def test_unknown_words(prompt: str, words: list[str], is_all: bool) -> None:
    assert prompts.unknown_words(prompt, prompts.tokenizer()) == (words, is_all)
