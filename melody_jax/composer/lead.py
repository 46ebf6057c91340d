"""The lead part and its counter line: thirds, octaves, guide tones, imitation or answers."""

from itertools import pairwise

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import Passage
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.melody import Singer
from melody_jax.composer.piece import Note
from melody_jax.composer.plan import Plan
from melody_jax.composer.theory import chord_scale, ladder, nearest

_RESTING = ("intro", "build")
_WIDE = ("keys", "plucked", "organ")


def register(instrument: str, shift: float) -> float:
    """The central pitch of a melody: slightly above the middle of the range; for wide ranges, above middle C."""
    player = INSTRUMENTS[instrument]
    middle = (player.low + player.high) / 2 + 2
    if player.high - player.low > 45:
        middle = 70.0
    if player.family == "guitar":
        middle = 68.0
    return min(max(middle, 50.0), 77.0) + shift


def sing(plan: Plan, dice: Dice) -> list[Note]:
    """The lead part of the piece; in genres with side-chain ducking, it can rest in intros and builds."""
    player = INSTRUMENTS[plan.lead]
    shift = plan.genre.lead_register + 0.7 * plan.frame.mood.register + 1.5 * dice.bell()
    rests = plan.genre.sidechain > 0.3 and dice.chance(0.25)
    full = player.family in _WIDE and dice.chance(0.35)
    singers: dict[int, Singer] = {}
    notes: list[Note] = []
    for passage in plan.passages:
        theme = plan.themes[passage.theme]
        singer = singers.get(passage.theme)
        if singer is None:
            lift = 2.0 if passage.energy > 0.8 else 0.0
            centre = register(plan.lead, shift + lift)
            singer = Singer(dice, plan.frame, theme.style, max(player.low, 40), player.high, centre)
            singers[passage.theme] = singer
        if rests and passage.name in _RESTING and len(plan.passages) > 2:
            continue
        line = singer.phrase(passage, theme.motifs, theme.scheme)
        if full and passage.energy > 0.5:
            line += _below(plan, passage, line, player.low)
        notes += line
    return notes


def _below(plan: Plan, passage: Passage, line: list[Note], low: int) -> list[Note]:
    """A second voice below the longer notes of a melody on keyboards or harps."""
    added = []
    for note in line:
        if note.duration < 0.45:
            continue
        rungs = ladder(
            plan.frame.tonic, tuple(sorted(passage.span_at(note.start).chord.tones)), max(low, 48), 100
        )
        under = [rung for rung in rungs if 3 <= note.pitch - rung <= 9]
        if under:
            added.append(note._replace(pitch=under[-1], velocity=max(20, note.velocity - 12)))
    return added


def _passage_at(plan: Plan, beat: float) -> Passage:
    for passage in reversed(plan.passages):
        if beat >= passage.start - 1e-6:
            return passage
    return plan.passages[0]


def accompany(plan: Plan, dice: Dice, kind: str, melody: list[Note], instrument: str) -> list[Note]:
    """The counter line of a kind (octave, unison, thirds, guide, imitation or answer) for the written melody."""
    if kind in ("octave", "unison"):
        shift = -12 if kind == "octave" else 0
        return [
            note._replace(pitch=note.pitch + shift, velocity=max(20, note.velocity - 10)) for note in melody
        ]
    if kind == "thirds":
        return [_third(plan, note) for note in melody if note.duration > 0.2]
    if kind == "guide":
        return _guide(plan, instrument)
    if kind == "imitation":
        return _imitation(plan, dice, instrument)
    return _answers(plan, dice, melody, instrument)


def _third(plan: Plan, note: Note) -> Note:
    """The harmony note below a melody note: a chord tone if one is near, otherwise a third below in the scale."""
    chord = _passage_at(plan, note.start).span_at(note.start).chord
    tones = ladder(plan.frame.tonic, tuple(sorted(chord.tones)), 36, 100)
    under = [rung for rung in tones if 3 <= note.pitch - rung <= 6]
    if not under:
        scale = ladder(plan.frame.tonic, chord_scale(plan.frame.scale, chord), 36, 100)
        under = [rung for rung in scale if 3 <= note.pitch - rung <= 5] or [note.pitch - 12]
    return note._replace(pitch=under[-1], velocity=max(20, note.velocity - 10))


def _guide(plan: Plan, instrument: str) -> list[Note]:
    """A tenor line: one chord tone per chord, with the smallest movement."""
    player = INSTRUMENTS[instrument]
    low = max(player.low, 45)
    high = min(player.high, 79)
    last = min(max(60.0, low + 4), high - 4)
    notes = []
    for passage in plan.passages:
        for span in passage.spans:
            tones = span.chord.tones[1:4] if len(span.chord.tones) > 2 else span.chord.tones
            last = nearest(last + 0.3, ladder(plan.frame.tonic, tuple(sorted(tones)), low, high))
            loud = int(64 + 20 * passage.energy + 0.5 * plan.frame.mood.velocity)
            notes.append(Note(span.start, (span.end - span.start) * 0.98, last, loud))
    return notes


def _imitation(plan: Plan, dice: Dice, instrument: str) -> list[Note]:
    """A contrapuntal voice: the motifs of the lead, one bar later and lower."""
    player = INSTRUMENTS[instrument]
    notes: list[Note] = []
    for passage in plan.passages:
        theme = plan.themes[passage.theme]
        singer = Singer(
            dice, plan.frame, theme.style, max(player.low, 43), min(player.high, 84), register(instrument, -7)
        )
        scheme = theme.scheme[-1] + theme.scheme[:-1]
        line = singer.phrase(passage, theme.motifs, scheme)
        notes += [note._replace(velocity=max(20, note.velocity - 10)) for note in line]
    return notes


def _answers(plan: Plan, dice: Dice, melody: list[Note], instrument: str) -> list[Note]:
    """Short replies during rests and long notes of the melody."""
    player = INSTRUMENTS[instrument]
    low = max(player.low, 45)
    high = min(player.high, 90)
    notes: list[Note] = []
    for note, following in pairwise(melody):
        gap = following.start - note.start
        if gap < 2.0:
            continue
        theme = plan.themes[_passage_at(plan, note.start).theme]
        motif = theme.motifs[1]
        begin = note.start + max(1.0, gap - plan.frame.beats / 2 - 0.5)
        passage = _passage_at(plan, begin)
        chord = passage.span_at(begin).chord
        scale = ladder(plan.frame.tonic, chord_scale(plan.frame.scale, chord), low, high)
        tones = ladder(plan.frame.tonic, tuple(sorted(chord.tones)), low, high)
        anchor = scale.index(nearest(nearest(note.pitch - 4, tones), scale))
        for onset, step in zip(motif.onsets, motif.contour, strict=True):
            beat = begin + onset - motif.onsets[0]
            if beat > following.start - 0.3:
                break
            pitch = scale[min(max(anchor + step, 0), len(scale) - 1)]
            notes.append(Note(beat, 0.4, pitch, max(20, note.velocity - 8 + dice.integer(-3, 3))))
    return notes
