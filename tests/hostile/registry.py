"""All kinds of hostile input, by name. A module of kinds defines `KINDS` and has one line here."""

from hostile import audio_bytes, corpora, measurements, prompts, releases, run_folders, tables
from hostile.kind import Kind

KINDS: dict[str, Kind] = {
    **audio_bytes.KINDS,
    **corpora.KINDS,
    **tables.KINDS,
    **prompts.KINDS,
    **releases.KINDS,
    **run_folders.KINDS,
    **measurements.KINDS,
}
