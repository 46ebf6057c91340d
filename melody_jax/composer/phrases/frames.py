"""Sentence frames, tempo, energy and key words of the captions.

In a frame, `{slot}` is filled from the facts (see `speaker.Speaker`), `@` becomes "a" or "an", and `{tail}` can add
further details (tempo, key, instruments, missing instruments, use).
Slots: `adj` one to three adjectives, `mood` an adjective and `feeling` a noun for the mood, `tempo` and `pace` an
adjective and an adverbial for the tempo, `mass` and `count` names of the genre, `lead` and `alead` the leading
instrument without and with its article, `solo` its singular name, `other` a second instrument, `list` several, lead
first, `all` all of them, `bpm`, `key`, `use` a scene.
"""

# Tempo in beats per minute below which the words apply: (limit, adjectives, adverbials).
TEMPO: tuple[tuple[float, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        60,
        ("very slow", "extremely slow", "slow-moving", "glacially slow"),
        ("at a very slow pace", "very slowly"),
    ),
    (
        80,
        ("slow", "slow-paced", "unhurried", "slow-tempo"),
        ("at a slow tempo", "at a slow pace", "taken slowly"),
    ),
    (
        94,
        ("fairly slow", "slowish", "leisurely", "easy-paced"),
        ("at a leisurely pace", "at a fairly slow tempo"),
    ),
    (
        113,
        ("mid-tempo", "medium-tempo", "moderate", "moderately paced"),
        ("at a moderate tempo", "at walking pace"),
    ),
    (
        127,
        ("brisk", "fairly fast", "moderately fast", "quick-ish"),
        ("at a brisk tempo", "at a fairly fast tempo"),
    ),
    (152, ("fast", "quick", "up-tempo", "fast-paced"), ("at a fast tempo", "at a quick pace", "played fast")),
    (
        999,
        ("very fast", "rapid", "high-speed", "really fast"),
        ("at high speed", "at a very fast tempo", "very fast"),
    ),
)

ENERGY: dict[str, tuple[str, ...]] = {
    "low": ("low-key", "low-energy", "subdued", "understated", "restrained", "soft"),
    "medium": ("steady", "moderately energetic", "medium-energy"),
    "high": ("high-energy", "energetic", "powerful", "full-on", "intense"),
}
ENERGY_TAILS: dict[str, tuple[str, ...]] = {
    "low": ("low energy", "keep it soft", "nothing too loud", "little energy"),
    "medium": (
        "medium energy",
        "moderate energy",
        "not too wild",
        "middling energy",
        "neither loud nor quiet",
    ),
    "high": ("high energy", "lots of energy", "full of energy", "full power"),
}
ENERGY_SCENES: dict[str, tuple[str, ...]] = {
    "low": ("studying", "a quiet evening", "reading", "a lazy morning", "a rainy night drive"),
    "medium": (
        "a cooking video",
        "a travel vlog",
        "an afternoon drive",
        "a podcast intro",
        "tidying up the house",
    ),
    "high": (
        "a workout",
        "a sports montage",
        "running",
        "a party",
        "an action scene",
        "staying awake at the wheel",
    ),
}

FLATS = {"C#": "D flat", "D#": "E flat", "F#": "G flat", "G#": "A flat", "A#": "B flat"}
MINOR_MODES = frozenset(
    ("minor", "dorian", "phrygian", "aeolian", "natural minor", "harmonic minor", "melodic minor")
)
MAJOR_MODES = frozenset(("major", "lydian", "mixolydian", "ionian"))

METRES: dict[str, tuple[str, ...]] = {
    "3/4": ("in three-four time", "in 3/4", "in waltz time", "with three beats to the bar"),
    "6/8": ("in 6/8", "in six-eight time", "with a lilting six-eight feel"),
    "12/8": ("in 12/8", "in twelve-eight time", "with a triplet feel"),
    "2/4": ("in 2/4", "in two-four time"),
    "5/4": ("in 5/4", "in five-four time", "with five beats to the bar"),
    "7/8": ("in 7/8", "in seven-eight time", "in an odd metre"),
}

# Kind of caption: (relative frequency, frames).
FRAMES: dict[str, tuple[float, tuple[str, ...]]] = {
    "plain": (
        1.0,
        (
            "@ {adj} {count}{tail}",
            "{adj} {mass}{tail}",
            "some {adj} {mass}{tail}",
            "{mass}, {mood}{tail}",
            "{mass} that feels {mood}{tail}",
            "{mass} with @ {mood} mood{tail}",
            "@ {count}, {mood} and {tempo}{tail}",
            "{adj} {mass} and nothing else{tail}",
            "@ {tempo} {count} in @ {mood} mood{tail}",
            "very {mood1} {mass}{tail}",
            "{mass}, {tempo}, {mood}{tail}",
            "@ short {adj} {count}{tail}",
            "{mood} but {tempo} {mass}{tail}",
        ),
    ),
    "with": (
        1.3,
        (
            "@ {adj} {count} with {alead}{tail}",
            "{adj} {mass} with {alead}{tail}",
            "{adj} {mass} featuring {alead}{tail}",
            "@ {count} built around {alead}, {mood}{tail}",
            "{adj} {mass} led by {alead}{tail}",
            "{mood} {lead} over @ {tempo} {mass} backing{tail}",
            "{mass} where the {solo} takes the lead, {mood}{tail}",
            "{lead}-led {mass}, {mood}{tail}",
            "@ {adj} {count} for {list}{tail}",
            "{mass} played on {list}, {mood}{tail}",
            "{list} playing {adj} {mass}{tail}",
            "{lead} and {other} in @ {adj} {count}{tail}",
            "{mood} {mass}: {list}{tail}",
            "@ {count} with {list}, {mood} in character{tail}",
            "{adj} {mass} carried by {alead} and {other}{tail}",
            "{mass} with {alead} on top{tail}",
        ),
    ),
    "lead": (
        1.2,
        (
            "something {tempo} and {mood} on the {lead}{tail}",
            "something {mood} with {alead}{tail}",
            "@ {mood} {lead} tune{tail}",
            "@ {mood} melody on the {lead}{tail}",
            "{mood} {lead}{tail}",
            "{mood} {lead} music{tail}",
            "the {solo} plays @ {mood} melody{tail}",
            "{list}, {mood}{tail}",
            "@ {adj} piece for {list}{tail}",
            "{lead} up front, {mood} and {tempo}{tail}",
            "{tempo} {lead} piece full of {feeling}{tail}",
            "music led by {alead}, {mood}{tail}",
            "@ {adj} tune on {list}{tail}",
            "{lead} and {other}, {mood}{tail}",
            "an instrumental with {alead} in front, {mood}{tail}",
            "{lead}, {mood}, {tempo}{tail}",
        ),
    ),
    "scene": (
        1.3,
        (
            "music for {use}: {adj} {mass}{tail}",
            "background music for {use}, {adj} {mass}{tail}",
            "{mass} for {use}, {mood}{tail}",
            "@ {adj} {count} for {use}{tail}",
            "soundtrack to {use}: {mood} {mass} with {alead}{tail}",
            "{use}, {mood} {mass} playing{tail}",
            "something {mood} for {use}, with {alead}{tail}",
            "imagine {use}: {adj} {mass}{tail}",
            "{mood} {lead} music for {use}{tail}",
            "{mass} to go with {use}, {adj}{tail}",
            "@ {mood} {count} that would suit {use}{tail}",
            "background for {use}, {mood}, {list}{tail}",
            "video background: {use}. {adj} {mass}{tail}",
        ),
    ),
    "imperative": (
        1.0,
        (
            "play me @ {adj} {count}{tail}",
            "play some {adj} {mass}{tail}",
            "give me {adj} {mass}{tail}",
            "make @ {adj} {count}{tail}",
            "make me something {mood} with {alead}{tail}",
            "create {adj} {mass}{tail}",
            "compose @ {adj} {count}{tail}",
            "write @ {mood} {count} for {list}{tail}",
            "generate {adj} {mass}{tail}",
            "I want @ {adj} {count}{tail}",
            "I need {adj} {mass} for {use}{tail}",
            "let me hear {mood} {mass}{tail}",
            "put on some {adj} {mass}{tail}",
            "please play {adj} {mass}{tail}",
            "I'd like {mood} {mass} with {alead}{tail}",
            "play @ {mood} tune on the {lead}{tail}",
            "let the {lead} sing over {adj} {mass}{tail}",
            "I'm looking for {adj} {mass}{tail}",
            "I feel like {mood} {mass}{tail}",
            "drop some {mood} {mass}{tail}",
        ),
    ),
    "question": (
        0.6,
        (
            "can you play @ {adj} {count}{tail}?",
            "could I hear some {adj} {mass}{tail}?",
            "do you have any {adj} {mass}{tail}?",
            "how about {adj} {mass}{tail}?",
            "what about something {mood} on the {lead}{tail}?",
            "can you make {adj} {mass} with {alead}{tail}?",
            "would you write @ {mood} {count} for {use}{tail}?",
            "got any {mood} {mass} for {use}{tail}?",
            "what does {mood} {mass} sound like?",
            "could you put together @ {adj} {count}{tail}?",
            "is there any {mood} {mass} with {alead}{tail}?",
        ),
    ),
    "feeling": (
        0.9,
        (
            "@ {count} full of {feeling}{tail}",
            "{mass} with a sense of {feeling}{tail}",
            "{adj} {mass}, full of {feeling}{tail}",
            "{feeling}, played on the {lead}{tail}",
            "{lead} full of {feeling}{tail}",
            "{feeling} and {mass}{tail}",
            "{mass} vibes, {mood}{tail}",
            "@ {tempo} {count}, lots of {feeling}{tail}",
            "{feeling} in the form of {mass}{tail}",
            "@ {count} that makes you feel {feeling}{tail}",
            "the sound of {feeling}: {mass}{tail}",
            "{mood} atmosphere, {mass}{tail}",
            "{mass}, {mood} and {mood_b}{tail}",
            "@ {mood}, {mood_b} {count}{tail}",
        ),
    ),
    "scholarly": (
        0.7,
        (
            "{mass} in {key}{tail}",
            "@ {adj} {count} in {key}{tail}",
            "{count} in {key}, {mood}{tail}",
            "{list}: @ {mood} {count} in {key}{tail}",
            "@ {count} {metre}, {mood}{tail}",
            "@ {adj} {count} {pace}{tail}",
            "the {solo} plays in {key}, {mood} {mass}{tail}",
            "{mass}, {key}, {mood}{tail}",
            "{mass} {pace}, {mood}{tail}",
            "instrumentation: {all}. genre: {mass}. mood: {mood}.",
            "genre: {mass}, mood: {mood}",
            "genre: {mass}, mood: {mood}, tempo: {bpm}",
        ),
    ),
    "mood only": (
        0.75,
        (
            "something {mood} for {use}{tail}",
            "@ {mood}, {tempo} instrumental{tail}",
            "{adj} background music for {use}{tail}",
            "{mood} and {tempo}{tail}",
            "{mood} music{tail}",
            "music full of {feeling}{tail}",
            "music for {use}{tail}",
            "something {tempo} and {mood}{tail}",
            "soundtrack for {use}, {adj}{tail}",
            "{mood} vibes{tail}",
        ),
    ),
}

# What may follow a frame, by the aspect it tells: (probability, phrases).
TAILS: dict[str, tuple[float, tuple[str, ...]]] = {
    "instruments": (
        0.25,
        (
            " with {alead}",
            ", {lead} in front",
            ", featuring {alead}",
            ", {list}",
            ", with {list}",
            ", {lead} and {other}",
            ", mostly {lead}",
            " - {list}",
        ),
    ),
    "metre": (0.15, (" {metre}", ", {metre}")),
    "key": (0.16, (" in {key}", ", {key}", ", in {key}")),
    "number": (0.5, (" at {bpm}", ", {bpm}", ", at {bpm}", ", tempo {bpm}", " ({bpm})", " - {bpm}")),
    "tempo": (0.14, (", {tempo}", " {pace}", ", {pace}")),
    "use": (0.14, (" for {use}", ", good for {use}", ", background for {use}", ", as if for {use}")),
    "energy": (0.08, (", {energy}",)),
    "missing": (0.17, (", {missing}", " - {missing}", ", {missing} please", ", {missing}")),
}

# Sentences that may follow a first one, by the aspect they tell.
SENTENCES: dict[str, tuple[str, ...]] = {
    "number": (
        "It moves at {bpm}.",
        "The tempo is {bpm}.",
        "The beat goes at {bpm}.",
        "Tempo: {bpm}.",
        "It runs at {bpm}.",
    ),
    "instruments": (
        "The {solo} carries the melody.",
        "You can hear {list}.",
        "Instruments: {all}.",
        "The {solo} leads.",
        "It is played on {list}.",
        "The {solo} is in the foreground.",
        "The main voice is {alead}, joined by {other}.",
    ),
    "key": ("It is in {key}.", "Key: {key}.", "Written in {key}."),
    "tempo": ("The pace is {tempo}.", "It is played {pace}.", "It is rather {tempo}.", "Tempo: {tempo}."),
    "use": (
        "It would suit {use}.",
        "Think of {use}.",
        "Imagine {use}.",
        "Perfect for {use}.",
        "It could play during {use}.",
    ),
    "feeling": (
        "It is full of {feeling}.",
        "There is {feeling} in it.",
        "The mood is {mood}.",
        "It feels {mood} and {mood_b}.",
    ),
    "missing": ("{missing}.", "Note: {missing}."),
    "metre": ("It is {metre}.",),
}

# First sentences of the long captions.
OPENINGS = (
    "@ {adj} {count}.",
    "This is @ {adj} {count}.",
    "{adj} {mass}.",
    "A piece of {adj} {mass}.",
    "@ {adj} {count} led by {alead}.",
    "Here is some {adj} {mass}.",
    "@ {mood} melody on the {lead} over {mass}.",
    "{mass} with {alead} and {other}.",
    "An instrumental: {adj} {mass}.",
    "The {solo} leads @ {adj} {count}.",
    "We hear @ {adj} {count} with {list}.",
)
