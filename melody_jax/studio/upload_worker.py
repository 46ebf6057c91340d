"""The process that decodes one upload (uploads.py): `python -m melody_jax.studio.upload_worker`.

It reads limits as JSON from standard input, limits itself, decodes the file `sound` of a folder into the file
`samples`, float32 in the wanted format, and prints {"error", "notes"}. SIGALRM ends it when its time is over.
"""

import json
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

MAX_OUTPUT_BYTES = 1 << 30
"""Size of the largest file that it can write."""


def limit(memory_bytes: int, seconds: int) -> None:
    """Limits this process's address space, processor time, time, files and file size, where the system can."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
    try:
        import resource
    except ModuleNotFoundError:
        return
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MAX_OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (most, most))


def decode(settings: dict[str, Any]) -> list[str]:
    """Writes the samples; returns what warnings say. Raises `UserError` for a file outside of the limits."""
    from melody_jax import audio, audio_decoding
    from melody_jax.errors import InputWarning, UserError

    folder = Path(settings["folder"])
    path = folder / "sound"
    with audio_decoding.open_audio(path) as decoder:
        rate = decoder.rate
    low, high = settings["lowest_rate"], settings["highest_rate"]
    if not low <= rate <= high:
        raise UserError(f"{path}: a sample rate of {rate} Hz; it must be {low} to {high} Hz")
    seconds = audio.seconds(path)
    least, most = settings["min_seconds"], settings["max_seconds"]
    if not least <= seconds <= most:
        raise UserError(f"{path}: lasts {seconds:.2f} s; it must be {least:g} to {most:g} s long")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        samples = audio.read(path, settings["sample_rate"], settings["channels"])
    peak = float(abs(samples).max())
    if peak > audio.LOUDEST_SAMPLE:
        raise UserError(f"{path}: samples of up to {peak:g}; they must be in [-1, 1]")
    with open(folder / "samples", "xb") as file:
        file.write(samples.astype("<f4").tobytes())
    return [str(entry.message) for entry in caught if issubclass(entry.category, InputWarning)]


def main() -> None:
    """Decodes the upload that standard input describes."""
    settings = json.load(sys.stdin)
    limit(settings["memory_bytes"], settings["decode_seconds"])
    from melody_jax.errors import UserError

    error = ""
    notes: list[str] = []
    try:
        notes = decode(settings)
    except UserError as problem:
        error = " ".join(str(problem).split())
    except MemoryError:
        error = f"{Path(settings['folder']) / 'sound'}: takes too much memory to decode; cut it"
    print(json.dumps({"error": error, "notes": notes}))


if __name__ == "__main__":
    main()
