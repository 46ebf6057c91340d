"""Captions: many different, always true descriptions of a piece.

Captions follow from `Facts`: genre, mood, tempo, key, mode, metre, instruments and energy, in the words of
`melody_jax.composer.phrases`; names without an entry there are used as they are. Captions do not mention the form,
because training crops windows from a piece, and mention beats per minute only for music with a pulse.
"""

from melody_jax.composer.dice import Dice
from melody_jax.composer.phrases import frames, instrument_words
from melody_jax.composer.piece import Facts
from melody_jax.composer.speaker import Speaker, with_articles

_STREAM = 0xCAB710  # Separates the draws of captions from those of the composition, which has the same seed.


def captions(facts: Facts, seed: int, count: int = 8) -> list[str]:
    """Returns `count` different captions of a piece, drawn with `seed`; kinds repeat only after all have been used."""
    dice = Dice(seed, _STREAM)
    speaker = Speaker(facts, dice)
    usable = {
        kind: [f for f in phrases if speaker.can_fill(f)] for kind, (_, phrases) in frames.FRAMES.items()
    }
    kinds = {kind: weight for kind, (weight, _) in frames.FRAMES.items() if usable[kind]}
    kinds |= {"tags": 1.1, "simple": 1.4, "long": 1.0}
    texts: list[str] = []
    left = dict(kinds)
    for _ in range(40 * count):
        if len(texts) == count:
            break
        left = left or dict(kinds)
        kind = "tags" if not texts else dice.pick(left)
        left.pop(kind, None)
        text = _dress(_say(kind, usable, Speaker(facts, dice)), dice)
        if text.lower() not in (other.lower() for other in texts):
            texts.append(text)
    return texts


def _say(kind: str, usable: dict[str, list[str]], speaker: Speaker) -> str:
    if kind == "tags":
        return _tags(speaker)
    if kind == "simple":
        return _simple(speaker)
    if kind == "long":
        return _long(speaker)
    frame = speaker.dice.among(usable[kind]).replace("{tail}", "\0")
    return speaker.fill(frame).replace("\0", _tail(speaker))


def _tags(speaker: Speaker) -> str:
    """Keywords in random order: "techno, 130 bpm, dark"."""
    dice = speaker.dice
    chances = {
        "mood": 0.85,
        "lead": 0.45,
        "bpm": 0.5,
        "tempo": 0.3,
        "key": 0.15,
        "energy_tail": 0.12,
        "missing": 0.15,
    }
    chances |= {"other": 0.2, "mood_b": 0.2, "era": 0.15, "extra": 0.2}
    chosen = [
        slot for slot, chance in chances.items() if dice.chance(chance) and speaker.can_fill(f"{{{slot}}}")
    ]
    words = list(dict.fromkeys(speaker.fill(f"{{{slot}}}") for slot in chosen))
    for index in range(len(words) - 1, 0, -1):
        other = dice.integer(0, index)
        words[index], words[other] = words[other], words[index]
    genre = dice.among(speaker.genre.mass) if dice.chance(0.5) else speaker.genre_name
    words.insert(0 if dice.chance(0.6) else dice.integer(0, len(words)), genre)
    return dice.pick({", ": 6, " / ": 1, " ": 1, " | ": 0.5, "; ": 0.5}).join(words)


def _simple(speaker: Speaker) -> str:
    """A short prompt as a user would type it: the plain name of the genre or lead and one or two words."""
    dice = speaker.dice
    facts = speaker.facts
    genre = speaker.genre_name
    word = speaker.extra() if dice.chance(0.25) and speaker.can_fill("{extra}") else speaker.mood()
    lead = instrument_words.NAMES.get(facts.lead, (facts.lead,))[0]
    name = f"{genre.removesuffix(' music')} {dice.among(('track', 'tune', 'piece'))}"
    options = [f"{word} {genre}", f"@ {word} {name}", f"{genre} {word}", f"{genre}, {word}"]
    if not speaker.lead_is_genre:
        options += [f"{word} {genre} with {lead}", f"{lead} {genre}, {word}", f"{word} {lead}"]
        options += [f"{word} {lead} {genre}", f"{lead}, {word}"]
    text = with_articles(dice.among(options))
    if facts.rhythmic and dice.chance(0.45):
        text += f" {speaker.bpm()}"
    elif dice.chance(0.2):
        text = (
            f"{speaker.tempo()} {text}"
            if not text.startswith(("a ", "an "))
            else f"{text}, {speaker.tempo()}"
        )
    return text


def _long(speaker: Speaker) -> str:
    """Two to four full sentences."""
    dice = speaker.dice
    text = speaker.fill(dice.among([opening for opening in frames.OPENINGS if speaker.can_fill(opening)]))
    sentences = [text[0].upper() + text[1:]]
    chances = {"number": 0.55, "instruments": 0.5, "key": 0.25, "tempo": 0.2, "use": 0.4, "feeling": 0.35}
    for aspect, chance in {**chances, "missing": 0.2, "metre": 0.1}.items():
        usable = [frame for frame in frames.SENTENCES[aspect] if speaker.can_fill(frame)]
        if len(sentences) < 4 and usable and dice.chance(chance) and not speaker.has_mentioned(aspect):
            sentence = speaker.fill(dice.among(usable))
            sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def _tail(speaker: Speaker) -> str:
    """Up to three more details that the caption has not mentioned."""
    details = []
    for aspect, (chance, phrases) in frames.TAILS.items():
        if len(details) == 3 or speaker.has_mentioned(aspect) or not speaker.dice.chance(chance):
            continue
        usable = [phrase for phrase in phrases if speaker.can_fill(phrase)]
        if usable:
            details.append(speaker.fill(speaker.dice.among(usable)))
    return "".join(details)


def _dress(text: str, dice: Dice) -> str:
    """Varies the letter case and the final stop."""
    if dice.chance(0.4):
        text = text[0].upper() + text[1:]
        if text[-1] not in ".?!" and dice.chance(0.5):
            text += "."
    elif dice.chance(0.35):
        text = text.lower()
    return text.upper() if dice.chance(0.015) else text
