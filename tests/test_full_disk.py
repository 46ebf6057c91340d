"""A disk that fills while a run saves or writes its metrics: a small tmpfs, in a process and a namespace of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MOUNTED = [
    "unshare",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=4m none "$0" && exec "$@"',
]

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from helpers.toy import ToyBatches, rows, run, toy_config
from helpers.arrays import assert_same
from melody_jax.errors import UserError

disk, last = Path(sys.argv[2]), {}

class Filling(ToyBatches):
    def __next__(self):
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        if last["complete"].exists() and free > last["left"]:
            (disk / "filler").write_bytes(bytes(free - last["left"]))
        return super().__next__()

whole = run(toy_config(disk / "whole"))
shutil.rmtree(disk / "whole")
for left in (0, 20_000):  # no room for a line of metrics; room for some of a checkpoint
    workdir = disk / str(left)
    config = toy_config(workdir, log_every=1, save_every=10)
    last.update(left=left, complete=workdir / "checkpoints" / "20")
    try:
        run(config, Filling())
        raise SystemExit("nothing was said")
    except UserError as error:
        print(json.dumps(str(error)), sorted(path.name for path in (workdir / "checkpoints").iterdir()))
    (disk / "filler").unlink()
    assert_same(run(config), whole)
    assert [row["step"] for row in rows(workdir) if "loss" in row] == list(range(1, 51))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"10", "20", "30", "40", "50"}
    shutil.rmtree(workdir)
"""


def test_full_disk_is_one_line_and_the_last_checkpoint_is_good(tmp_path: Path) -> None:
    probe = subprocess.run([*MOUNTED, str(tmp_path), "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {probe.stderr.strip()}")
    command = [*MOUNTED, str(tmp_path), sys.executable, "-c", SCRIPT, str(TESTS), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        message = json.loads(line[: line.index("[")])
        assert "is full" in message
        assert "\n" not in message
        assert "20 is complete" in message
