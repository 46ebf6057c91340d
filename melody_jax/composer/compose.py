"""Composes a piece from a seed: `compose(7, genre="jazz", lead="clarinet")`.

`plan` makes the decisions, `arrange` writes and performs every part, and this module adds facts and production
settings. Splits share no progression and no motif (`splits`); the same seed gives a different piece in each split.
"""

from collections import defaultdict

from melody_jax.composer.arrange import Arranger
from melody_jax.composer.harmony import progression_hash
from melody_jax.composer.melody import melody_hash
from melody_jax.composer.piece import Facts, Piece, Production, Section, Track
from melody_jax.composer.plan import Plan, make_plan
from melody_jax.composer.splits import split_index
from melody_jax.control_tokens import KEYS

_STREAM_PRODUCTION = 20
_LOW_ENERGY = 0.42
_HIGH_ENERGY = 0.66


def compose(
    seed: int,
    seconds: float = 30.0,
    genre: str | None = None,
    split: str = "train",
    mood: str | None = None,
    tempo: float | None = None,
    lead: str | None = None,
    key: str | None = None,
    mode: str | None = None,
    metre: str | None = None,
) -> Piece:
    """Composes a piece of `seconds` seconds; whatever the caller does not fix is drawn from the seed.

    `genre` is a key of `GENRES`, `mood` of `MOODS`, `lead` of `INSTRUMENTS`, `key` of `KEYS`, `mode` of `MODES`,
    `metre` of `METRES`, `split` of `SPLITS`; `tempo` is in felt beats per minute.

    Raises:
        UserError: an unknown name, or a tempo, length or seed out of range.
    """
    plan = make_plan(
        seed,
        seconds,
        split,
        split_index(split),
        genre,
        mood=mood,
        tempo=tempo,
        lead=lead,
        key=key,
        mode=mode,
        metre=metre,
    )
    arranger = Arranger(plan)
    tracks = tuple(arranger.tracks())
    return Piece(
        seed=seed,
        seconds=seconds,
        facts=_facts(plan, tracks),
        tracks=tracks,
        sections=tuple(Section(passage.name, passage.start, passage.bars) for passage in plan.passages),
        production=_production(plan),
        progression_hashes=tuple(sorted({progression_hash(theme.progression) for theme in plan.themes})),
        melody_hashes=tuple(sorted({melody_hash(motif) for theme in plan.themes for motif in theme.motifs})),
    )


def _facts(plan: Plan, tracks: tuple[Track, ...]) -> Facts:
    loudness: defaultdict[str, float] = defaultdict(float)
    for track in tracks:
        share = min(
            1.0, 4 * sum(note.duration for note in track.notes) / (plan.seconds * plan.frame.tempo / 60)
        )
        loudness[track.instrument] = max(
            loudness[track.instrument], 10 ** (track.gain_db / 20) * (0.3 + share)
        )
    loudness[plan.lead] += 100
    ordered = tuple(sorted(loudness, key=lambda name: -loudness[name]))
    return Facts(
        genre=plan.genre.name,
        mood=plan.frame.mood.name,
        tempo_bpm=plan.frame.tempo,
        key=KEYS[plan.frame.tonic],
        mode=plan.frame.mode,
        metre=plan.frame.metre,
        instruments=ordered,
        lead=plan.lead,
        sections=tuple(dict.fromkeys(passage.name for passage in plan.passages)),
        rhythmic=plan.steady,
        energy=_energy(plan, any(track.role == "drums" for track in tracks)),
    )


def _energy(plan: Plan, drums: bool) -> str:
    speed = min(max((plan.frame.tempo - 60) / 110, 0.0), 1.0)
    level = sum(p.energy * p.bars for p in plan.passages) / sum(p.bars for p in plan.passages)
    value = (
        0.4 * plan.genre.energy
        + 0.2 * (plan.frame.mood.arousal + 1) / 2
        + 0.15 * speed
        + 0.1 * drums
        + 0.15 * level
    )
    return "low" if value < _LOW_ENERGY else "high" if value > _HIGH_ENERGY else "medium"


def _production(plan: Plan) -> Production:
    dice = plan.dice(_STREAM_PRODUCTION)
    genre = plan.genre
    mood = plan.frame.mood

    def unit(value: float) -> float:
        return round(min(max(value, 0.0), 1.0), 3)

    return Production(
        room=dice.pick(genre.rooms),
        reverb=unit(dice.between(*genre.reverb) + 0.6 * mood.reverb),
        drum_kit=dice.pick(genre.kits),
        lofi=dice.chance(genre.lofi),
        sidechain=dice.chance(genre.sidechain),
        swing=plan.frame.swing,
        renderer="synth" if dice.chance(genre.synth) else "soundfont",
        master_drive=unit(dice.between(*genre.drive) + 0.1 * max(0.0, mood.arousal)),
        brightness=unit(dice.between(*genre.brightness) + mood.brightness),
    )
