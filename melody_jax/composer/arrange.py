"""The arrangement: turns a plan into tracks by choosing what each instrument plays in each section."""

from melody_jax.composer.bass import Bassist
from melody_jax.composer.comping import Comper
from melody_jax.composer.dice import Dice
from melody_jax.composer.drum_parts import Drummer
from melody_jax.composer.form import Passage
from melody_jax.composer.genres import BassPart, LayerPart
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.lead import accompany, sing
from melody_jax.composer.performance import Performer
from melody_jax.composer.piece import Note, Track
from melody_jax.composer.plan import Plan

_STREAM_BAND, _STREAM_LEAD, _STREAM_COUNTER, _STREAM_DRUMS, _STREAM_BASS, _STREAM_HANDS, _STREAM_LAYERS = (
    range(10, 17)
)
_POLYPHONIC = ("keys", "guitar", "plucked", "mallets", "bells", "organ")
_LEAD_GAIN = 1.5
# Reference of the genres' gains: the renderer balances the roles, and a track's gain is the difference.
_USUAL_GAIN = {"chords": -5.0, "pad": -9.0, "arp": -8.0, "counter": -6.5, "bass": -3.0, "drums": -3.0}


def effects(dice: Dice, chances: dict[str, float]) -> tuple[str, ...]:
    """Draws at most three effects, each with its probability."""
    return tuple(name for name, chance in chances.items() if dice.chance(chance))[:3]


class Arranger:
    """Writes and performs all tracks of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.genre = plan.genre
        self.frame = plan.frame
        genre = self.genre
        frame = self.frame
        self.performer = Performer(
            plan.dice(_STREAM_HANDS),
            frame.tempo,
            plan.seconds,
            frame.swing,
            genre.swing_unit,
            genre.timing,
            plan.steady,
        )
        self.dice = plan.dice(_STREAM_BAND)
        calm = frame.mood.arousal < -0.4
        driven = bool(genre.drums) and genre.drums_chance > 0.9
        self.thin = not driven and self.dice.chance(0.16 if calm else 0.08)
        drums_chance = genre.drums_chance * (0.75 if calm and not driven else 1.0)
        self.has_drums = bool(genre.drums) and not self.thin and self.dice.chance(drums_chance)

    def tracks(self) -> list[Track]:
        """All tracks with notes, the lead first."""
        tracks = [*self._lead(), *self._layers(), *self._bass(), *self._drums()]
        return [track for track in tracks if track.notes]

    def _track(
        self, role: str, instrument: str, notes: list[Note], gain: float, fx: tuple[str, ...], late: float = 0
    ) -> Track:
        level = _LEAD_GAIN if role == "melody" else min(gain - _USUAL_GAIN[role], _LEAD_GAIN - 0.5)
        return Track(role, instrument, self.performer.play(notes, instrument, late), round(level, 2), fx)

    def _lead(self) -> list[Track]:
        dice = self.plan.dice(_STREAM_LEAD)
        notes = sing(self.plan, dice)
        fx = effects(dice, self.genre.lead_effects)
        tracks = [self._track("melody", self.plan.lead, notes, _LEAD_GAIN, fx, late=dice.between(0, 0.015))]
        kind = dice.pick(self.genre.counter)
        if kind != "none" and not self.thin:
            dice = self.plan.dice(_STREAM_COUNTER)
            options = {
                name: w for name, w in self.genre.counter_instruments.items() if name != self.plan.lead
            }
            instrument = dice.pick(options) if options else self.plan.lead
            line = accompany(self.plan, dice, kind, notes, instrument)
            tracks.append(self._track("counter", instrument, line, -6.5 + dice.bell(), ()))
        return tracks

    def _instrument(self, dice: Dice, layer: LayerPart) -> str:
        name = dice.pick(layer.instruments)
        if name != "lead":
            return name
        family = INSTRUMENTS[self.plan.lead].family
        if family in _POLYPHONIC or self.plan.lead == "accordion":
            return self.plan.lead
        return dice.pick({"piano": 3.0, "acoustic guitar": 1.0, "harp": 0.5})

    def _layers(self) -> list[Track]:
        tracks = []
        helper = None
        for number, layer in enumerate(self.genre.layers):
            dice = self.plan.dice(_STREAM_LAYERS + number)
            arousal = 0.12 * self.frame.mood.arousal if layer.chance < 1 else 0
            if not dice.chance(layer.chance + arousal) or (self.thin and number > 0):
                continue
            instrument = self._instrument(dice, layer)
            if "lead" in layer.instruments and instrument != self.plan.lead:
                instrument = helper = helper or instrument
            tracks.append(self._layer(dice, layer, instrument))
        return tracks

    def _layer(self, dice: Dice, layer: LayerPart, instrument: str) -> Track:
        player = INSTRUMENTS[instrument]
        low = max(player.low, 34)
        high = min(player.high, 98)
        register = 0.4 * self.frame.mood.register
        voices = (
            max(2, layer.voices - 1) if self.frame.mood.arousal < -0.5 and layer.voices > 3 else layer.voices
        )

        gate = min(1.2, layer.gate * (0.5 + 0.5 * self.frame.mood.gate))

        def comper() -> Comper:
            return Comper(
                dice, self.frame, layer.patterns, low, high, centre=layer.centre + register, voices=voices, gate=gate,
                style=layer.style, strum=layer.strum, rootless=layer.rootless, loud=layer.loud,
            )  # fmt: skip

        main = comper()
        players = {
            0: main,
            1: comper() if dice.chance(0.4) else main,
            2: comper() if dice.chance(0.4) else main,
        }
        enters = layer.enters - 0.1 * self.frame.mood.arousal
        notes: list[Note] = []
        playing = [
            p for p in self.plan.passages if p.energy >= enters or (p.final and p.energy + 0.2 >= enters)
        ]
        for passage in playing:
            notes += players[passage.theme].play(passage)
        gain = layer.gain + 0.8 * dice.bell()
        return self._track(layer.role, instrument, notes, gain, effects(dice, layer.effects))

    def _bass(self) -> list[Track]:
        part = self.genre.bass
        dice = self.plan.dice(_STREAM_BASS)
        if part is None or not dice.chance(part.chance) or (self.thin and dice.chance(0.6)):
            return []
        return [self._bass_track(dice, part)]

    def _bass_track(self, dice: Dice, part: BassPart) -> Track:
        instrument = dice.pick(part.instruments)
        player = INSTRUMENTS[instrument]
        high = min(player.high, max(player.low + 14, 60))

        def bassist() -> Bassist:
            return Bassist(dice, self.frame, part.patterns, player.low, high, part.gate, part.centre)

        main = bassist()
        other = bassist() if dice.chance(0.35) else main
        notes: list[Note] = []
        for passage in self.plan.passages:
            if passage.energy >= part.enters and not (passage.name == "breakdown" and dice.chance(0.5)):
                notes += (main if passage.theme == 0 else other).play(passage)
        gain = part.gain + 0.6 * dice.bell()
        return self._track("bass", instrument, notes, gain, effects(dice, part.effects))

    def _drums(self) -> list[Track]:
        if not self.has_drums:
            return []
        dice = self.plan.dice(_STREAM_DRUMS)
        drummer = Drummer(dice, self.frame, dice.among(self.genre.drums))
        notes: list[Note] = []
        passages = self.plan.passages
        for index, passage in enumerate(passages):
            closes = index + 1 < len(passages) and dice.chance(0.85)
            notes += drummer.play(passage, self._opens(dice, passages, index), closes)
        gain = self.genre.drums_gain + 0.6 * dice.bell()
        return [self._track("drums", "drums", notes, gain, ())]

    def _opens(self, dice: Dice, passages: tuple[Passage, ...], index: int) -> bool:
        return passages[index].energy > 0.55 and dice.chance(0.8 if index else 0.4)
