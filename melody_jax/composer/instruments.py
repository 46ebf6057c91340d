"""The instruments of the composer: General MIDI program, family, playable range and synthesiser patch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Instrument:
    """One instrument: General MIDI `program` 0..127, `family`, lowest and highest MIDI pitch, synthesiser patch."""

    name: str
    program: int
    family: str
    low: int
    high: int
    synth_patch: str


_TABLE = """
piano                0 keys     24 103 piano
bright piano         1 keys     28 103 piano
honky-tonk piano     3 keys     33 98  piano
electric piano       4 keys     31 98  epiano
FM electric piano    5 keys     33 98  epiano
harpsichord          6 keys     31 89  pluck
clavinet             7 keys     33 88  guitar_muted
celesta              8 bells    60 103 bell
glockenspiel         9 bells    72 105 bell
music box           10 bells    60 96  bell
vibraphone          11 mallets  53 89  mallet
marimba             12 mallets  45 93  mallet
xylophone           13 mallets  65 103 mallet
tubular bells       14 bells    58 79  bell
dulcimer            15 plucked  48 86  pluck
organ               16 organ    36 96  organ
rock organ          18 organ    36 96  organ
church organ        19 organ    31 93  organ
accordion           21 reeds    48 89  reed
harmonica           22 reeds    55 93  reed
acoustic guitar     24 guitar   40 84  guitar
steel guitar        25 guitar   40 86  guitar
jazz guitar         26 guitar   40 86  guitar
electric guitar     27 guitar   40 86  guitar
muted guitar        28 guitar   40 81  guitar_muted
overdriven guitar   29 guitar   38 88  guitar
distorted guitar    30 guitar   35 88  guitar
upright bass        32 bass     28 60  bass_pluck
electric bass       33 bass     28 62  bass_pluck
picked bass         34 bass     28 62  bass_pluck
fretless bass       35 bass     28 62  bass_pluck
slap bass           36 bass     28 62  bass_pluck
synth bass          38 bass     24 62  bass_saw
square bass         39 bass     24 62  bass_square
sub bass            39 bass     24 55  bass_sub
violin              40 strings  55 98  strings
viola               41 strings  48 86  strings
cello               42 strings  36 76  strings
double bass         43 strings  28 60  strings
tremolo strings     44 strings  36 96  strings
pizzicato strings   45 strings  36 93  pluck
harp                46 plucked  28 100 harp
timpani             47 drums    36 57  mallet
strings             48 strings  36 96  strings
slow strings        49 strings  36 94  strings
synth strings       50 pads     36 96  strings
choir               52 voices   43 81  choir
voice               53 voices   48 79  choir
trumpet             56 brass    55 86  brass
trombone            57 brass    40 74  brass
tuba                58 brass    28 58  brass
muted trumpet       59 brass    55 84  brass
french horn         60 brass    41 77  brass
brass section       61 brass    40 84  brass
synth brass         62 synths   40 88  brass
soprano saxophone   64 reeds    56 87  reed
saxophone           65 reeds    50 81  reed
tenor saxophone     66 reeds    44 76  reed
baritone saxophone  67 reeds    36 69  reed
oboe                68 reeds    58 89  reed
english horn        69 reeds    52 81  reed
bassoon             70 reeds    34 74  reed
clarinet            71 reeds    50 89  reed
piccolo             72 flutes   74 103 flute
flute               73 flutes   60 96  flute
recorder            74 flutes   60 93  flute
pan flute           75 flutes   60 96  flute
whistle             78 flutes   67 96  flute
square lead         80 synths   45 96  lead_square
synth lead          81 synths   45 96  lead_saw
soft lead           85 synths   48 91  lead_soft
synth pluck         87 synths   40 96  pluck
glass pad           88 pads     36 91  pad_glass
warm pad            89 pads     36 91  pad_warm
saw pad             90 pads     36 91  strings
choir pad           91 pads     43 84  choir
sweep pad           95 pads     36 91  pad_warm
crystal             98 bells    55 98  bell
sitar              104 plucked  45 84  sitar
banjo              105 plucked  48 86  pluck
koto               107 plucked  48 86  harp
kalimba            108 mallets  55 88  mallet
bagpipes           109 reeds    55 79  reed
fiddle             110 strings  55 93  strings
steel drums        114 mallets  52 88  mallet
chip lead           80 chip     45 96  chip_square
chip arp            80 chip     45 100 chip_square
chip bass           80 chip     28 62  chip_triangle
pedal steel         27 guitar   48 88  lead_soft
drums                0 drums    27 87  chip_noise
"""


def _parse(line: str) -> Instrument:
    *name, program, family, low, high, patch = line.split()
    return Instrument(" ".join(name), int(program), family, int(low), int(high), patch)


INSTRUMENTS: dict[str, Instrument] = {i.name: i for i in map(_parse, _TABLE.strip().splitlines())}
