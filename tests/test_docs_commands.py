"""The shell blocks of README, docs/tiny.md and docs/scale.md run as printed, in their order, at `tiny` size.

A block is changed only by the table below: smaller sizes, fewer steps, and nothing that installs or downloads.
"""

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.docs import ROOT, blocks

INSTALLS = re.compile(r"^(apt-get|pip|git|python -m (venv|pytest)).*?(?:&& (?=python sample)|$)\n?", re.M)
SMALLER = (
    (r"melody compose(?!.*soundfonts)", "melody compose --seconds 12 --soundfonts none"),
    (r"--hours (?!0\.1\b)[\d.]+", "--hours 0.3"),  # judges need a hundred held-out pieces of 2 s
    (r"\b(vae|mulan|tokenizer|lm|dpd)_mini\b", r"\1_tiny"),
    (r"(melody train \S+)", r"\1 --steps 4 --eval-every 4 --eval-batches 1"),
    (r"--stage\.text-weights \S+", ""),
    (r"melody prepare(?!.*window-tokens)", "melody prepare --window-tokens 80 --hop-tokens 20"),
    (r"melody export", "melody export --batches 1"),
    (r"--seconds (10|30)\b", "--seconds 3"),
    (r"melody sample --prompts", "melody sample --model mine --folder release --seconds 3 --prompts"),
    (
        r"melody evaluate",
        "melody evaluate --seconds 2 --embedding mine --folder release --draws 20 --listen 2",
    ),
    (r"melody ablate conditioning", "melody ablate tiny_study.py"),
    (r"localhost:9876", "localhost:{port}"),
)
"""Pattern -> what stands in its place."""
TINY_STUDY = """
from melody_jax.ablation.study import Study
from melody_jax.config import load_config
from melody_jax.options import replace_fields


def study() -> Study:
    base = replace_fields(load_config("dpd_tiny"), {"steps": 4, "data.batch_size": 2})
    arms = {"slow": {"optimizer.learning_rate": 1e-3}, "fast": {}}  # equal programs: equal noise with any compiler
    return Study(title="Tiny", question="Does it run?", base=base, arms=arms, metrics=("velocity_mse",), seeds=(0, 1))
"""


def script(page: str, port: int) -> str:
    """The `sh` blocks of a page, one after the other, at `tiny` size."""
    text = "\n".join(blocks(ROOT / page, "sh"))
    text = INSTALLS.sub("", re.sub(r"\\\n\s*", " ", text))
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text.replace("{port}", str(port))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for the README and another for the pages of docs/, where a page goes on with the last one's files."""
    return {place: reader(tmp_path_factory.mktemp("reader")) for place in ("", "docs")}


def reader(folder: Path) -> Path:
    """The folder, where `melody` and `python sample.py` are this checkout's and compile as fast as the tests."""
    arguments = {"melody": ' -c "from melody_jax.cli import main; main()"', "python": ""}
    (folder / "bin").mkdir()
    for name, code in arguments.items():  # a link to the interpreter would lose its virtual environment
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}"{code} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    for name in ("sample.py", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "tiny_study.py").write_text(TINY_STUDY)
    return folder


RESULTS = {
    "docs/tiny.md": ("tiny.wav", "runs/dpd/metrics.jsonl", "release/tiny/dpd.safetensors"),
    "docs/scale.md": ("runs/two/checkpoints/4",),
    "README.md": ("song.wav", "waltz-3.wav", "cello.wav", "clips/manifest.jsonl", "report/index.html"),
}
"""Page -> some of what its commands make."""


@pytest.mark.slow
@pytest.mark.parametrize("page", RESULTS)
def test_commands_run(page: str, folders: dict[str, Path]):
    folder = folders[Path(page).parent.name]
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        commands = script(page, unused.getsockname()[1])
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    result = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert not [name for name in RESULTS[page] if not (folder / name).exists()], result.stderr[-3000:]
