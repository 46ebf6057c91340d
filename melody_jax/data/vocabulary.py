"""The text vocabulary: MiniLM's WordPiece vocabulary pruned to what music prompts need.

`vocab.txt` beside this file was made from the 30,522 entries of `all-MiniLM-L6-v2` (Apache-2.0, the vocabulary of
`bert-base-uncased`) by

    python -m melody_jax.data.vocabulary PATH/TO/minilm/vocab.txt

which keeps, in the original order: the special tokens, every ASCII character alone and as a continuation, the numbers
to 200 and the decades, every piece that the full vocabulary needs for `MUSIC_WORDS` and for the composer's captions,
and then the most frequent entries (the original ids are roughly ordered by frequency) until `SIZE`. Greedy longest-match
tokenization of a text whose pieces were all kept is the same as with the full vocabulary; other words fall into
shorter pieces, never into an unknown token.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from melody_jax.data.text import VOCABULARY_FILE, tokenizer
from melody_jax.errors import UserError

SIZE = 7680
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

MUSIC_WORDS = """
accordion acoustic acid adagio aeolian afrobeat aggressive airy allegro alternative ambient analog analogue andante anthem anthemic
anxious apocalyptic aria arpeggio arpeggiated arpeggios atmospheric atonal augmented autumn avant bachata background bagpipe
bagpipes ballad ballet ballroom balearic banjo bar barbershop baritone baroque bars bass bassline bassoon bassy battle beach beat beats
bebop bell bells big bittersweet blast bleak blissful blue bluegrass blues bluesy boogie bolero bongo bongos bossa bouncy bow bowed
brass brassy brazilian break breakbeat breakdown breathy bridge bright brisk broken brooding brushed brushes bubbly busy cabaret cadence
cafe calm calming calypso campfire candlelit caribbean carnival cartoon catchy celebratory celesta cello cellos celtic ceremonial chamber
chanson chaotic charleston chase cheerful cheesy chilled chill chillout chillwave chime chimes chip chiptune choir choral chord chords
chorus chromatic christmas church cinematic clap claps clarinet classic classical claves clavinet clean clear climactic climax clipped club
coda coffee cold comic commercial compressed compound concerto confident conga congas contemplative contemporary contrabass cool corporate
counterpoint country cowbell crash crescendo crisp croon crunchy crystal cuban cumbia cyberpunk cymbal cymbals dance dancehall danceable
danceclub dancing dark darkwave deep delay delicate delta demo dense desert desolate detuned didgeridoo digital dinner disco dissonant distant
distorted distortion dixieland documentary dominant doom dorian downbeat downtempo dramatic dreamy dreampop driving drone droning drop drum
drummer drumbeat drumming drums dry dub dubby dubstep duet dulcimer dungeon dynamic eastern easy echo echoes echoing edgy edm eerie elated
electric electro electronic electronica electropop elegant elegiac elevator emo emotional energetic energy energizing enchanted english
ensemble epic erhu erratic esoteric ethereal ethnic euphoric euphonium evening evocative exciting exotic experimental exotica
expressive fairground fairytale fanfare fantasy fast fearful feel feeling festive fiddle fiery fill fills film finale fingerpicked
fingerstyle fireside flamenco flat flowing flugelhorn flute flutes folk folktronica folky foreboding forest forlorn forte fortissimo
fragile frantic freestyle french fretless frenetic fretted funereal fugue fun funk funky fusion futuristic fuzz fuzzy gabber gamelan garage game games
gentle gigue ghostly glacial glass glide glitch glitchy glittering glockenspiel gloomy gong gospel gothic grand grandiose grime
gritty groove grooves grooving groovy grunge grungy guitar guitars gypsy halftime half hall hammond happy happiness hard hardcore hardstyle
harmonic harmonica harmonies harmonious harmony harp harpsichord harsh haunted haunting hawaiian hazy headbanging heartbeat heartbroken
heartfelt heartwarming heavy heroic hiccup highlife hihat hihats hat hats hip hissing holiday honky hook hop hopeful hornpipe horn horns horror house humming
humorous hymn hypnotic hypnotizing idm impressionist improvisation improvised indie indietronica industrial infectious inspiring inspirational instrument
instrumental instruments intense interlude intimate intro introspective irish ironic italo jam jangly japanese jazz jazzy jig jingle jolly joyful
joyous jubilant jumpy jungle kalimba kettle key keyboard keyboards keys kick kit klezmer koto krautrock laidback lament largo latin lazy
layered lead legato lento light lighthearted lively live lo lofi lonely longing lonesome loop looped looping lounge loud love lullaby lush lute
lydian lyrical machine madrigal magical majestic major mallet mallets mambo mandolin marching march mariachi marimba march martial mazurka
meandering measures medieval meditation meditative mellotron mellow melodic melodica melodies melody melancholic melancholy menacing merengue
merry metal metallic meter metre metronome mexican mid middle midi midnight midtempo military minimal minimalist minor minuet mischievous misty mixolydian
mode moderate moderato modern modes modular monotone monotonous montage mood moods moody motif mournful movie muffled music musical muted
mysterious mystical narrative nature neoclassical neon nervous new night nighttime nocturnal nocturne noir noise noisy nostalgia
nostalgic note notes nova novelty nursery nylon oboe ocarina oceanic octave octaves offbeat oldies ominous oom open opening opera operatic
optimistic orchestra orchestral organ oriental ornate ostinato otherworldly outro overdrive overdriven overture pad pads panning pan panicked
paranoid parlor party passionate pastoral pathos patriotic peaceful pedal pensive pentatonic percussion percussive perky phaser phrase phrases phrygian
pianissimo pianist piano piccolo picked piercing pipa pipe pipes pitch pizzicato plaintive playful plodding pluck plucked plucks plucky plunderphonics poignant
polka polonaise polyphonic polyrhythm polyrhythmic pop poppy portamento powerful power prelude pretty primal processional prog progressive promenade
propulsive psychedelic psytrance pulse pulsing pulsating pumping punchy punk punky quarter quartet quick quiet quintet quirky ragga ragtime rainy
raw rave rebellious recorder reed reeds reel reflective refrain reggae reggaeton regal relaxed relaxing remix renaissance repetitive repeated resolute resonant
resounding restless restrained retro reverb reverberant reversed revolutionary rhapsody rhodes rhumba rhythm rhythms rhythmic rich riff riffs riser
ritual robotic rock rockabilly rocking rocksteady rollicking rolling romance romantic romp rondo room roomy roots rough rousing royal rumba
rumbling rural russian rustic sad sadness salsa samba sampled sampler sarabande sardonic sarod sassy saturated sawtooth saw sax saxophone saxophones
scale scales scary scherzo scifi score scottish searing section sensual sensuous sentimental sequence sequencer serene serenade serious sexy shaker shakers
shamanic shamisen shanty sharp shimmering shoegaze shuffle shuffled sidechain sidechained sinister singer sitar ska skank sketchy
sleepy sleigh slap slapping slick sliding slide slow slower sludge slinky smoky smooth snappy snare snares snowy soaring sober soft
softly solemn solo solos sombre somber sonata song songs soothing soprano sorrow sorrowful soul soulful sound soundscape soundscapes soundtrack
sousaphone spacey spacious space spanish sparkling sparkly sparse speed spiccato spiritual spooky sporty spring spy square
staccato stadium stately static steady steel steelpan stirring stomp stomping stoner storm strange stride string strings stripped strolling
strong strummed strumming stutter sub subdued sublime subtle suite sultry summer sunny sunrise sunset surf surging surreal
suspense suspenseful sustained swagger swampy sweeping sweet sweeping swelling swing swinging swung swirling symphonic symphony syncopated syncopation synth synthesized synthesiser synthesizer
synthesizers synthpop synths synthwave tabla tambourine tango techno tempo tender tenor tense tension texture textured textures theme theremin thoughtful
thrash threatening thrilling throbbing thumping thunderous ticking tight timbale timbales timbre timpani tinkling tinny tom toms tonal tonic toy traditional
tragic trailer trance tranquil trap traverso tremolo triangle tribal triumphant trip triplet triplets trombone tropical trumpet trumpets tuba tubular tune tunes turkish
turntable twang twangy twinkling two ukulele unaccompanied underscore underwater uneasy unhurried unison unplugged upbeat uplifting upright urban urgent vamp vampy vaporwave variations vast vaudeville
verse verses vibe vibes vibraphone vibrant vibrato victorious videogame vienna vigorous vintage viola violas violin violins virtuosic virtuoso vivace vocal vocals
vocoder voice voices wah waltz waltzing wandering warm warmth warped wavy waves wedding weeping weird weightless whimsical whistle whistling wide
wild wind winds windy winter wistful wobble wobbly wonky wondrous wood woodblock woodwind woodwinds workout worship wry xylophone yearning yodel zen zither zydeco zouk
aerobics airport alien aliens apartment arcade astronaut bath bedtime birthday boss bus castle cave cemetery circus city coast commute cooking countryside credits
cruise dawn detective dragon drama dream dreaming driving dusk fireworks fitness funeral garden gym highway hiking hospital hotel island jungle kitchen laboratory lake library
lobby meadow monk monster moon moonlight morning mountain mountains museum nightclub ocean office park picnic pirate pirates pool prayer quest racing rain restaurant river road roadtrip
rooftop running saloon school sea ship shop shopping skate sleep sleeping snow spa spaceship stars store street study studying suburban sunday train travel trekking
tavern theater theatre tutorial underground vacation vlog village wake walking war wasteland western wilderness yoga youtube zombie zoo
sixties seventies eighties nineties fifties forties thirties twenties noughties century decade era oldschool old school vintage 8bit 8 16 bit 808 909 303 1920s 1930s 1940s 1950s 1960s 1970s
1980s 1990s 2000s 2010s 20s 30s 40s 50s 60s 70s 80s 90s bpm beats per minute dorian lydian locrian c# d# f# g# a# bb eb ab db gb 3/4 4/4 6/8 5/4 7/8 12/8 hz khz db lufs
sparsely densely quietly loudly gently slowly quickly heavily lightly gradually suddenly throughout accompanied backed featuring featured supported followed layered underneath
""".split()


def prune(full: list[str], texts: Iterable[str], size: int = SIZE) -> list[str]:
    """The `size` entries of the vocabulary `full` to keep, in its order; `texts` are those whose pieces must stay.

    Raises:
        UserError: `full` is not BERT's kind of vocabulary, or the pieces that must stay are more than `size`.
    """
    rank = {token: i for i, token in enumerate(full)}
    if missing := [token for token in SPECIAL if token not in rank]:
        raise UserError(f"the vocabulary lacks {missing[0]}: a BERT-style WordPiece vocab.txt is needed")
    ascii_only = [t for t in full if t.isascii() and not (t.startswith("[") and t.endswith("]") and len(t) > 1)]
    kept = set(SPECIAL) | {t for t in ascii_only if len(t.removeprefix("##")) == 1}
    kept |= {t for t in map(str, range(201)) if t in rank} | {f"{y}s" for y in range(1900, 2030, 10) if f"{y}s" in rank}
    full_tokenizer = tokenizer(tuple(full))
    kept |= {t for e in full_tokenizer.encode_batch(list(texts)) for t in e.tokens if t in rank and t.isascii()}
    if len(kept) > size:
        raise UserError(f"{len(kept)} pieces must stay, more than the size of {size}")
    for token in ascii_only:
        if len(kept) == size:
            break
        kept.add(token)
    return sorted(kept, key=rank.__getitem__)


def main() -> None:
    """Writes the packaged vocabulary from the path of MiniLM's `vocab.txt`, the only argument."""
    from melody_jax.data.composer import captions, compose

    facts = [compose.compose(seed).facts for seed in range(2000)]
    spoken = [text for seed, fact in enumerate(facts) for text in captions.captions(fact, seed, 8)]
    full = Path(sys.argv[1]).read_text(encoding="utf-8").split("\n")
    kept = prune([token for token in full if token], [" ".join(MUSIC_WORDS), *MUSIC_WORDS, *spoken])
    VOCABULARY_FILE.write_text("\n".join(kept) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
