"""The plan of a piece, made before any note is written: genre, mood, key, tempo, lead, themes and sections."""

import math
from dataclasses import dataclass

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import METRES, Frame, Passage, Span
from melody_jax.composer.genres import FORMS, GENRES, Genre
from melody_jax.composer.harmony import Progression, draw_progression
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.melody import MelodyStyle, Motif, draw_motif, draw_scheme
from melody_jax.composer.moods import MOODS, Mood
from melody_jax.composer.splits import stable_hash
from melody_jax.composer.theory import MINOR_MODES, MODES, Chord
from melody_jax.control_tokens import KEYS
from melody_jax.errors import UserError

_STREAM_CAST = 1
_STREAM_THEMES = 2
_STREAM_FORM = 3
_STREAM_GENRE = 4
_OTHER_MOODS = 0.12


@dataclass(frozen=True)
class Theme:
    """Material of a section: chords, their lengths in beats, motifs, and the scheme that arranges the motifs."""

    progression: Progression
    lengths: tuple[float, ...]
    motifs: tuple[Motif, ...]
    scheme: str
    style: MelodyStyle


@dataclass(frozen=True)
class Plan:
    """The decisions about a piece. `passages` cover its length; `steady` is false with rubato."""

    seed: int
    streams: tuple[int, ...]
    seconds: float
    genre: Genre
    frame: Frame
    lead: str
    themes: tuple[Theme, ...]
    passages: tuple[Passage, ...]
    steady: bool

    def dice(self, stream: int) -> Dice:
        """The random stream for one purpose."""
        return Dice(*self.streams, stream)


def _check(kind: str, value: str | None, options: list[str]) -> None:
    if value is not None and value not in options:
        raise UserError(f"{kind} {value!r} is unknown: use one of {', '.join(options)}")


def _choose_genre(
    dice: Dice, lead: str | None, tempo: float | None, metre: str | None, mode: str | None
) -> Genre:
    """Draws a genre that fits the requests; if no genre fits all, the last requests are dropped."""
    tests = []
    if lead is not None:
        tests.append(lambda genre: lead in genre.leads)
    if tempo is not None:
        tests.append(lambda genre: genre.tempo[0] - 2 <= tempo <= genre.tempo[1] + 2)
    if metre is not None:
        tests.append(lambda genre: metre in genre.metres)
    if mode is not None:
        tests.append(lambda genre: mode in genre.modes)
    for count in range(len(tests), -1, -1):
        fitting = [genre for genre in GENRES.values() if all(test(genre) for test in tests[:count])]
        if fitting:
            return GENRES[
                dice.pick({genre.name: 0.4 + genre.leads.get(lead or "", 1.0) for genre in fitting})
            ]
    raise AssertionError("every genre fits an empty list of requests")


def _choose_tempo(dice: Dice, genre: Genre, mood: Mood, compound: bool) -> float:
    low, high = genre.tempo
    if compound and high > 120:
        high = 0.5 * (max(low, 60) + high)
    position = 0.5 + 0.33 * mood.tempo + 0.24 * dice.bell()
    return float(round(low + (high - low) * min(max(position, 0.0), 1.0)))


def _frame(dice: Dice, genre: Genre, mood: Mood, requests: dict) -> Frame:
    metre = requests["metre"] or dice.pick(genre.metres)
    modes = {mode: weight * mood.modes.get(mode, 1.0) for mode, weight in genre.modes.items()}
    mode = requests["mode"] or dice.pick(modes)
    tempo = requests["tempo"] or _choose_tempo(dice, genre, mood, METRES[metre].compound)
    tonic = KEYS.index(requests["key"]) if requests["key"] else dice.integer(0, 11)
    swing = 0.0 if METRES[metre].compound else dice.between(*genre.swing)
    return Frame(tonic=tonic, mode=mode, metre=metre, tempo=float(tempo), mood=mood, swing=round(swing, 3))


def _lengths(metre: str, slots: int, per_bar: float) -> tuple[float, ...]:
    """Beats of each chord; in bars that do not halve, the longer chord comes first."""
    beats = METRES[metre].beats
    halves = {"3/4": (2.0, 1.0), "5/4": (3.0, 2.0), "7/8": (2.0, 1.5)}.get(metre, (beats / 2, beats / 2))
    if per_bar <= 1:
        return (beats / per_bar,) * slots
    if per_bar == 2 or beats != 4:
        return tuple(halves[index % 2] for index in range(slots))
    return (beats / per_bar,) * slots


def _theme(
    dice: Dice, split: str, genre: Genre, frame: Frame, style: MelodyStyle, first: Theme | None
) -> Theme:
    if first is not None and (12 in genre.cycle or dice.chance(0.25)):
        progression = first.progression
        lengths = first.lengths
    else:
        cycle = dice.pick(genre.cycle)
        per_bar = dice.pick(genre.chords_per_bar)
        per_bar = min(per_bar, 2.0) if METRES[frame.metre].beats != 4 or frame.compound else per_bar
        slots = max(1, round(cycle * per_bar))
        grammar = dice.pick(genre.grammars)
        progression = draw_progression(
            dice, split, grammar, frame.mode, slots, genre.colours, genre.inversions, frame.mood.dissonance
        )
        lengths = _lengths(frame.metre, slots, per_bar)
    if first is not None and dice.chance(0.25):
        motifs = (first.motifs[1], draw_motif(dice, split, frame, style))
    else:
        motifs = (draw_motif(dice, split, frame, style), draw_motif(dice, split, frame, style))
    return Theme(progression, lengths, motifs, draw_scheme(dice, style), style)


def _spans(theme: Theme, start: float, length: float, skip: float) -> tuple[Span, ...]:
    """The chords of a theme for `length` beats, beginning `skip` beats into its cycle."""
    total = sum(theme.lengths)
    position = 0.0
    index = 0
    skip %= total
    while position + theme.lengths[index] <= skip + 1e-6:
        position += theme.lengths[index]
        index += 1
    beat = start - (skip - position)
    spans = []
    while beat < start + length - 1e-6:
        count = theme.lengths[index]
        spans.append(Span(max(beat, start), min(beat + count, start + length), theme.progression[index]))
        beat += count
        index = (index + 1) % len(theme.progression)
    return tuple(spans)


def _cadence(
    spans: tuple[Span, ...], close: float, mode: str, grammar_colours: dict[str, float]
) -> tuple[Span, ...]:
    """Replaces the chords of the last bar, from beat `close`, by the tonic, preceded by a leading chord."""
    end = spans[-1].end
    before = [
        Span(span.start, min(span.end, close), span.chord) for span in spans if span.start < close - 1e-6
    ]
    power = set(grammar_colours) == {"power"}
    tonic = Chord(0, "5" if power else "m" if mode in MINOR_MODES else "", 0)
    if before and before[-1].chord.root == 0:
        lead_in = (
            Chord(10, "5", 10) if power else Chord(7, "" if mode in ("major", "minor", "lydian") else "m", 7)
        )
        if mode in ("mixolydian", "dorian", "phrygian") and not power:
            lead_in = Chord(10, "m" if mode == "phrygian" else "", 10)
        half = max(before[-1].start, close - 2.0)
        if half > before[-1].start:
            before[-1:] = [Span(before[-1].start, half, before[-1].chord), Span(half, close, lead_in)]
        elif len(before) > 1:
            before[-1] = Span(before[-1].start, close, lead_in)
    return (*before, Span(close, end, tonic))


def _section_bars(dice: Dice, bar_seconds: float) -> int:
    target = dice.between(7.5, 12.0) / bar_seconds
    return min((2, 4, 8), key=lambda bars: abs(math.log(bars / target)))


def _passages(
    dice: Dice, genre: Genre, frame: Frame, themes: tuple[Theme, ...], seconds: float
) -> tuple[Passage, ...]:
    bar_seconds = frame.beats * 60.0 / frame.tempo
    exact = seconds / bar_seconds
    ends = dice.chance(genre.endings) and exact >= 3
    total = max(1, math.floor(exact) if ends and exact % 1 < 0.5 else math.ceil(exact - 1e-6))
    form = FORMS[dice.pick(genre.forms)]
    step = 0 if dice.chance(0.55) else dice.integer(0, len(form) - 1)
    length = _section_bars(dice, bar_seconds)
    passages: list[Passage] = []
    bar = 0
    played = [0] * len(themes)
    while bar < total:
        name, energy, theme = form[step % len(form)]
        theme %= len(themes)
        bars = length if name not in ("intro", "break", "breakdown", "build") else max(2, length // 2)
        bars = total - bar if total - bar < bars + max(1, bars // 2) else bars
        start = bar * frame.beats
        last = bar + bars >= total
        done = max(played) if 12 in genre.cycle else played[theme]
        spans = _spans(themes[theme], start, bars * frame.beats, done * frame.beats)
        played[theme] = done + bars
        if last and ends:
            spans = _cadence(spans, start + (bars - 1) * frame.beats, frame.mode, genre.colours)
        level = min(max(energy + 0.15 * frame.mood.arousal + 0.04 * dice.bell(), 0.1), 1.0)
        passages.append(Passage(name, start, bars, frame.beats, level, theme, spans, done, last and ends))
        bar += bars
        step += 1
    return tuple(passages)


def make_plan(
    seed: int, seconds: float, split: str, split_number: int, genre: str | None, **requests
) -> Plan:
    """Plans a piece. `requests` are mood, tempo, lead, key, mode and metre, each None if it is free.

    Raises:
        UserError: an unknown name, or a tempo, length or seed out of range.
    """
    _check("genre", genre, list(GENRES))
    _check("mood", requests["mood"], list(MOODS))
    _check("lead", requests["lead"], [name for name in INSTRUMENTS if name != "drums"])
    _check("key", requests["key"], list(KEYS))
    _check("mode", requests["mode"], list(MODES))
    _check("metre", requests["metre"], list(METRES))
    if requests["tempo"] is not None and not 30 <= requests["tempo"] <= 240:
        raise UserError(f"tempo {requests['tempo']} is out of range: use 30 to 240 beats per minute")
    if not 1 <= seconds <= 3600:
        raise UserError(f"seconds {seconds} is out of range: use 1 to 3600")
    if seed < 0:
        raise UserError(f"seed {seed} is negative: use 0 or more")
    dice = Dice(seed, split_number, _STREAM_GENRE)
    style = (
        GENRES[genre]
        if genre
        else _choose_genre(dice, requests["lead"], requests["tempo"], requests["metre"], requests["mode"])
    )
    streams = (seed, split_number, stable_hash(style.name))
    dice = Dice(*streams, _STREAM_CAST)
    moods = {name: style.moods.get(name, _OTHER_MOODS) for name in MOODS}
    mood = MOODS[requests["mood"] or dice.pick(moods)]
    frame = _frame(dice, style, mood, requests)
    lead = requests["lead"] or dice.pick(style.leads)
    steady = dice.chance(style.steady)
    dice = Dice(*streams, _STREAM_THEMES)
    melody = dice.among(style.melodies)
    first = _theme(dice, split, style, frame, melody, None)
    themes = (first, *(_theme(dice, split, style, frame, melody, first) for _ in range(2)))
    dice = Dice(*streams, _STREAM_FORM)
    passages = _passages(dice, style, frame, themes, seconds)
    used = 1 + max(passage.theme for passage in passages)
    return Plan(seed, streams, seconds, style, frame, lead, themes[:used], passages, steady)
