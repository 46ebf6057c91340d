"""How people name genres, and what they play them for."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GenrePhrases:
    """Words for one genre.

    `mass` are names without article ("some bossa nova"), `count` nouns that take one ("a bossa nova tune"), `scenes`
    follow "music for", `eras` come before either. `danceable` music may be called so, `four_on_the_floor` says that
    drums, where there are any, beat every quarter note; `electronic` that the genre is made of electronic sounds.
    """

    mass: tuple[str, ...]
    count: tuple[str, ...]
    scenes: tuple[str, ...] = ()
    eras: tuple[str, ...] = ()
    danceable: bool = False
    four_on_the_floor: bool = False
    electronic: bool = False


@dataclass(frozen=True)
class _Dance(GenrePhrases):
    danceable: bool = field(default=True)


@dataclass(frozen=True)
class _Club(_Dance):
    four_on_the_floor: bool = field(default=True)
    electronic: bool = field(default=True)


@dataclass(frozen=True)
class _Electronic(GenrePhrases):
    electronic: bool = field(default=True)


GENRES: dict[str, GenrePhrases] = {
    "solo piano": GenrePhrases(
        ("solo piano", "solo piano music", "piano solo", "unaccompanied piano", "piano music", "piano alone"),
        (
            "solo piano piece",
            "piano solo",
            "piece for solo piano",
            "piano piece",
            "unaccompanied piano piece",
        ),
        ("an empty concert room", "a candlelit dinner", "reading by the fire", "a quiet scene in a film"),
    ),
    "jazz": GenrePhrases(
        ("jazz", "jazz music", "club jazz", "small-group jazz", "combo jazz", "jazz combo music"),
        ("jazz tune", "jazz number", "jazz piece", "jazz track", "jazz combo recording"),
        (
            "a smoky jazz club",
            "a cocktail bar",
            "a late-night basement bar",
            "a dinner with friends",
            "a hotel lounge",
        ),
    ),
    "bossa nova": GenrePhrases(
        ("bossa nova", "bossa", "Brazilian bossa nova", "bossa nova music", "Brazilian-style jazz"),
        (
            "bossa nova tune",
            "bossa nova song without words",
            "bossa groove",
            "bossa nova piece",
            "bossa nova number",
        ),
        ("a beach bar", "a terrace in Rio", "a coffee shop", "a summer afternoon", "Sunday brunch"),
        ("sixties-style", "1960s-style"),
    ),
    "blues": GenrePhrases(
        ("blues", "blues music", "the blues", "bar-room blues", "bluesy music"),
        ("blues tune", "blues number", "blues track", "blues piece", "blues jam"),
        ("a roadhouse", "a dusty road trip", "a whiskey bar", "a back porch", "a juke joint"),
    ),
    "rock": GenrePhrases(
        ("rock", "rock music", "band-style rock", "band rock", "rock band music"),
        ("rock song", "rock track", "rock number", "rock band recording", "rock instrumental"),
        ("an open highway", "a garage rehearsal", "a rock festival", "a road movie", "a stadium"),
    ),
    "metal": GenrePhrases(
        ("metal", "heavy metal", "metal music", "heavy metal music", "riff-based metal"),
        ("metal track", "metal song", "heavy metal track", "metal instrumental", "metal riff workout"),
        (
            "a mosh pit",
            "a boss fight",
            "a heavy lifting session",
            "a metal festival",
            "a battle in a video game",
        ),
    ),
    "funk": _Dance(
        ("funk", "funk music", "funky music", "band funk", "syncopated funk"),
        ("funk track", "funk groove", "funk tune", "funk jam", "funky track", "funk number"),
        (
            "a block party",
            "a roller rink",
            "a car chase in an old cop film",
            "a dance floor",
            "strutting down the street",
        ),
        ("seventies-style", "1970s-style", "old-school"),
    ),
    "house": _Club(
        ("house", "house music", "club house music", "electronic house", "dance-floor house"),
        ("house track", "house tune", "house groove", "house record", "club house track"),
        ("a rooftop party", "a beach club", "a DJ set", "a dance floor at midnight", "a pool party"),
    ),
    "techno": _Club(
        ("techno", "techno music", "club techno", "dance-floor techno", "electronic techno"),
        ("techno track", "techno tune", "techno loop", "techno record", "club techno track"),
        (
            "a warehouse rave",
            "a strobe-lit club",
            "a late-night DJ set",
            "a Berlin club",
            "three in the morning on the dance floor",
        ),
    ),
    "trance": _Club(
        ("trance", "trance music", "club trance", "electronic trance", "synth-driven trance"),
        ("trance track", "trance tune", "trance anthem", "trance record", "club trance track"),
        (
            "a festival main stage",
            "hands in the air at sunrise",
            "a laser show",
            "a big club night",
            "a night on the dance floor",
        ),
    ),
    "ambient": _Electronic(
        (
            "ambient",
            "ambient music",
            "atmospheric ambient music",
            "ambient soundscapes",
            "drifting ambient textures",
        ),
        ("ambient piece", "ambient soundscape", "ambient track", "atmospheric soundscape", "ambient texture"),
        (
            "meditation",
            "falling asleep",
            "floating in space",
            "a planetarium",
            "a documentary about the deep sea",
            "yoga",
        ),
    ),
    "baroque": GenrePhrases(
        ("baroque music", "baroque", "baroque-style music", "baroque counterpoint", "baroque chamber music"),
        ("baroque piece", "baroque-style piece", "baroque dance", "baroque movement", "baroque invention"),
        ("a palace garden", "a royal court", "a candlelit chamber", "a period drama", "a church concert"),
        ("18th-century", "early 18th-century"),
    ),
    "classical": GenrePhrases(
        (
            "classical music",
            "classical",
            "elegant classical music",
            "music of the classical era",
            "classical-style music",
        ),
        (
            "classical piece",
            "classical movement",
            "classical-era piece",
            "classical-style piece",
            "classical work",
        ),
        ("a chamber concert", "a museum", "a garden party", "a salon in Vienna", "an elegant dinner"),
        ("18th-century", "late 18th-century"),
    ),
    "orchestral": GenrePhrases(
        (
            "orchestral music",
            "symphonic music",
            "orchestral",
            "music for orchestra",
            "full-orchestra music",
            "orchestra music",
        ),
        ("orchestral piece", "symphonic piece", "orchestral cue", "piece for orchestra", "orchestral work"),
        (
            "a film trailer",
            "a fantasy film",
            "a concert hall",
            "the opening titles of a film",
            "an adventure game",
        ),
    ),
    "waltz": _Dance(
        ("waltz music", "waltz", "music in three-four time", "waltz-time music", "ballroom waltz music"),
        ("waltz", "ballroom waltz", "dance in three-four time", "waltz tune", "little waltz"),
        ("a ballroom", "a first dance at a wedding", "a Viennese ball", "a carousel", "an old dance hall"),
    ),
    "reggae": _Dance(
        ("reggae", "reggae music", "roots reggae", "Jamaican reggae", "offbeat reggae"),
        ("reggae tune", "reggae track", "reggae groove", "reggae number", "reggae riddim"),
        ("a beach in Jamaica", "a barbecue", "a hammock", "an island holiday", "a sunny afternoon"),
    ),
    "lo-fi hip hop": GenrePhrases(
        (
            "lo-fi hip hop",
            "lofi hip hop",
            "lo-fi",
            "lofi beats",
            "lo-fi hip hop music",
            "lo-fi study beats",
            "chillhop",
        ),
        ("lo-fi hip hop track", "lofi beat", "lo-fi beat", "lo-fi hip hop instrumental", "chillhop track"),
        (
            "studying",
            "homework late at night",
            "a rainy night in the city",
            "a coffee shop",
            "coding",
            "drawing at a desk",
        ),
    ),
    "acoustic guitar": GenrePhrases(
        (
            "acoustic guitar",
            "acoustic guitar music",
            "fingerpicked guitar",
            "fingerstyle guitar music",
            "guitar music",
        ),
        ("acoustic guitar piece", "guitar piece", "fingerstyle guitar piece", "fingerpicked guitar tune"),
        (
            "a campfire",
            "a quiet cafe",
            "a porch at dusk",
            "a train ride through the country",
            "a wedding aisle",
        ),
    ),
    "bluegrass": GenrePhrases(
        (
            "bluegrass",
            "bluegrass music",
            "Appalachian bluegrass",
            "bluegrass picking",
            "old-time string band music",
        ),
        ("bluegrass tune", "bluegrass number", "bluegrass breakdown", "string band tune"),
        ("a barn dance", "a front porch", "a mountain fair", "a hayride", "a chase on a farm"),
    ),
    "lullaby": GenrePhrases(
        ("lullaby music", "cradle music", "bedtime music", "music-box-like lullaby music", "nursery music"),
        ("lullaby", "cradle song", "bedtime tune", "nursery tune"),
        ("a baby's bedroom", "bedtime", "a sleeping child", "a nursery mobile", "a goodnight story"),
    ),
    "chamber music": GenrePhrases(
        ("chamber music", "classical chamber music", "chamber ensemble music", "music for a small ensemble"),
        ("chamber piece", "chamber work", "chamber music movement", "piece for a small ensemble"),
        ("a recital room", "a salon", "an intimate concert", "a museum", "a period drama"),
    ),
    "cinematic": GenrePhrases(
        ("cinematic music", "film music", "soundtrack music", "cinematic", "film score music", "movie music"),
        ("film score cue", "cinematic piece", "soundtrack cue", "cinematic track", "movie theme"),
        (
            "a film trailer",
            "the opening titles of a film",
            "a video game cutscene",
            "a documentary",
            "a plot twist",
        ),
    ),
    "ska": _Dance(
        ("ska", "ska music", "offbeat ska", "Jamaican ska", "ska with an offbeat skank"),
        ("ska tune", "ska track", "ska number", "ska song"),
        ("a street parade", "a skate park", "a dance hall", "a summer party", "jumping up and down"),
        ("sixties-style", "old-school"),
    ),
    "salsa": _Dance(
        ("salsa", "salsa music", "latin dance music", "Cuban-style salsa", "latin music"),
        ("salsa tune", "salsa number", "latin dance tune", "salsa track"),
        ("a salsa night", "a street carnival", "a dance class", "a party in Havana", "a summer street party"),
    ),
    "folk": GenrePhrases(
        ("folk", "folk music", "traditional folk music", "rural folk music", "folk-style music"),
        ("folk tune", "folk piece", "folk song without words", "traditional-sounding tune", "folk melody"),
        ("a campfire", "a village festival", "a walk in the hills", "a pub session", "a cabin in the woods"),
    ),
    "country": GenrePhrases(
        (
            "country",
            "country music",
            "country-and-western",
            "Nashville-style country",
            "American country music",
        ),
        ("country tune", "country song", "country track", "country instrumental", "country number"),
        ("a pickup truck on a back road", "a barn dance", "a ranch", "a honky-tonk bar", "a county fair"),
    ),
    "chiptune": _Electronic(
        (
            "chiptune",
            "chiptune music",
            "8-bit music",
            "retro video game music",
            "chip music",
            "8-bit chiptune",
        ),
        ("chiptune", "8-bit tune", "chiptune track", "retro game theme", "8-bit video game track"),
        (
            "a platform game",
            "an arcade cabinet",
            "a pixel-art adventure",
            "a handheld console",
            "the title screen of a retro game",
        ),
        ("eighties-style", "old-school"),
    ),
    "drum and bass": _Dance(
        (
            "drum and bass",
            "dnb",
            "drum & bass",
            "drum and bass music",
            "drum n bass",
            "breakbeat drum and bass",
        ),
        ("drum and bass track", "dnb track", "drum & bass tune", "drum and bass roller", "breakbeat track"),
        (
            "a racing game",
            "a late-night drive through the city",
            "a rave in an old factory",
            "a skate video",
            "a bass-heavy club",
        ),
        electronic=True,
    ),
    "synthwave": _Electronic(
        ("synthwave", "synthwave music", "retrowave", "outrun synth music", "retro synth music"),
        ("synthwave track", "retrowave track", "synthwave tune", "outrun track", "retro synth piece"),
        (
            "a neon-lit night drive",
            "an old science-fiction film",
            "a sunset over the highway",
            "an arcade",
            "a retro racing game",
        ),
        ("eighties-style", "1980s-style", "80s"),
    ),
    "disco": _Dance(
        ("disco", "disco music", "dance-floor disco", "club disco", "classic disco"),
        ("disco track", "disco tune", "disco groove", "disco number", "disco record"),
        (
            "a mirror ball",
            "a roller disco",
            "a wedding dance floor",
            "a glittering night club",
            "a dance party",
        ),
        ("seventies-style", "1970s-style"),
        four_on_the_floor=True,
    ),
    "trap": _Electronic(
        ("trap", "trap music", "trap beats", "instrumental trap"),
        ("trap beat", "trap track", "trap instrumental"),
        ("a night in the city", "a car with big speakers", "a workout"),
    ),
    "soul": GenrePhrases(
        ("soul", "soul music", "rhythm and blues", "old-school soul"),
        ("soul tune", "soul track", "soul number", "soul ballad without words"),
        ("the last dance", "a record shop", "a Sunday morning kitchen"),
        ("sixties-style",),
    ),
    "ragtime": GenrePhrases(
        ("ragtime", "ragtime music", "old-time ragtime"),
        ("rag", "ragtime piece", "ragtime tune"),
        ("a silent film", "a saloon", "an old-time piano bar"),
        ("early 1900s", "turn-of-the-century"),
    ),
    "tango": _Dance(
        ("tango", "tango music", "Argentine tango", "Argentine tango music"),
        ("tango", "Argentine tango", "tango tune", "tango piece"),
        ("a dance hall in Buenos Aires", "a dramatic dance scene", "a late-night milonga"),
    ),
    "celtic": GenrePhrases(
        ("celtic music", "Irish folk music", "celtic folk", "traditional Irish-style music"),
        ("celtic tune", "Irish-style tune", "celtic folk tune", "celtic air"),
        ("an Irish pub", "green hills by the sea", "a ceilidh"),
    ),
    "march": GenrePhrases(
        ("march music", "marching band music", "military-style march music"),
        ("march", "military-style march", "parade march"),
        ("a parade", "a marching band", "a national holiday"),
    ),
}

# Music of the genre "acoustic guitar" that is played on a harp, koto or dulcimer.
PLUCKED = GenrePhrases(
    ("plucked string music", "acoustic music", "music for plucked strings", "quiet acoustic music"),
    ("acoustic piece", "piece for plucked strings", "acoustic tune"),
    ("a quiet cafe", "a porch at dusk", "a garden", "a tea house"),
)
