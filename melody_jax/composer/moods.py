"""Moods as data: their effect on register, density, loudness, articulation, dissonance, mode and tempo."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Mood:
    """The effect of a mood on the music.

    `tempo` -1..1 is a position in the genre's range; `arousal` and `valence` are in -1..1; `register` is in semitones;
    `density` and `gate` are factors; `velocity` is added, as are `leap`, `dissonance`, `reverb` and `brightness` on a
    0..1 scale; `modes` are factors of the genre's weights.
    """

    name: str
    valence: float
    arousal: float
    tempo: float = 0.0
    register: int = 0
    density: float = 1.0
    velocity: int = 0
    gate: float = 1.0
    dissonance: float = 0.0
    leap: float = 0.0
    reverb: float = 0.0
    brightness: float = 0.0
    modes: dict[str, float] = field(default_factory=dict)


_BRIGHT = {"major": 3.0, "lydian": 1.5, "mixolydian": 1.5, "minor": 0.08, "dorian": 0.4, "phrygian": 0.02}
_DARK = {"major": 0.06, "lydian": 0.1, "mixolydian": 0.3, "minor": 3.0, "dorian": 1.0, "phrygian": 1.2}
_TENDER = {"major": 2.0, "lydian": 1.0, "mixolydian": 0.6, "minor": 1.0, "dorian": 0.8, "phrygian": 0.05}
_STRANGE = {"major": 0.15, "lydian": 1.5, "mixolydian": 0.4, "minor": 1.5, "dorian": 1.5, "phrygian": 2.0}

MOODS: dict[str, Mood] = {
    mood.name: mood
    for mood in (
        Mood(name="happy", valence=0.9, arousal=0.4, tempo=0.3, register=3, density=1.1, velocity=6, gate=0.85,
            brightness=0.12, modes=_BRIGHT),
        Mood(name="joyful", valence=1.0, arousal=0.7, tempo=0.5, register=4, density=1.25, velocity=10, gate=0.8,
            leap=0.1, brightness=0.15, modes=_BRIGHT),
        Mood(name="playful", valence=0.8, arousal=0.4, tempo=0.3, register=5, density=1.15, velocity=0, gate=0.55,
            leap=0.25, brightness=0.1, modes=_BRIGHT),
        Mood(name="uplifting", valence=0.9, arousal=0.6, tempo=0.3, register=4, density=1.1, velocity=8, gate=1.0,
            reverb=0.08, brightness=0.1, modes=_BRIGHT),
        Mood(name="triumphant", valence=0.9, arousal=0.9, tempo=0.1, register=4, density=1.0, velocity=16, gate=1.05,
            leap=0.2, reverb=0.1, brightness=0.1, modes=_BRIGHT),
        Mood(name="energetic", valence=0.4, arousal=1.0, tempo=0.7, register=2, density=1.35, velocity=14, gate=0.8,
            brightness=0.15, modes={}),
        Mood(name="groovy", valence=0.5, arousal=0.5, tempo=0.1, register=0, density=1.1, velocity=6, gate=0.75,
            modes={"mixolydian": 1.5, "dorian": 2.0}),
        Mood(name="aggressive", valence=-0.6, arousal=1.0, tempo=0.6, register=-2, density=1.35, velocity=18,
            gate=0.75, dissonance=0.25, leap=0.1, brightness=0.1, modes=_DARK),
        Mood(name="epic", valence=0.2, arousal=0.9, tempo=0.0, register=2, density=1.0, velocity=16, gate=1.1,
            leap=0.2, reverb=0.2, modes={"minor": 2.0, "major": 0.7}),
        Mood(name="calm", valence=0.5, arousal=-0.7, tempo=-0.6, register=0, density=0.65, velocity=-16, gate=1.15,
            leap=-0.1, reverb=0.1, brightness=-0.15, modes=_TENDER),
        Mood(name="peaceful", valence=0.7, arousal=-0.8, tempo=-0.6, register=2, density=0.6, velocity=-18, gate=1.2,
            leap=-0.1, reverb=0.12, brightness=-0.1, modes=_BRIGHT),
        Mood(name="relaxed", valence=0.5, arousal=-0.5, tempo=-0.4, register=0, density=0.8, velocity=-8, gate=1.0,
            brightness=-0.08, modes=_TENDER),
        Mood(name="dreamy", valence=0.4, arousal=-0.5, tempo=-0.4, register=5, density=0.7, velocity=-12, gate=1.25,
            dissonance=0.1, leap=0.1, reverb=0.25, brightness=-0.05, modes={"lydian": 2.5, "major": 1.5, "dorian": 1.0,
            "minor": 0.5, "phrygian": 0.05}),
        Mood(name="romantic", valence=0.5, arousal=-0.3, tempo=-0.4, register=1, density=0.85, velocity=-6, gate=1.2,
            leap=0.15, reverb=0.1, modes=_TENDER),
        Mood(name="nostalgic", valence=0.0, arousal=-0.4, tempo=-0.3, register=1, density=0.8, velocity=-8, gate=1.1,
            reverb=0.08, brightness=-0.12, modes=_TENDER),
        Mood(name="hopeful", valence=0.6, arousal=0.0, tempo=-0.1, register=3, density=0.9, velocity=-2, gate=1.05,
            reverb=0.08, modes=_BRIGHT),
        Mood(name="sad", valence=-0.8, arousal=-0.6, tempo=-0.7, register=-3, density=0.62, velocity=-16, gate=1.2,
            leap=-0.1, reverb=0.1, brightness=-0.18, modes=_DARK),
        Mood(name="melancholic", valence=-0.6, arousal=-0.4, tempo=-0.5, register=-1, density=0.75, velocity=-12,
            gate=1.15, reverb=0.1, brightness=-0.12, modes={**_DARK, "dorian": 1.8, "phrygian": 0.3}),
        Mood(name="dark", valence=-0.8, arousal=0.2, tempo=-0.2, register=-9, density=0.85, velocity=2, gate=1.0,
            dissonance=0.3, reverb=0.12, brightness=-0.2, modes={**_DARK, "phrygian": 3.0}),
        Mood(name="tense", valence=-0.7, arousal=0.6, tempo=0.3, register=-1, density=1.15, velocity=6, gate=0.6,
            dissonance=0.45, leap=0.1, modes={**_DARK, "phrygian": 3.0}),
        Mood(name="mysterious", valence=-0.3, arousal=-0.3, tempo=-0.4, register=-3, density=0.7, velocity=-10,
            gate=1.1, dissonance=0.3, leap=0.15, reverb=0.2, brightness=-0.1, modes=_STRANGE),
        Mood(name="eerie", valence=-0.6, arousal=-0.2, tempo=-0.5, register=6, density=0.55, velocity=-12, gate=1.2,
            dissonance=0.5, leap=0.3, reverb=0.25, modes={**_STRANGE, "lydian": 0.7}),
        Mood(name="dramatic", valence=-0.3, arousal=0.7, tempo=0.1, register=0, density=1.1, velocity=12, gate=1.0,
            dissonance=0.15, leap=0.2, reverb=0.12, modes=_DARK),
        Mood(name="heroic", valence=0.7, arousal=0.8, tempo=0.2, register=2, density=1.0, velocity=14, gate=0.95,
            leap=0.3, reverb=0.12, modes={**_BRIGHT, "minor": 0.5}),
    )
}  # fmt: skip
