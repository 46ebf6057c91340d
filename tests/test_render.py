"""The renderer: every patch in tune, every drum key sounds, and the same piece is the same bytes in any order."""

import importlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from melody_jax.audio_format import SAMPLE_RATE, AudioFormat
from melody_jax.composer import drum_kits, dsp, effects, patches, rooms, soundfont, stems, stereo, synth
from melody_jax.composer.clock import Clock
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.piece import Facts, Note, Piece, Production, Track
from melody_jax.composer.render import BALANCE, render
from melody_jax.composer.stems import Studio
from melody_jax.composer.stereo import Place
from melody_jax.composer.voice import BODIES
from melody_jax.errors import UserError
from melody_jax.loudness import integrated

PRODUCTION = Production(
    room="room",
    reverb=0.4,
    drum_kit="electronic",
    lofi=False,
    sidechain=True,
    swing=0.0,
    renderer="synth",
    master_drive=0.3,
    brightness=0.6,
)
CENTRE = Place()
STEREO = AudioFormat(sample_rate=48_000, channels=2)
LEADS = {"melody": "flute", "bass": "synth bass", "chords": "piano", "pad": "warm pad", "arp": "synth pluck"}


def make_piece(
    seed: int = 3, seconds: float = 4.0, instruments: dict[str, str] = LEADS, **production
) -> Piece:
    tracks = []
    for role, instrument in instruments.items():
        low = max(INSTRUMENTS[instrument].low, 36 if role == "bass" else 60)
        notes = tuple(
            Note(beat, 0.9, low + (0, 4, 7, 5)[beat % 4], 70 + 10 * (beat % 4)) for beat in range(8)
        )
        tracks.append(Track(role, instrument, notes, 0.0, ("delay",) if role == "arp" else ()))
    hits = [Note(beat, 0.25, 36, 110) for beat in range(8)] + [
        Note(beat + 0.5, 0.25, 42, 80) for beat in range(8)
    ]
    tracks.append(
        Track("drums", "drums", (*hits, *(Note(beat, 0.25, 38, 100) for beat in range(1, 8, 2))), 0.0)
    )
    facts = Facts(
        "house", "happy", 120.0, "C", "major", "4/4", ("flute", "piano"), "flute", ("verse",), True, "high"
    )
    return Piece(seed, seconds, facts, tuple(tracks), (), replace(PRODUCTION, **production))


def font():
    """A font that loads fast: compressed ones take seconds."""
    try:
        soundfont.library()
        return soundfont.installed("test").get("GMbank") or soundfont.find("FluidR3")
    except UserError as missing:
        pytest.skip(str(missing))


def partials(audio: np.ndarray, frequency: float) -> tuple[float, float]:
    """Frequency of the strongest partial over the fundamental, and cents it lies off the nearest harmonic."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 4 * len(audio)))
    ratio = np.fft.rfftfreq(4 * len(audio), 1 / SAMPLE_RATE)[spectrum.argmax()] / frequency
    return ratio, 1200 * np.log2(ratio / max(1, round(ratio)))


def test_a_piece_has_its_exact_length_and_loudness():
    for seconds in (4.0, 3.14159):
        audio = render(make_piece(seconds=seconds))
        assert audio.shape == (round(seconds * SAMPLE_RATE),)
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert np.abs(audio).max() <= 0.98
        assert abs(audio.mean()) < 1e-3
        assert integrated(audio) == pytest.approx(-16.0, abs=1.0)


@pytest.mark.parametrize(
    "production",
    [
        {"room": "dry", "drum_kit": "acoustic", "sidechain": False, "master_drive": 0.0},
        {"room": "hall", "reverb": 1.0, "drum_kit": "808", "lofi": True, "brightness": 0.0},
        {"room": "plate", "drum_kit": "chip", "master_drive": 1.0, "brightness": 1.0},
        {"room": "studio", "drum_kit": "brushes"},
    ],
)
def test_productions(production: dict):
    audio = render(make_piece(**production))
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() <= 0.98
    assert integrated(audio) == pytest.approx(-16.0, abs=2.0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
def test_every_sample_rate_keeps_length_loudness_and_tone(rate: int):
    piece = make_piece(seconds=2.0)
    audio = render(piece, audio_format=AudioFormat(sample_rate=rate))
    assert audio.shape == (2 * rate,)
    assert integrated(audio, rate) == pytest.approx(-16.0, abs=1.0)
    edges = (40, 200, 1000, 3000)
    difference = band_levels(audio, edges, rate) - band_levels(render(piece), edges, SAMPLE_RATE)
    assert np.abs(difference).max() < 3.0


def band_levels(audio: np.ndarray, edges: tuple[int, ...], rate: int) -> np.ndarray:
    """Power of mono audio between neighbouring edges (Hz), dB."""
    power = np.square(np.abs(np.fft.rfft(audio))) / len(audio) ** 2
    frequency = np.fft.rfftfreq(len(audio), 1 / rate)
    bands = [power[(frequency >= low) & (frequency < high)].sum() for low, high in pairwise(edges)]
    return 10 * np.log10(bands)


def test_full_band_and_stereo():
    piece = make_piece(seconds=4.0)
    audio = render(piece, audio_format=STEREO)
    assert audio.shape == (4 * 48_000, 2)
    assert np.array_equal(audio, render(piece, audio_format=STEREO))
    assert np.abs(audio).max() <= 0.98
    assert integrated(audio, 48_000) == pytest.approx(-16.0, abs=1.0)
    middle = audio.mean(axis=1)
    side = (audio[:, 0] - audio[:, 1]) / 2
    treble = band_levels(middle, (12_000, 20_000), 48_000) - band_levels(middle, (30, 12_000), 48_000)
    assert -40 < treble[0] < -10
    mono = render(piece)
    wide = band_levels(side, (30, 20_000), 48_000) - band_levels(middle, (30, 20_000), 48_000)
    assert -20 < wide[0] < -3, "as wide as a mix, and it survives a mix to mono"
    deep = band_levels(side, (30, 100), 48_000) - band_levels(middle, (30, 100), 48_000)
    assert deep[0] < -15, "the bass stands in the centre"
    edges = (30, 100, 300, 1000, 3000)
    assert np.abs(band_levels(middle, edges, 48_000) - band_levels(mono, edges, SAMPLE_RATE)).max() < 6


def test_stereo_is_what_each_kind_of_part_needs():
    clock = Clock()
    studio = Studio(make_piece(), None, clock, 2 * SAMPLE_RATE, 2)

    def stem(role: str, instrument: str, place: Place = CENTRE) -> np.ndarray:
        track = Track(role, instrument, (Note(0, 1, 40, 90), Note(2, 1, 76, 90)), 0.0)
        return stems.stem(replace(studio, piece=replace(studio.piece, tracks=(track,))), 0, place)

    def correlation(sides: np.ndarray) -> float:
        return np.corrcoef(sides)[0, 1]

    flute = stem("melody", "flute", Place(pan=0.5))
    assert correlation(flute) == pytest.approx(1.0)
    assert np.abs(flute[1]).max() / np.abs(flute[0]).max() == pytest.approx(np.tan(3 * np.pi / 8), rel=1e-4)
    assert np.array_equal(*stem("bass", "synth bass"))
    assert correlation(stem("pad", "strings")) < 0.5, "each side has its own players"
    assert correlation(stem("chords", "distorted guitar", Place(doubled=True))) < 0.5, "two takes"
    piano = stem("chords", "piano")
    low, high = (np.square(piano[:, part]).mean(axis=1) for part in (slice(0, 12_000), slice(24_000, 36_000)))
    assert low[0] > 2 * low[1], "low keys on the left"
    assert high[1] > 2 * high[0], "high keys on the right"
    drums = Track("drums", "drums", (Note(0, 1, 36, 100),), 0.0)
    assert np.array_equal(
        *stems.stem(replace(studio, piece=replace(studio.piece, tracks=(drums,))), 0, Place())
    )


def test_places_come_from_the_seed_and_alternate():
    piece = make_piece(instruments={"chords": "electric piano", "counter": "violin", "arp": "synth pluck"})
    pans = [place.pan for place in stereo.places(piece)]
    assert pans == [place.pan for place in stereo.places(piece)]
    assert pans[0] * pans[1] < 0 < pans[0] * pans[2]
    assert pans[-1] == 0
    hall = replace(piece, production=replace(piece.production, room="hall"))
    assert stereo.places(hall)[1].pan < -0.5, "the violins sit on the left"


def test_sides_of_a_room_differ_and_are_as_loud():
    left, right = (rooms.room_response(Clock(), "hall", 2, side) for side in (stereo.LEFT, stereo.RIGHT))
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.1
    assert np.square(right).sum() == pytest.approx(1.0, abs=1e-3)


def test_silent_piece_is_silence():
    piece = replace(make_piece(seconds=1.0), tracks=(Track("melody", "flute", (), 0.0),))
    assert not render(piece).any()


def test_same_piece_same_bytes_whatever_came_before():
    first, second = (
        make_piece(seed=1),
        make_piece(seed=2, instruments={"melody": "violin", "chords": "organ"}),
    )
    alone = render(first)
    render(second)
    assert np.array_equal(alone, render(first))
    BODIES.clear()
    drum_kits.one_shot.cache_clear()
    render(second)
    assert np.array_equal(alone, render(first))
    assert not np.array_equal(alone, render(replace(first, seed=7)))


@pytest.mark.parametrize("name", sorted(set(patches.PATCHES) - {"chip_noise"}))
def test_patches_are_in_tune(name: str):
    pitch = 40 if name.startswith("bass") else 64
    for variant in (0, 5):
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        audio = synth.play(Clock(), name, name, [(0.0, 1.5, pitch, 100)], 36_000, variant)
        ratio, cents = partials(audio[2400:], frequency)
        assert 0.9 < ratio < 8.5
        assert abs(cents) < 30


@pytest.mark.parametrize("instrument", sorted(set(INSTRUMENTS) - {"drums"}))
def test_every_instrument_plays_its_range(instrument: str):
    entry = INSTRUMENTS[instrument]
    for pitch in (entry.low, entry.high):
        audio = synth.play(Clock(), instrument, entry.synth_patch, [(0.05, 0.3, pitch, 90)], 24_000, 1)
        assert np.isfinite(audio).all()
        assert 0.02 < np.abs(audio).max() < 2.0
        assert not audio[:1000].any()


@pytest.mark.parametrize("kit", drum_kits.KITS)
def test_every_drum_key_sounds(kit: str):
    for key in drum_kits.KEYS:
        hit = drum_kits.play(Clock(), kit, [(0.0, 0.25, key, 100)], 12_000, seed=key)
        assert np.isfinite(hit).all()
        assert 0.005 < np.abs(hit).max() < 2.0, (kit, key)


def test_closed_hat_chokes_the_open_one():
    ringing = drum_kits.play(Clock(), "acoustic", [(0.0, 0.2, 46, 100)], 24_000, seed=0)
    choked = drum_kits.play(Clock(), "acoustic", [(0.0, 0.2, 46, 100), (0.2, 0.2, 42, 1)], 24_000, seed=0)
    assert Clock().level(choked[9600:12_000]) < 0.3 * Clock().level(ringing[9600:12_000])


@pytest.mark.parametrize("name", effects.EFFECTS)
def test_effects_keep_length_and_level(name: str):
    audio = synth.play(
        Clock(), "electric guitar", "guitar", [(0.0, 1.0, 52, 100), (1.0, 1.0, 59, 100)], 60_000, 0
    )
    for seed in range(2):
        changed = effects.apply(audio, (name,), effects.Rack(Clock(), np.random.default_rng(seed), 0.5))
        assert changed.shape == audio.shape
        assert changed.dtype == np.float32
        assert np.isfinite(changed).all()
        assert not np.array_equal(changed, audio)
        assert 0.05 < Clock().level(changed) / Clock().level(audio) < 3.0


def test_every_room_and_role_sounds():
    for room in rooms.ROOMS:
        response = rooms.room_response(Clock(), room, 0)
        assert np.square(response).sum() == pytest.approx(1.0, abs=1e-3)
    for role in BALANCE:
        track = Track(role, "drums" if role == "drums" else "piano", (Note(0, 1, 38, 100),), 0.0)
        assert render(replace(make_piece(seconds=0.5), tracks=(track,))).any()


def test_reverb_is_convolution_with_the_room():
    audio = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    expected = np.convolve(audio, rooms.room_response(Clock(), "studio", 1))[:9000]
    np.testing.assert_allclose(rooms.reverb(Clock(), audio, "studio", 1), expected, atol=1e-4)


def test_sidechain_ducks_under_the_kick():
    gain = effects.ducking(Clock(), [0.5], SAMPLE_RATE, depth=0.8, seconds=0.3)
    assert gain[:11_000].min() == 1.0
    assert gain.min() == pytest.approx(0.2, abs=0.01)
    assert gain[-1] == 1.0


def test_waveshaper_keeps_treble_and_does_not_alias():
    time, window = Clock().times(24_000), np.hanning(24_000)
    soft = dsp.waveshape(0.01 * np.sin(2 * np.pi * 8000 * time), 1.0)
    assert Clock().level(soft) == pytest.approx(0.01 / np.sqrt(2), rel=0.1)
    # The seventh harmonic of 3.3 kHz lies at 23.1 kHz and folds to 900 Hz.
    tone = (4 * np.sin(2 * np.pi * 3300 * time)).astype(np.float32)
    plain, averaged = (
        np.abs(np.fft.rfft(audio * window))[890:910].max()
        for audio in (tone / np.sqrt(1 + tone**2), dsp.waveshape(tone, 1.0))
    )
    assert averaged < 0.25 * plain


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"instrument": "theremin"}, "theremin"),
        ({"role": "conductor"}, "conductor"),
        ({"effects": ("sparkle",)}, "sparkle"),
    ],
)
def test_unknown_names_are_user_errors(changes: dict, named: str):
    piece = make_piece(seconds=0.5)
    with pytest.raises(UserError, match=named):
        render(replace(piece, tracks=(replace(piece.tracks[0], **changes),)))


def test_unknown_kit_room_and_key_are_user_errors():
    for production, named in (({"drum_kit": "tabla"}, "tabla"), ({"room": "cave"}, "cave")):
        with pytest.raises(UserError, match=named):
            render(make_piece(seconds=0.5, **production))
    with pytest.raises(UserError, match="120"):
        drum_kits.play(Clock(), "acoustic", [(0.0, 0.1, 120, 100)], 100, 0)
    with pytest.raises(UserError, match="0 seconds"):
        render(make_piece(seconds=0.0))


def test_missing_font_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfont, "FOLDERS", (tmp_path,))
    for entry in soundfont.FONTS.values():
        with pytest.raises(UserError, match=f"apt-get install {entry.package}$"):
            soundfont.find(entry.name)
    with pytest.raises(UserError, match="GMbank"):
        soundfont.find("TimGM6mb")
    assert soundfont.installed("train") == {}


def test_missing_library_names_the_package(monkeypatch):
    def refuse(name: str) -> None:
        raise ImportError("Couldn't find the FluidSynth library.")

    soundfont.library.cache_clear()
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError, match="libfluidsynth3"):
        soundfont.library()
    monkeypatch.undo()
    soundfont.library.cache_clear()


def test_test_only_font_is_kept_from_training():
    assert soundfont.FONTS["GMbank"].splits == ("test",)
    assert "GMbank" not in soundfont.installed("train") | soundfont.installed("validation")


def test_missing_path_names_the_package(tmp_path):
    font()
    with pytest.raises(UserError, match="fluid-soundfont-gm"):
        render(make_piece(seconds=0.5, renderer="soundfont"), tmp_path / "FluidR3_GM.sf2")
    (tmp_path / "bad.sf2").write_bytes(b"no font")
    with pytest.raises(UserError, match="not a SoundFont"):
        render(make_piece(seconds=0.5, renderer="soundfont"), tmp_path / "bad.sf2")


@pytest.mark.parametrize("rate", [4_000, 192_000])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(UserError, match=f"sample_rate {rate}: music is composed at 8000 to 96000 Hz"):
        render(make_piece(seconds=0.5), audio_format=AudioFormat(sample_rate=rate))


def test_font_stems_do_not_depend_on_order():
    path = font()
    jobs = {
        program: [(0.1 * i, 0.3, 48 + (5 * i) % 24, 60 + 5 * (i % 8)) for i in range(12)]
        for program in (0, 48, 30, 73)
    }
    hits = [(0.2 * i, 0.1, (36, 42, 38, 46, 49)[i % 5], 90) for i in range(8)]
    alone = {
        program: soundfont.play(Clock(), path, program, notes, 48_000) for program, notes in jobs.items()
    }
    kit = soundfont.play_drums(Clock(), path, "acoustic", hits, 48_000, 0)
    for program in (30, 73, 0, 48, 0):
        assert np.array_equal(soundfont.play(Clock(), path, program, jobs[program], 48_000), alone[program])
        assert np.array_equal(soundfont.play_drums(Clock(), path, "acoustic", hits, 48_000, 0), kit)
    assert len({audio.tobytes() for audio in alone.values()}) == len(jobs)


def test_font_plays_in_tune():
    path = font()
    for program in (0, 24, 73):
        audio = soundfont.play(Clock(), path, program, [(0.0, 1.5, 64, 100)], 36_000).mean(axis=0)
        ratio, cents = partials(audio[2400:], 329.63)
        assert 0.9 < ratio < 8.5
        assert abs(cents) < 25


def test_repeated_note_is_cut_by_the_next_one():
    assert soundfont._events(Clock(), [(0.0, 2.0, 60, 90), (1.0, 1.0, 60, 80)]) == [
        (0, 60, 90),
        (375, 60, 0),
        (375, 60, 80),
        (750, 60, 0),
    ]


@pytest.mark.parametrize("renderer", ["synth", "soundfont"])
def test_pieces_through_a_font(renderer: str):
    path = font()
    piece = make_piece(renderer=renderer)
    audio = render(piece, path)
    render(make_piece(seed=8), path)
    assert np.array_equal(audio, render(piece, path))
    assert audio.shape == (4 * SAMPLE_RATE,)
    assert np.abs(audio).max() <= 0.98
    assert integrated(audio) == pytest.approx(-16.0, abs=1.0)
    assert not np.array_equal(audio, render(piece))
