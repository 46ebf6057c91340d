"""How people name moods, and the scenes that go with them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MoodPhrases:
    """Words for one mood.

    `adjectives` stand before a noun, `nouns` follow "full of" or "with a sense of", `scenes` follow "music for".
    `valence` is 1 for bright, -1 for dark, 0 for neither.
    """

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    scenes: tuple[str, ...]
    valence: int


MOODS: dict[str, MoodPhrases] = {
    "happy": MoodPhrases(
        ("happy", "cheerful", "sunny", "cheery", "feel-good", "bright and happy", "good-humoured", "smiling", "merry"),
        ("happiness", "good cheer", "sunshine", "good humour"),
        ("a sunny morning", "a family picnic", "a cooking video", "a children's birthday", "a cheerful advert"),
        1,
    ),
    "joyful": MoodPhrases(
        ("joyful", "joyous", "jubilant", "exuberant", "overjoyed", "elated", "delighted", "very happy"),
        ("joy", "delight", "pure joy", "celebration"),
        ("a wedding celebration", "a street festival", "good news", "the last day of school", "a victory dance"),
        1,
    ),
    "playful": MoodPhrases(
        ("playful", "cheeky", "whimsical", "bouncy", "mischievous", "light-hearted", "quirky", "cute"),
        ("mischief", "playfulness", "fun", "whimsy"),
        ("a cartoon", "kittens chasing a ball", "a puzzle game", "a toy shop", "a funny home video"),
        1,
    ),
    "uplifting": MoodPhrases(
        ("uplifting", "inspiring", "rousing", "optimistic", "heartening", "positive", "encouraging", "elevating"),
        ("optimism", "inspiration", "confidence", "uplift"),
        (
            "a charity campaign",
            "a graduation",
            "reaching the top of a mountain",
            "a motivational talk",
            "a new beginning",
        ),
        1,
    ),
    "triumphant": MoodPhrases(
        ("triumphant", "victorious", "glorious", "majestic and proud", "celebratory", "proud", "grand"),
        ("triumph", "victory", "glory", "pride"),
        ("winning the final", "a victory parade", "crossing the finish line", "an award ceremony", "a coronation"),
        1,
    ),
    "energetic": MoodPhrases(
        ("energetic", "high-energy", "lively", "full-on", "vigorous", "pumped-up", "dynamic", "explosive", "hyper"),
        ("energy", "drive", "adrenaline", "vigour"),
        ("a workout", "a sports montage", "running", "an action scene", "getting pumped before a game"),
        0,
    ),
    "groovy": MoodPhrases(
        ("groovy", "funky-feeling", "head-nodding", "in-the-pocket", "foot-tapping", "swaggering", "cool"),
        ("groove", "swagger", "attitude", "rhythm"),
        ("dancing in the kitchen", "a fashion video", "cruising around town", "a house party warming up"),
        1,
    ),
    "aggressive": MoodPhrases(
        ("aggressive", "angry", "furious", "brutal", "fierce", "raging", "violent", "hard-hitting", "savage"),
        ("anger", "rage", "aggression", "fury"),
        ("a fight scene", "a demolition derby", "breaking things", "a boss battle", "letting off steam"),
        -1,
    ),
    "epic": MoodPhrases(
        ("epic", "grandiose", "monumental", "larger-than-life", "sweeping", "cinematic and epic", "huge", "mighty"),
        ("grandeur", "epic scale", "awe", "might"),
        ("a battle scene", "a blockbuster trailer", "armies on the march", "a space odyssey", "the final level"),
        0,
    ),
    "calm": MoodPhrases(
        ("calm", "tranquil", "hushed", "placid", "soothing", "gentle", "restful"),
        ("calm", "tranquillity", "quiet", "stillness"),
        ("reading a book", "winding down", "a quiet evening at home", "a spa", "a lazy morning"),
        1,
    ),
    "peaceful": MoodPhrases(
        ("peaceful", "serene", "blissful", "tender and peaceful", "pastoral", "gentle", "at-peace", "soothing"),
        ("peace", "serenity", "quiet contentment", "harmony"),
        ("a lake at dawn", "a garden in spring", "a sleeping baby", "a nature documentary", "meditation"),
        1,
    ),
    "relaxed": MoodPhrases(
        ("relaxed", "relaxing", "chilled", "laid-back", "easygoing", "mellow", "chill", "easy-listening", "loose"),
        ("relaxation", "ease", "easy living", "chill vibes"),
        ("a lazy Sunday", "lying in a hammock", "the end of a working day", "a coffee break", "cooking dinner"),
        1,
    ),
    "dreamy": MoodPhrases(
        ("dreamy", "dreamlike", "floating", "hazy", "ethereal", "airy", "weightless", "misty"),
        ("dreams", "wonder", "weightlessness", "daydreams"),
        ("staring at the clouds", "a daydream", "drifting off to sleep", "a dream sequence", "a starry sky"),
        1,
    ),
    "romantic": MoodPhrases(
        ("romantic", "loving", "tender", "passionate", "affectionate", "heartfelt", "intimate", "warm-hearted"),
        ("love", "romance", "tenderness", "longing and love"),
        ("a candlelit dinner for two", "a love scene", "a wedding proposal", "Valentine's Day", "a moonlit walk"),
        1,
    ),
    "nostalgic": MoodPhrases(
        ("nostalgic", "wistful", "bittersweet", "reminiscent", "sentimental", "old-times", "homesick", "yearning"),
        ("nostalgia", "memories", "bittersweet longing", "old times"),
        (
            "looking through old photographs",
            "memories of childhood",
            "a home movie",
            "the end of summer",
            "an old friend",
        ),
        0,
    ),
    "hopeful": MoodPhrases(
        ("hopeful", "optimistic", "promising", "gently uplifting", "warm and hopeful", "looking-forward", "trusting"),
        ("hope", "promise", "new hope", "quiet optimism"),
        (
            "a sunrise",
            "a new start",
            "a story with a happy ending",
            "a first day of spring",
            "recovering after an illness",
        ),
        1,
    ),
    "sad": MoodPhrases(
        (
            "sad",
            "sorrowful",
            "mournful",
            "tearful",
            "gloomy",
            "heartbroken",
            "unhappy",
            "grieving",
            "downcast",
            "doleful",
        ),
        ("sadness", "sorrow", "grief", "heartbreak"),
        (
            "a funeral scene",
            "a goodbye",
            "a rainy afternoon by the window",
            "the saddest scene of a film",
            "a broken heart",
        ),
        -1,
    ),
    "melancholic": MoodPhrases(
        (
            "melancholic",
            "melancholy",
            "pensive",
            "wistful",
            "brooding",
            "blue",
            "autumnal",
            "lonely",
            "sombre",
            "moody",
        ),
        ("melancholy", "wistfulness", "quiet sorrow", "loneliness"),
        ("an autumn walk", "a lonely night", "rain on the window", "missing someone", "an empty train station"),
        -1,
    ),
    "dark": MoodPhrases(
        ("dark", "ominous", "sinister", "menacing", "grim", "shadowy", "brooding", "murky", "bleak"),
        ("darkness", "menace", "dread", "shadows"),
        ("a horror film", "a crime thriller", "a villain's entrance", "a dark alley", "a haunted dungeon"),
        -1,
    ),
    "tense": MoodPhrases(
        ("tense", "suspenseful", "nervous", "anxious", "edgy", "restless", "nail-biting", "uneasy", "on-edge"),
        ("tension", "suspense", "nerves", "anxiety"),
        ("a chase scene", "a spy thriller", "a ticking bomb", "a heist", "a countdown"),
        -1,
    ),
    "mysterious": MoodPhrases(
        ("mysterious", "enigmatic", "secretive", "strange", "cryptic", "puzzling", "intriguing", "arcane"),
        ("mystery", "intrigue", "secrets", "the unknown"),
        ("a detective story", "exploring ancient ruins", "a foggy forest", "a magic trick", "an unsolved case"),
        -1,
    ),
    "eerie": MoodPhrases(
        ("eerie", "creepy", "spooky", "haunting", "unsettling", "ghostly", "uncanny", "weird", "otherworldly"),
        ("unease", "ghosts", "eeriness", "something uncanny"),
        ("a haunted house", "a ghost story", "Halloween", "an abandoned hospital", "a graveyard at night"),
        -1,
    ),
    "dramatic": MoodPhrases(
        ("dramatic", "theatrical", "intense", "stormy", "emotional and intense", "high-drama", "turbulent", "urgent"),
        ("drama", "intensity", "passion", "high drama"),
        ("a stormy sea", "a courtroom showdown", "a plot twist", "the climax of a film", "a confrontation"),
        -1,
    ),
    "heroic": MoodPhrases(
        ("heroic", "brave", "valiant", "noble", "adventurous", "courageous", "bold", "swashbuckling"),
        ("heroism", "courage", "adventure", "bravery"),
        ("a superhero film", "knights riding out", "an adventure at sea", "saving the day", "a rescue mission"),
        1,
    ),
}
