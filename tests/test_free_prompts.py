"""The committed free-form prompts: every group is asked for, by known instruments, in words that the tower reads."""

import json
from collections import Counter
from pathlib import Path

from melody_jax import text
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.evaluation.composed_prompts import GROUPS, PROMPTS, read_prompts
from melody_jax.models import mulan

FREE_PROMPTS = PROMPTS.with_name("free_prompts.jsonl")


def test_they_cover_the_groups_in_other_words_than_the_composer() -> None:
    prompts = [json.loads(line) for line in Path(FREE_PROMPTS).read_text().splitlines()]
    assert len(prompts) == 60
    groups = Counter(prompt["group"] for prompt in prompts)
    assert set(groups) == {group.name for group in GROUPS}
    assert set(groups.values()) <= {3, 4}
    assert {name for prompt in prompts for name in prompt["instruments"]} <= set(INSTRUMENTS)
    texts = {prompt["text"] for prompt in prompts}
    assert len(texts) == 60
    assert not texts & {prompt.text for prompt in read_prompts(PROMPTS)}
    tokenizer = text.read_tokenizer("")
    for written in texts:
        assert text.token_count(written, tokenizer) <= mulan.MuLanConfig().text.max_length
        assert not text.unknown_words(written, tokenizer)[0]
