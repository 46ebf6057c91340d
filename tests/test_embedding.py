"""MuLan as an embedding, and embeddings that users bring."""

from pathlib import Path

import numpy as np
import pytest

from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.evaluation import embedding
from melody_jax.evaluation.embedding import MuLan, embedding_width, open_embedding

BROUGHT = """
import numpy as np
from pathlib import Path

class Inner:
    name, files, sample_rate = "levels", (Path(__file__).parent / "weights.bin",), 8000

    def __call__(self, waves):
        return np.stack([np.full(len(waves), waves.shape[1]), np.abs(waves).mean(axis=1)], axis=1)

def embedding():
    return Inner()
"""


def test_mulan_hears_windows_and_averages(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = open_embedding("tiny", releases)
    assert isinstance(result, MuLan)
    monkeypatch.setattr(embedding, "WINDOW", 24_000)
    waves = np.random.default_rng(0).normal(0, 0.1, (2, 50_000)).astype(np.float32)
    points = result(waves)
    windows = [result(waves[:, start : start + 24_000]) for start in (0, 24_000, 26_000)]
    np.testing.assert_allclose(points, np.mean(windows, axis=0), atol=1e-5)
    np.testing.assert_allclose(result(waves[:, :48_000]), np.mean(windows[:2], axis=0), atol=1e-5)
    assert embedding_width(result) == points.shape[1]
    cosines = result.cycle(points, ["a waltz", "jazz"])
    assert cosines.shape == (2,)
    assert np.all(np.abs(cosines) <= 1 + 1e-5)
    np.testing.assert_allclose(cosines[1:], result.cycle(points[1:], ["jazz"]), atol=1e-5)


def test_a_folder_of_releases_does_not_hide_the_packaged_ones(releases: Path) -> None:
    assert open_embedding("mini", releases).sha256 == open_embedding("mini").sha256
    with pytest.raises(UserError, match=f"no released model 'absent' in {releases}"):
        open_embedding("absent", releases)


def test_brought_embedding_has_a_format_and_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1")
    file = tmp_path / "mine.py"
    file.write_text(BROUGHT)
    result = open_embedding(str(file))
    assert result.audio_format == AudioFormat(sample_rate=8000)
    points = result(np.full((3, 8_000), 0.5, np.float32))
    assert points.shape == (3, 2)
    np.testing.assert_allclose(points, [[8000, 0.5]] * 3, atol=0.01)
    assert embedding_width(result) == 2
    assert result.name.startswith("levels (")
    (tmp_path / "weights.bin").write_bytes(b"2")
    assert open_embedding(str(file)).sha256 != result.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "no function embedding"),
        ("def embedding(:", "line 1"),
        ("def embedding(): return 1", "has no name"),
        (BROUGHT.replace("8000", "None"), "sample_rate is None; it must be an int from 1000 to 192000"),
        (BROUGHT.replace("8000", "10**9"), "sample_rate is 1000000000"),
        (BROUGHT.replace("    def __call__", "    channels = 3\n\n    def __call__"), "channels is 3"),
        (BROUGHT.replace("axis=1)\n\n", "axis=0)[0]\n\n"), "returned embeddings of shape"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1")
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(UserError, match=message):
        open_embedding(str(tmp_path / "mine.py"))(np.zeros((3, 24_000), np.float32))
    with pytest.raises(UserError, match="no such file"):
        open_embedding("other.py")
