"""The page of the studio with a release of MusicLM that follows a melody: a hummed tune becomes four takes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.musiclm import following_networks
from helpers.studio_page import open_browser, open_tab, run_studio, visit, wait_until

from melody_jax import load, release

pytestmark = pytest.mark.slow
RATE = 24_000
SECONDS = 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    for name, (params, config) in following_networks().items():
        release.save_network(root / "hum", name, params, config, {})
    return root


def takes_of(page: Any, url: str) -> list[dict[str, Any]]:
    listed = page.request.get(f"{url}/api/takes").json()["takes"]
    return [page.request.get(f"{url}/api/takes/{take['id']}").json() for take in listed]


def test_a_hummed_tune_becomes_four_takes(folder: Path, tmp_path: Path) -> None:
    tune = 0.3 * np.sin(2 * np.pi * 261.6 * np.arange(RATE) / RATE)
    soundfile.write(tmp_path / "tune.wav", tune, RATE)
    with (
        run_studio(folder, tmp_path / "project", "hum", "musiclm") as url,
        open_browser() as browser,
        visit(browser, url) as visited,
    ):
        page = visited.page
        length = page.get_by_label("number input for Length, seconds").first
        length.fill(str(SECONDS))
        length.press("Tab")
        open_tab(page, "Your sound")
        page.locator("#sound-file").set_input_files(tmp_path / "tune.wav")
        page.locator("#sound h3", has_text="tune.wav").wait_for()
        page.get_by_label("Prompt for the new music").fill("piano")
        page.get_by_role("button", name="Make four that follow its tune").click()
        wait_until(lambda: page.locator(".take").count() == 4)
        takes = takes_of(page, url)
        sound = page.request.get(f"{url}/api/takes/{takes[0]['id']}/sound.flac").body()
        assert not visited.complaints
    assert len({take["settings"]["seed"] for take in takes}) == 4
    settings = {name: takes[0]["settings"][name] for name in ("seconds", "seed")}
    system = load("hum", system="musiclm", folder=folder)
    (led,) = system.generate("piano", melody=tmp_path / "tune.wav", **settings)
    (free,) = system.generate("piano", **settings)
    samples = soundfile.read(io.BytesIO(sound), dtype="float32")[0]
    np.testing.assert_allclose(samples, led, atol=1 / 32_767)
    assert np.abs(samples - free).max() > 0.01
