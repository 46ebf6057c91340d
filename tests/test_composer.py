"""The composer: deterministic, within ranges and time, disjoint across splits, and moods that change the notes."""

import itertools
import statistics

import pytest

from melody_jax.composer.compose import compose
from melody_jax.composer.dice import Dice
from melody_jax.composer.drum_kits import KITS
from melody_jax.composer.effects import EFFECTS
from melody_jax.composer.form import METRES
from melody_jax.composer.genres import GENRES
from melody_jax.composer.grid import compile_grid
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.melody import Motif, melody_hash
from melody_jax.composer.moods import MOODS
from melody_jax.composer.patches import PATCHES
from melody_jax.composer.render import BALANCE
from melody_jax.composer.rooms import ROOMS
from melody_jax.composer.splits import SPLITS, split_of
from melody_jax.composer.theory import MODES, QUALITIES, Chord, chord_scale, voicing
from melody_jax.control_tokens import KEYS
from melody_jax.errors import UserError

LEADS = (
    "piano", "acoustic guitar", "electric guitar", "violin", "cello", "flute", "saxophone", "trumpet", "clarinet",
    "organ", "synth lead", "harp", "marimba", "vibraphone", "accordion", "banjo", "choir", "music box",
)  # fmt: skip


@pytest.fixture(scope="module")
def pieces():
    return [compose(seed, genre=genre) for genre in GENRES for seed in range(4)]


def _melody(piece):
    return next(track for track in piece.tracks if track.role == "melody")


def test_same_seed_same_piece_and_other_seed_another():
    assert compose(5) == compose(5)
    assert compose(5).tracks != compose(6).tracks
    assert compose(5, split="test").tracks != compose(5).tracks


def test_every_note_is_playable_and_inside_the_piece(pieces):
    for piece in pieces:
        end = piece.seconds * piece.facts.tempo_bpm / 60
        for track in piece.tracks:
            player = INSTRUMENTS[track.instrument]
            for note in track.notes:
                assert 0 <= note.start < note.start + note.duration <= end + 1e-6
                assert player.low <= note.pitch <= player.high
                assert 1 <= note.velocity <= 127


def test_fields_are_of_the_vocabularies(pieces):
    for piece in pieces:
        facts, production = piece.facts, piece.production
        assert facts.genre in GENRES
        assert facts.mood in MOODS
        assert facts.key in KEYS
        assert facts.mode in MODES
        assert facts.metre in METRES
        assert facts.energy in ("low", "medium", "high")
        assert facts.instruments[0] == facts.lead
        assert set(facts.instruments) == {track.instrument for track in piece.tracks}
        assert production.room in ("dry", *ROOMS)
        assert production.drum_kit in KITS
        assert production.renderer in ("synth", "soundfont")
        assert all(
            0 <= value <= 1 for value in (production.reverb, production.master_drive, production.brightness)
        )
        assert all(track.role in BALANCE and set(track.effects) <= set(EFFECTS) for track in piece.tracks)


def test_the_lead_is_loudest_and_sounds_in_every_ten_seconds(pieces):
    silent = 0
    for piece in pieces:
        melody = _melody(piece)
        assert melody.instrument == piece.facts.lead
        assert all(track.gain_db < melody.gain_db for track in piece.tracks if track is not melody)
        beats = 10 * piece.facts.tempo_bpm / 60
        starts = [note.start for note in melody.notes]
        silent += sum(not any(k * beats <= start < (k + 1) * beats for start in starts) for k in range(3))
    assert silent <= 0.03 * 3 * len(pieces)


def test_music_starts_at_once(pieces):
    for piece in pieces:
        first = min(note.start for track in piece.tracks for note in track.notes)
        assert first * piece.seconds_per_beat < 1.2


def test_sections_cover_the_piece(pieces):
    for piece in pieces:
        bar = METRES[piece.facts.metre].beats
        for section, following in itertools.pairwise(piece.sections):
            assert section.start_beat + section.bars * bar == pytest.approx(following.start_beat)
        last = piece.sections[-1]
        end = (last.start_beat + last.bars * bar) * piece.seconds_per_beat
        assert end > piece.seconds - 0.5 * bar * piece.seconds_per_beat - 1e-6


def test_splits_share_no_progression_and_no_motif():
    seen = {split: (set(), set()) for split in SPLITS}
    names = list(GENRES)
    for split, seed in itertools.product(SPLITS, range(100)):
        piece = compose(seed, seconds=12.0, genre=names[seed % len(names)], split=split)
        seen[split][0].update(piece.progression_hashes)
        seen[split][1].update(piece.melody_hashes)
    for split in SPLITS:
        assert all(split_of(value) == split for value in seen[split][0] | seen[split][1])
    for kind, (a, b) in itertools.product((0, 1), itertools.combinations(SPLITS, 2)):
        assert not seen[a][kind] & seen[b][kind]
    assert len(seen["train"][0]) > 100
    assert len(seen["train"][1]) > 200


def test_tempi_metres_modes_and_keys_are_covered():
    facts = [compose(seed, seconds=4.0).facts for seed in range(360)]
    assert min(f.tempo_bpm for f in facts) < 60
    assert max(f.tempo_bpm for f in facts) > 168
    assert {f.mode for f in facts} == set(MODES)
    assert {f.key for f in facts} == set(KEYS)
    assert {f.mood for f in facts} == set(MOODS)
    assert {f.genre for f in facts} == set(GENRES)
    assert {"4/4", "3/4", "6/8", "12/8", "5/4"} <= {f.metre for f in facts}
    assert {f.energy for f in facts} == {"low", "medium", "high"}


@pytest.mark.parametrize("metre", list(METRES))
def test_every_metre_can_be_forced(metre):
    piece = compose(3, genre="rock", metre=metre)
    assert piece.facts.metre == metre
    assert len(piece.tracks) > 3


@pytest.mark.parametrize("lead", LEADS)
def test_every_lead_can_be_forced(lead):
    piece = compose(11, lead=lead)
    assert piece.facts.lead == lead
    assert lead in GENRES[piece.facts.genre].leads
    assert len(_melody(piece).notes) >= 6
    assert compose(11, lead=lead, genre="techno").facts.lead == lead


def test_fixed_facts_are_kept():
    piece = compose(2, genre="jazz", tempo=133.5, key="F#", mode="dorian", mood="dark")
    assert (piece.facts.tempo_bpm, piece.facts.key, piece.facts.mode, piece.facts.mood) == (
        133.5,
        "F#",
        "dorian",
        "dark",
    )
    assert 165 <= compose(1, tempo=172.0).facts.tempo_bpm <= 178


def test_moods_change_the_notes():
    def mean(mood, value, genre="solo piano"):
        return statistics.mean(
            value(_melody(compose(seed, genre=genre, mood=mood)).notes) for seed in range(15)
        )

    def loudness(notes):
        return statistics.mean(note.velocity for note in notes)

    def pitch(notes):
        return statistics.mean(note.pitch for note in notes)

    assert mean("energetic", len) > 1.5 * mean("sad", len)
    assert mean("energetic", loudness) > mean("sad", loudness) + 10
    assert mean("dreamy", pitch) > mean("dark", pitch) + 5
    minor = {
        mood: sum(compose(s, 4.0, "folk", mood=mood).facts.mode == "minor" for s in range(40))
        for mood in ("sad", "happy")
    }
    assert minor["sad"] > minor["happy"] + 8


def test_long_melody_notes_belong_to_the_harmony(pieces):
    """Calibrated on the chords track: a long melody note is mostly among the pitch classes sounding with it."""
    together = total = 0
    for piece in (p for p in pieces if p.facts.genre in ("classical", "waltz", "march", "folk")):
        harmony = [n for t in piece.tracks if t.role in ("chords", "pad", "bass") for n in t.notes]
        for note in _melody(piece).notes:
            if note.duration < 1:
                continue
            middle = note.start + note.duration / 2
            sounding = {n.pitch % 12 for n in harmony if n.start < middle and n.start + 2 > note.start}
            total += 1
            together += note.pitch % 12 in sounding
    assert total > 50
    assert together / total > 0.85


def test_bad_wishes_are_user_errors():
    for wish in (
        {"genre": "polka core"},
        {"mood": "beige"},
        {"lead": "kazoo"},
        {"split": "dev"},
        {"tempo": 500},
        {"seconds": 0},
    ):
        with pytest.raises(UserError):
            compose(1, **wish)


def test_voicings_move_little_and_stay_in_range():
    first = voicing(0, (0, 4, 7), (), 60, 48, 76)
    second = voicing(0, (5, 9, 0), first, 60, 48, 76)
    assert {pitch % 12 for pitch in second} == {5, 9, 0}
    assert all(48 <= pitch <= 76 for pitch in first + second)
    assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) <= 5


def test_a_dominant_in_minor_raises_the_leading_note():
    scale = chord_scale(MODES["minor"], Chord(7, "7", 7))
    assert 11 in scale
    assert 10 not in scale
    assert all(max(intervals) < 12 for intervals in QUALITIES.values())


def test_grids_fit_every_metre():
    for metre, (beats, _) in METRES.items():
        grid = compile_grid(("x.oxx.o5",), metre, Dice(1))
        assert all(0 <= hit.offset < beats and hit.gap > 0 for bar in grid.bars for hit in bar)
    assert [hit.offset for hit in compile_grid(("3/4|x.x.x.", "x..."), "3/4", Dice(1)).bars[0]] == [0, 1, 2]


def test_fingerprints_ignore_key_and_are_stable():
    assert melody_hash(Motif((0.0, 1.0), (0, 1))) == melody_hash(Motif((0.0, 1.0), (0, 1)))
    assert melody_hash(Motif((0.0, 1.0), (0, 1))) != melody_hash(Motif((0.0, 1.5), (0, 1)))


def test_instruments_are_general_midi():
    assert len(INSTRUMENTS) >= 40
    for instrument in INSTRUMENTS.values():
        assert 0 <= instrument.program <= 127
        assert instrument.low + 12 <= instrument.high
        assert instrument.synth_patch in PATCHES
