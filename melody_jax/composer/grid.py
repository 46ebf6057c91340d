"""Rhythm patterns as text: one character per step, with "/" between bars.

A bar has 4 beats unless the pattern starts with a metre and "|" ("3/4|l.x.x."). "." is a rest; a digit is a hit with a
probability of that many tenths, drawn once per piece; the meaning of other characters depends on the part. Patterns in
4/4 are cut or extended to fit other metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import METRES


class Hit(NamedTuple):
    """A step that is not a rest: beats from the start of the bar, symbol, beats until the next hit."""

    offset: float
    symbol: str
    gap: float


@dataclass(frozen=True)
class Grid:
    """A compiled pattern: the hits of each bar of its cycle."""

    bars: tuple[tuple[Hit, ...], ...]

    def bar(self, index: int) -> tuple[Hit, ...]:
        """The hits of bar `index`, in a cycle."""
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
        moved = {
            int(offset) + thirds.get(offset % 1, offset % 1): symbol for offset, symbol in reversed(fitted)
        }
        fitted = sorted(moved.items())
    return fitted


def _with_gaps(bars: list[list[tuple[float, str]]], beats: float) -> Grid:
    total = beats * len(bars)
    flat = [
        (index * beats + offset, index, offset, symbol)
        for index, bar in enumerate(bars)
        for offset, symbol in bar
    ]
    result: list[list[Hit]] = [[] for _ in bars]
    for position, (absolute, index, offset, symbol) in enumerate(flat):
        following = flat[(position + 1) % len(flat)][0]
        result[index].append(Hit(offset, symbol, (following - absolute) % total or total))
    return Grid(tuple(tuple(bar) for bar in result))


def fitting(patterns: tuple[str, ...], metre: str) -> list[str]:
    """The patterns for a metre (12/8 can double those of 6/8), or else those of common time."""
    matching = [text for text in patterns if text.startswith(metre + "|")]
    if metre == "12/8" and not matching:
        halves = [text.removeprefix("6/8|") for text in patterns if text.startswith("6/8|")]
        matching = ["12/8|" + "/".join(bar + bar for bar in text.split("/")) for text in halves]
    return matching or [text for text in patterns if "|" not in text] or list(patterns)


def density(pattern: str) -> float:
    """Approximate onsets per bar: steps that are not rests, or four times the rate of a named pattern."""
    name, _, rate = pattern.partition(":")
    if rate.isdigit():
        return 4.0 * int(rate)
    if name in ("hold", "bar"):
        return 1.0
    body = pattern.rpartition("|")[2]
    return sum(0.5 if symbol.isdigit() else symbol != "." for symbol in body) / (body.count("/") + 1)


def leaning(patterns: Sequence[str], dice: Dice, lean: float) -> str:
    """Draws a pattern; high values of `lean` (-1..1) favour the denser of two draws, low values the sparser."""
    drawn = sorted((dice.among(patterns), dice.among(patterns)), key=density)
    if dice.chance(abs(lean)):
        return drawn[1] if lean > 0 else drawn[0]
    return dice.among(drawn)


def compile_grid(patterns: tuple[str, ...], metre: str, dice: Dice, lean: float = 0.0) -> Grid:
    """Draws one of the patterns that fit the metre, adapts it and draws its random hits."""
    text = leaning(fitting(patterns, metre), dice, lean)
    bars = _parse(text, dice)
    if not text.startswith(metre + "|"):
        bars = [_adapt(bar, metre) for bar in bars]
    return _with_gaps(bars, METRES[metre].beats)
