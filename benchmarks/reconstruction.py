"""Reconstruction quality of the autoencoder, compared with Opus at 12 and 24 kbit/s on composed test clips.

    python benchmarks/reconstruction.py --model mini

Opus is libsndfile's (24 kHz mono, variable rate by default) and is decoded by the same library, which keeps
the clips aligned; the table states the measured rate including the container. ViSQOL is visqol-python's in
audio mode at 48 kHz, on the first `--visqol_clips` clips, because it is slower than real time. Takes about 10
minutes on two cores.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import soundfile
import soxr
import tyro
from tqdm import tqdm
from visqol import VisqolApi

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.evaluation import composed_prompts, fidelity, reconstruction
from melody_jax.models import vae
from melody_jax.sampling.cascade import load

OPUS_RATES = (12, 24)  # kbit/s


@dataclass(frozen=True)
class Arguments:
    """Compares a released autoencoder with Opus."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Folder of releases; default: the packaged ones."""
    out: Path = Path(__file__).parents[1] / "docs" / "evaluation"
    """Folder of the table."""
    stride: int = 5
    """Step through the list of prompts: 5 gives 32 clips, two of each group."""
    visqol_clips: int = 16
    """Clips that ViSQOL scores."""


def opus(clip: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """Encodes and decodes a clip (T,) at about `rate` kbit/s: the decoded clip and the rate of the file."""
    buffer = io.BytesIO()
    level = (256 - rate) / 250  # libsndfile maps level 0 to 256 and level 1 to 6 kbit/s per channel
    soundfile.write(buffer, clip, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    size = len(buffer.getvalue())
    buffer.seek(0)
    decoded = soundfile.read(buffer, dtype="float32")[0]
    return decoded[: len(clip)], 8 * size * SAMPLE_RATE / len(clip) / 1000


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    melody = load(arguments.model, folder=arguments.folder, networks=("vae",))
    params = melody.params["vae"]
    config = melody.configs["vae"]
    samples = round(composed_prompts.SECONDS * SAMPLE_RATE)
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)[:: arguments.stride]
    truth = np.stack(
        [composed_prompts.ground_truth(p, i, samples) for i, p in enumerate(tqdm(prompts, desc="truth"))]
    )
    code = jax.jit(lambda clip: vae.decode(params, config, vae.encode(params, config, clip)))
    coded = {"vae": np.concatenate([np.asarray(code(clip[None])) for clip in tqdm(truth, desc="vae")])}
    rates = {}
    for rate in OPUS_RATES:
        pairs = [opus(clip, rate) for clip in truth]
        coded[f"opus {rate}"] = np.stack([clip for clip, _ in pairs])
        rates[f"opus {rate}"] = float(np.mean([measured for _, measured in pairs]))
    api = VisqolApi()
    api.create(mode="audio")
    rows = []
    for name, clips in coded.items():
        pairs = list(zip(truth, clips, strict=True))[: arguments.visqol_clips]
        scores = [visqol(api, original, clip) for original, clip in tqdm(pairs, desc=f"visqol, {name}")]
        rows.append(
            {
                "codec": name,
                "kbit_s": rates.get(name),
                "log_mel_l1": reconstruction.log_mel_l1(clips, truth),
                "si_sdr_db": reconstruction.si_sdr(clips, truth),
                **mean_fidelity(clips, truth),
                "visqol": float(np.mean(scores)),
            }
        )
    report(arguments, rows, len(truth))


def mean_fidelity(clips: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The mean of each measure in `fidelity.TITLES` that is defined for any of the clips (N, T)."""
    pairs = zip(clips, truth, strict=True)
    rows = [fidelity.measures(clip, original, aligned=True) for clip, original in pairs]
    columns = {name: np.asarray([row[name] for row in rows]) for name in fidelity.TITLES}
    return {name: interval.value for name, interval in fidelity.summarise(columns).items()}


def visqol(api: VisqolApi, original: np.ndarray, clip: np.ndarray) -> float:
    """MOS-LQO of a clip (T,), 1 to about 4.7."""
    resampled = [soxr.resample(x.astype(np.float64), SAMPLE_RATE, 48000) for x in (original, clip)]
    return float(api.measure_from_arrays(*resampled, 48000).moslqo)


def report(arguments: Arguments, rows: list[dict], clips: int) -> None:
    """Prints the table and writes it as Markdown and JSON."""
    table = [
        f"{clips} clips of {composed_prompts.SECONDS} s; ViSQOL on the first {arguments.visqol_clips}.",
        "",
    ]
    table += [
        "| codec | kbit/s | log-mel L1, nepers | SI-SDR, dB | ViSQOL | "
        + " | ".join(fidelity.TITLES.values())
        + " |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(fidelity.TITLES),
    ]
    for row in rows:
        rate = f"{row['kbit_s']:.1f}" if row["kbit_s"] else "-"
        table.append(
            f"| {row['codec']} | {rate} | {row['log_mel_l1']:.3f} | {row['si_sdr_db']:.2f} | {row['visqol']:.2f} | "
            + " | ".join(f"{row[name]:.3g}" if name in row else "" for name in fidelity.TITLES)
            + " |"
        )
    text = "\n".join(table) + "\n"
    print(text)
    file = arguments.out / f"reconstruction-{arguments.model}"
    file.with_suffix(".md").write_text(text)
    file.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
