"""A page to listen to: `index.html` with a player, a spectrogram and the metrics of each chosen piece.

The page is static and loads nothing from the network: sounds and spectrograms are in `<out>/pieces`. All text
is escaped.
"""

import html
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from melody_jax import audio, files
from melody_jax.audio_format import fits_flac
from melody_jax.evaluation.clips import ClipSet
from melody_jax.evaluation.reconstruction import log_mel
from melody_jax.evaluation.sound import Sound
from melody_jax.files import write_bytes

STYLE = """
body { font-family: sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
section { display: grid; grid-template-columns: 26em 1fr; gap: 0 1.5em; border-top: 1px solid #ccc; padding: 1em 0; }
img { width: 26em; height: 7em; image-rendering: auto; } audio { width: 26em; }
h2 { font-size: 1em; margin: 0; word-break: break-all; } p { margin: .3em 0; }
table { border-collapse: collapse; font-size: .85em; } td { padding: 0 1em 0 0; }
pre { font-size: .85em; overflow: auto; }
"""
PIECE = re.compile(r"\d{6,}\.(png|flac|wav)")
"""Name of a file of a page."""
SILENT = np.log(0.1)
"""Log-mel level below which a spectrogram's loudest point stays dark, about 20 dB above the floor of silence."""


def write(out: Path, result: dict[str, Any], clips: ClipSet, chosen: list[int], seconds: float) -> None:
    """Writes the page with the pieces of the result at the indices `chosen`. Raises `UserError` if that
    fails."""
    from melody_jax.evaluation.report import markdown

    folder = out / "pieces"
    files.make_folder(folder)
    by_name = {clip.name: clip for clip in clips.clips}
    sections = []
    linked: set[str] = set()
    for number in chosen:
        piece = result["pieces"][number]
        clip = by_name[piece["clip"]]
        sound = clip.read().part(piece["start"], seconds)
        rate = sound.audio_format.sample_rate
        player = f"{number:06d}{'.flac' if fits_flac(rate) else '.wav'}"
        audio.write(folder / player, sound.samples, rate)
        write_bytes(folder / f"{number:06d}.png", spectrogram(sound))
        linked |= {player, f"{number:06d}.png"}
        sections.append(_section(f"pieces/{number:06d}.png", f"pieces/{player}", piece, clip.prompt))
    _remove_others(folder, linked)
    title = html.escape(f"Evaluation of {clips.name}")
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<pre>{html.escape(markdown(result))}</pre>
{"".join(sections)}</body></html>
"""
    write_bytes(out / "index.html", text.encode())


def _remove_others(folder: Path, names: set[str]) -> None:
    """Removes the players and pictures of an earlier page: files of the folder with other names than these."""
    for file in folder.iterdir():
        if PIECE.fullmatch(file.name) and file.name not in names:
            file.unlink()


def _section(picture: str, player: str, piece: dict[str, Any], prompt: str) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>"
        for name, value in piece.items()
        if name not in ("clip", "start") and value is not None
    )
    return f"""<section><div><img src="{quote(picture)}" alt="spectrogram">
<audio controls preload="none" src="{quote(player)}"></audio></div>
<div><h2>{html.escape(piece["clip"])}, from {piece["start"]:g} s</h2><p>{html.escape(prompt)}</p>
<table>{cells}</table></div></section>
"""


def spectrogram(sound: Sound) -> bytes:
    """A PNG of the log-mel spectrogram of a clip: time to the right, colours over the top 80 dB, left above right."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.image

    rate = sound.audio_format.sample_rate
    channels = np.asarray(sound.samples, np.float32).reshape(len(sound.samples), -1).T
    levels = np.concatenate([one.T[::-1] for one in log_mel(channels, sample_rate=rate)])
    top = max(levels.max(), SILENT)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, levels, vmin=top - np.log(1e4), vmax=top, cmap="magma", format="png")
    return buffer.getvalue()
