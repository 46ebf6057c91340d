"""Rhythm patterns as text: one character a step, one string a bar, bars parted by "/".

A pattern spans 4 beats unless it starts with a metre and "|" ("3/4|l.x.x."). "." rests; a digit is a hit with that many
tenths of probability, decided once a piece; every other character is a symbol for the part that reads it. Patterns of
4/4 are cut or extended to fit other metres.
"""

from dataclasses import dataclass
from typing import NamedTuple

from melody_jax.data.composer.dice import Dice
from melody_jax.data.composer.form import METRES


class Hit(NamedTuple):
    """A step that sounds: beats from the bar's start, the pattern's symbol, beats until the next step that sounds."""

    offset: float
    symbol: str
    gap: float


@dataclass(frozen=True)
class Grid:
    """A pattern ready to play: the hits of each bar of its cycle."""

    bars: tuple[tuple[Hit, ...], ...]

    def bar(self, index: int) -> tuple[Hit, ...]:
        """The hits of the bar with the given number."""
        return self.bars[index % len(self.bars)]


def _resolve(symbol: str, dice: Dice) -> str:
    if symbol.isdigit():
        return "o" if dice.chance(int(symbol) / 10) else "."
    return symbol


def _parse(text: str, dice: Dice) -> list[list[tuple[float, str]]]:
    head, _, body = text.rpartition("|")
    beats = METRES[head or "4/4"].beats
    bars = []
    for bar in body.split("/"):
        step = beats / len(bar)
        symbols = ((index * step, _resolve(symbol, dice)) for index, symbol in enumerate(bar))
        bars.append([(offset, symbol) for offset, symbol in symbols if symbol != "."])
    return bars


def _adapt(bar: list[tuple[float, str]], metre: str) -> list[tuple[float, str]]:
    beats, compound = METRES[metre]
    fitted = [(offset, symbol) for offset, symbol in bar if offset < beats]
    if beats > 4:
        fitted += [(offset + beats - 4, symbol) for offset, symbol in bar if offset >= 8 - beats]
    if compound:
        thirds = {0.25: 1 / 3, 0.5: 2 / 3, 0.75: 2 / 3}
        moved = {int(offset) + thirds.get(offset % 1, offset % 1): symbol for offset, symbol in reversed(fitted)}
        fitted = sorted(moved.items())
    return fitted


def _with_gaps(bars: list[list[tuple[float, str]]], beats: float) -> Grid:
    total = beats * len(bars)
    flat = [(index * beats + offset, index, offset, symbol) for index, bar in enumerate(bars) for offset, symbol in bar]
    result: list[list[Hit]] = [[] for _ in bars]
    for position, (absolute, index, offset, symbol) in enumerate(flat):
        following = flat[(position + 1) % len(flat)][0]
        result[index].append(Hit(offset, symbol, (following - absolute) % total or total))
    return Grid(tuple(tuple(bar) for bar in result))


def compile_grid(patterns: tuple[str, ...], metre: str, dice: Dice) -> Grid:
    """Draws one of the patterns meant for the metre (else one of 4/4, adapted) and settles its chances."""
    tagged = [text for text in patterns if text.startswith(metre + "|")]
    plain = [text for text in patterns if "|" not in text]
    if metre == "12/8" and not tagged:
        tagged = [text.replace("6/8|", "") for text in patterns if text.startswith("6/8|")]
        text = dice.among(tagged) if tagged else dice.among(plain or patterns)
        if tagged:
            text = "12/8|" + "/".join(bar + bar for bar in text.split("/"))
            return _with_gaps(_parse(text, dice), 4)
        return _with_gaps([_adapt(bar, metre) for bar in _parse(text, dice)], 4)
    if tagged:
        return _with_gaps(_parse(dice.among(tagged), dice), METRES[metre].beats)
    bars = _parse(dice.among(plain or patterns), dice)
    return _with_gaps([_adapt(bar, metre) for bar in bars], METRES[metre].beats)
