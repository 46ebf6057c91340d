"""Files of arrays: what is written is read, and nothing else is read, allocated or waited for."""

import io
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.evaluation import diagnose, embed_clips, group_judge, metrics
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.evaluation.diagnose import DiagnoseConfig
from melody_jax.evaluation.npz import DAMAGED, read_npz, write_npz


def member(header: str, data: bytes = b"") -> bytes:
    """A .npz with one array "mu" of this header."""
    text = header.encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mu.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return buffer.getvalue()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = {
        "a/b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "n": np.int64([[1], [2]]),
        "empty": np.zeros((0, 4), np.float32),
        "one": np.asarray(2.5),
    }
    write_npz(tmp_path / "new" / "a.npz", arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for file in ("new/a.npz", "b.npz"):
        read = read_npz(tmp_path / file, ("n", "one"))
        assert list(read) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype
            assert read[name].flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .npz file"),
        (b"PK", "not a zip file"),
        (member("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}"), "in 0 bytes"),
        (member("{'descr': '|V0', 'fortran_order': False, 'shape': (10000000000000,)}"), "in 0 bytes"),
        (member("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), r"shape \(-1,\)"),
        (
            member("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n"),
            "Python objects",
        ),
        (member("{'descr': '<f8', 'shape': (("), "not a .npz file"),
        (member("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "no array 'sigma'"),
    ],
)
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_npz(file, ("mu", "sigma"))
    assert str(error.value).startswith(f"{file}: ")
    with pytest.raises(UserError, match=r"not statistics of a reference, a \.npz with \"mu\""):
        metrics.read_moments(file)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"mu": np.arange(8.0)})
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(np.float64(5).tobytes()) + 6] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged; delete it, and its content is measured again .*CRC"):
        read_npz(tmp_path / "a.npz", problem=DAMAGED)


def test_pipes_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe", "folder", "missing"):
        with pytest.raises(UserError, match=f"{name}.npz: (not a regular file|is a folder|cannot be read)"):
            metrics.read_moments(tmp_path / f"{name}.npz")


def test_damaged_caches_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = member("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}")
    group_judge.statistics_file(tmp_path, 1).write_bytes(huge)
    with pytest.raises(UserError, match=r"\.npz: damaged; delete it, .*in 0 bytes"):
        group_judge.training_statistics(tmp_path, 1)
    (tmp_path / "a.npz").write_bytes(huge)
    with pytest.raises(UserError, match=r"\.npz: damaged; delete it, .*in 0 bytes"):
        embed_clips._read([tmp_path / "a.npz"])
    monkeypatch.setattr(diagnose, "_measure_batch", lambda *_: {"truth/tempo": np.zeros(1)})
    prompt = ComposedPrompt(group="jazz", text="jazz", seed=0, tempo_bpm=60.0, rhythmic=True)
    config = DiagnoseConfig(cache=str(tmp_path))
    with pytest.raises(UserError, match=r"damaged; delete it, .*no array 'truth/statistics'"):
        diagnose._measure_stages(config, SimpleNamespace(hashes={}), SimpleNamespace(sha256=""), [prompt])
