"""Reconstruction quality of the autoencoder, compared with Opus at 12 and 24 kbit/s on composed test clips.

    python benchmarks/reconstruction.py --model mini

Opus is libsndfile's (in the model's format, variable rate by default) and is decoded by the same library, which keeps
the clips aligned; the table states the measured rate including the container. ViSQOL is visqol-python's in
audio mode at 48 kHz, on the first `--visqol_clips` clips, because it is slower than real time. Takes about 10
minutes on two cores.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import soxr
import tyro
from tqdm import tqdm
from visqol import VisqolApi

from melody_jax.audio_format import AudioFormat
from melody_jax.evaluation import composed_prompts, fidelity, reconstruction
from melody_jax.evaluation.sound import Sound
from melody_jax.models import channels, vae
from melody_jax.sampling.cascade import load

OPUS_RATES = {1: (12, 24), 2: (32, 64)}
"""Channels -> kbit/s of all channels."""


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


def opus(clip: np.ndarray, rate: int, form: AudioFormat) -> tuple[np.ndarray, float]:
    """Encodes and decodes a clip at about `rate` kbit/s for all channels: the decoded clip and the rate of the file."""
    buffer = io.BytesIO()
    level = (
        256 - rate / form.channels
    ) / 250  # libsndfile: level 0 is 256 and level 1 is 6 kbit/s per channel
    soundfile.write(buffer, clip, form.sample_rate, format="OGG", subtype="OPUS", compression_level=level)
    size = len(buffer.getvalue())
    buffer.seek(0)
    decoded = soundfile.read(buffer, dtype="float32")[0]
    return decoded[: len(clip)], 8 * size * form.sample_rate / len(clip) / 1000


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    melody = load(arguments.model, folder=arguments.folder, networks=("vae",))
    params = melody.params["vae"]
    config = melody.configs["vae"]
    form = config.audio_format
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)[:: arguments.stride]
    truth = np.stack(
        [
            composed_prompts.ground_truth(p, i, composed_prompts.SECONDS, form)
            for i, p in enumerate(tqdm(prompts, desc="truth"))
        ]
    )
    code = jax.jit(lambda clip: vae.decode(params, config, vae.encode(params, config, clip)))
    coded = {"vae": np.concatenate([np.asarray(code(clip[None])) for clip in tqdm(truth, desc="vae")])}
    rates = {}
    for rate in OPUS_RATES[form.channels]:
        pairs = [opus(clip, rate, form) for clip in truth]
        coded[f"opus {rate}"] = np.stack([clip for clip, _ in pairs])
        rates[f"opus {rate}"] = float(np.mean([measured for _, measured in pairs]))
    api = VisqolApi()
    api.create(mode="audio")
    rows = []
    for name, clips in coded.items():
        pairs = list(zip(truth, clips, strict=True))[: arguments.visqol_clips]
        scores = [visqol(api, original, clip, form) for original, clip in tqdm(pairs, desc=f"visqol, {name}")]
        rows.append(
            {
                "codec": name,
                "kbit_s": rates.get(name),
                "log_mel_l1": reconstruction.log_mel_l1(rows_of(clips), rows_of(truth), form.sample_rate),
                "si_sdr_db": reconstruction.si_sdr(rows_of(clips), rows_of(truth)),
                **mean_fidelity(clips, truth, form),
                "visqol": float(np.mean(scores)),
            }
        )
    report(arguments, rows, len(truth))


def rows_of(clips: np.ndarray) -> np.ndarray:
    """Clips (N, T) or (N, T, 2) as rows (M, T), a row for each channel."""
    return np.asarray(channels.to_rows(jnp.asarray(clips)))


def mean_fidelity(clips: np.ndarray, truth: np.ndarray, form: AudioFormat) -> dict[str, float]:
    """The mean of each measure in `fidelity.TITLES` that is defined for any of the clips (N, T) or (N, T, 2)."""
    pairs = [(Sound(clip, form), Sound(original, form)) for clip, original in zip(clips, truth, strict=True)]
    rows = [fidelity.measures(clip, original, aligned=True) for clip, original in pairs]
    columns = {name: np.asarray([row[name] for row in rows]) for name in fidelity.TITLES}
    return {name: interval.value for name, interval in fidelity.summarise(columns).items()}


def visqol(api: VisqolApi, original: np.ndarray, clip: np.ndarray, form: AudioFormat) -> float:
    """MOS-LQO of a clip, 1 to about 4.7, of the mean of its channels."""
    mono = [Sound(samples, form).mono.astype(np.float64) for samples in (original, clip)]
    reference, degraded = (soxr.resample(samples, form.sample_rate, 48000) for samples in mono)
    return float(api.measure_from_arrays(reference, degraded, 48000).moslqo)


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
