"""A picture of a sound: its spectrogram over a logarithmic frequency axis.

T samples, W samples of a frame, F frequencies of a frame, R rows, N columns.
"""

import io
import itertools
import threading

import numpy as np
from jaxtyping import Float, Float32

LOWEST = 40.0
"""Hz of the lowest row."""
ROWS = 180
WINDOW_SECONDS = 0.17
"""Least length of a frame: it resolves the notes of a bass."""
COLUMNS = 600
"""Columns of the longest sounds; each shows the loudest of its frames."""
HOP_SECONDS = 0.02
"""Time between frames."""
FLOOR = 1e-14
"""Power that digital silence is shown with."""
DEPTH = 80.0
"""Range of the colours, dB."""
SILENT = -60.0
"""Level, dB, below which the loudest point of a sound stays dark."""
BLOCK = 256
"""Frames that are transformed at once, which bounds the memory."""
TICKS = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
"""Labelled frequencies, Hz."""
DPI = 96
LABEL_POINTS = 8
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 8, 40
"""Pixels around the plot. The page draws a playhead and regions over the picture (assets/sound.js)."""
_DRAWING = threading.Lock()
"""The fonts of matplotlib are shared by all figures and not for several threads."""


def log_levels(
    samples: Float32[np.ndarray, " T *C"], sample_rate: int
) -> tuple[Float[np.ndarray, "R N"], Float[np.ndarray, " R_plus_1"], float]:
    """Levels of rows of equal ratio from `LOWEST` to half the sample rate, of all channels together.

    Returns:
        the levels in dB, 0 for a sine of full scale, the frequencies in Hz between the rows (R + 1), and the seconds of
        a column.
    """
    channels = np.asarray(samples, np.float32).reshape(len(samples), -1).T
    window = 1 << int(np.ceil(np.log2(WINDOW_SECONDS * sample_rate)))
    hop = round(HOP_SECONDS * sample_rate)
    frames = max(1, -(-len(samples) // hop))
    per_column = -(-frames // COLUMNS)
    edges = np.geomspace(LOWEST, sample_rate / 2, ROWS + 1)
    padded = np.pad(channels, ((0, 0), (window // 2, window // 2 + hop)), mode="constant")
    taper = np.hanning(window).astype(np.float32)
    rows = np.concatenate([_rows(padded, hop, first, min(BLOCK, frames - first), taper, edges, sample_rate)
                           for first in range(0, frames, BLOCK)], axis=1)  # fmt: skip
    missing = -frames % per_column
    columns = np.pad(rows, ((0, 0), (0, missing))).reshape(ROWS, -1, per_column).max(axis=2)
    return 10 * np.log10(columns + FLOOR), edges, per_column * hop / sample_rate


def _rows(
    padded: Float32[np.ndarray, "C T"],
    hop: int,
    first: int,
    count: int,
    taper: Float32[np.ndarray, " W"],
    edges: Float[np.ndarray, " R_plus_1"],
    sample_rate: int,
) -> Float[np.ndarray, "R count"]:
    """The power of `count` frames from frame `first` on, in each row the loudest of its frequencies."""
    window = len(taper)
    begin = first * hop
    part = padded[:, begin : begin + (count - 1) * hop + window]
    framed = np.lib.stride_tricks.sliding_window_view(part, window, axis=1)[:, ::hop]
    power = (np.abs(np.fft.rfft(framed * taper)) ** 2).mean(axis=0) / (taper.sum() / 2) ** 2
    bounds = edges * window / sample_rate
    return np.stack(
        [
            power[:, int(low) : max(int(low) + 1, int(high))].max(axis=1)
            for low, high in itertools.pairwise(bounds)
        ]
    )


def spectrogram_png(
    samples: Float32[np.ndarray, " T *C"], sample_rate: int, width: int = 640, height: int = 240
) -> bytes:
    """A PNG of `width` x `height` pixels with seconds and Hz labelled; any thread may call it.

    samples: at least one, of one or several channels, whose mean power is shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels, edges, column_seconds = log_levels(samples, sample_rate)
    top = max(float(levels.max()), SILENT)
    with _DRAWING:
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        inner = ((width - LEFT - RIGHT) / width, (height - TOP - BOTTOM) / height)
        axes = figure.add_axes((LEFT / width, BOTTOM / height, *inner))
        ticks = [hz for hz in TICKS if LOWEST <= hz <= sample_rate / 2]
        bottom, upper = np.log2(edges[[0, -1]])
        extent = (0.0, levels.shape[1] * column_seconds, float(bottom), float(upper))
        axes.imshow(levels, "magma", vmin=top - DEPTH, vmax=top, origin="lower", aspect="auto", extent=extent)
        axes.set_yticks(np.log2(ticks), [f"{hz / 1000:g}k" if hz >= 1000 else f"{hz}" for hz in ticks])
        axes.set(xlim=(0, len(samples) / sample_rate))
        axes.set_xlabel("seconds", fontsize=LABEL_POINTS)
        axes.set_ylabel("Hz", fontsize=LABEL_POINTS, labelpad=1)
        axes.tick_params(labelsize=LABEL_POINTS)
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    return buffer.getvalue()
