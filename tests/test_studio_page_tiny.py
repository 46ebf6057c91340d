"""The page of the studio in a headless Chromium with networks: the release "tiny" of the tests."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.studio_page import (
    TABS,
    card,
    new_take,
    open_tab,
    run_studio,
    set_length,
    sound_of,
    take_of,
    violations,
    visit,
    wait_until,
)

from melody_jax import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(browser: Any, releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `melody studio` with the release "tiny"."""
    with run_studio(releases, tmp_path_factory.mktemp("tiny") / "project") as url:
        yield url


@pytest.fixture(scope="module")
def four(browser: Any, tiny: str) -> list[str]:
    """The ids of four takes that were made by the page of `tiny`, newest first."""
    with visit(browser, tiny) as visited:
        page = visited.page
        page.get_by_role("button", name="a calm solo piano piece").click()
        set_length(page, 4)
        page.get_by_label("Seed").fill("7")
        page.get_by_role("button", name="Make four takes").click()
        page.locator(".take").nth(3).wait_for()
        assert not visited.complaints
        return [card.get_attribute("data-take") for card in page.locator(".take").all()]


def test_prompt_to_four_players(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page
        assert len(four) == 4
        for take_id in four:
            assert "cosine with the prompt" in card(page, take_id).inner_text()
            player = card(page, take_id).locator("audio")
            player.evaluate("audio => { audio.preload = 'auto'; audio.load(); }")
            wait_until(lambda player=player: player.evaluate("audio => audio.readyState") > 0)
            assert player.evaluate("audio => audio.duration") == pytest.approx(4, abs=0.01)
            card(page, take_id).scroll_into_view_if_needed()
            picture = card(page, take_id).locator("img")
            wait_until(lambda picture=picture: picture.evaluate("image => image.naturalWidth") > 0)
        seeds = [take_of(page, tiny, take_id)["seed"] for take_id in four]
        assert seeds == ["10", "9", "8", "7"]


def test_a_variation(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page

        def vary() -> None:
            card(page, four[0]).get_by_role("button", name="Variation …").click()
            card(page, four[0]).get_by_label("Strength").fill("0.3")
            card(page, four[0]).get_by_role("button", name="Make the variation").click()

        take = take_of(page, tiny, new_take(page, vary))
        assert (take["kind"], take["parent"], take["settings"]["strength"]) == ("variation", four[0], 0.3)


def test_other_words_over_the_same_tokens(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page

        def restyle() -> None:
            card(page, four[1]).get_by_role("button", name="Other prompt …").click()
            card(page, four[1]).get_by_label("Other prompt, same tokens").fill("slow sad cello")
            card(page, four[1]).get_by_role("button", name="Make it").click()

        take = take_of(page, tiny, new_take(page, restyle))
        assert (take["kind"], take["settings"]["prompt"]) == ("restyle", "slow sad cello")


def test_a_continuation(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page
        button = card(page, four[0]).get_by_role("button", name="Continue 10 s")
        longer = new_take(page, button.click)
        before = sound_of(page, tiny, four[0])
        after = sound_of(page, tiny, longer)
        assert take_of(page, tiny, longer)["kind"] == "continuation"
        assert len(after) == len(before) + 10 * 24_000
        half = len(before) // 2
        np.testing.assert_array_equal(after[:half], before[:half])


def test_a_region_that_is_dragged_is_mended(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page
        card(page, four[0]).get_by_role("button", name="Mend …").click()
        plot = page.locator("#sound .plot")
        plot.wait_for()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 30, steps=4)
        page.mouse.up()
        begin = float(page.get_by_label("Begin, s").input_value())
        end = float(page.get_by_label("End, s").input_value())
        assert (begin, end) == pytest.approx((1, 2), abs=0.05)
        button = page.get_by_role("button", name="Mend the region")
        mended_id = new_take(page, button.click)
        before = sound_of(page, tiny, four[0])
        mended = sound_of(page, tiny, mended_id)
        assert take_of(page, tiny, mended_id)["settings"]["regions"] == [[begin, end]]
        first, last = round(begin * 24_000), round(end * 24_000)
        np.testing.assert_array_equal(mended[:first], before[:first])
        np.testing.assert_array_equal(mended[last:], before[last:])
        assert (mended[first:last] != before[first:last]).any()


def test_a_typed_region_stays_inside_of_the_sound(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page
        card(page, four[0]).get_by_role("button", name="Mend …").click()
        begin, end = (page.get_by_role("spinbutton", name=name) for name in ("Begin, s", "End, s"))
        begin.fill("-1")
        end.fill("99")
        end.press("Tab")
        assert (begin.input_value(), end.input_value()) == ("0", "4")
        begin.fill("200")
        page.get_by_role("button", name="Mend the region").click()
        page.get_by_role("alert").filter(has_text="Mark the region first").wait_for()
        assert not page.locator(".job").count()


def test_a_form_of_a_take_says_whether_it_is_open(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page
        opener = card(page, four[0]).get_by_role("button", name="Other prompt …")
        opener.click()
        assert opener.get_attribute("aria-expanded") == "true"
        card(page, four[0]).get_by_label("Other prompt, same tokens").fill("   ")
        card(page, four[0]).get_by_role("button", name="Make it").click()
        assert not page.locator(".job").count()
        card(page, four[0]).get_by_label("Other prompt, same tokens").fill("slow sad cello")
        card(page, four[0]).get_by_label("Other prompt, same tokens").press("Enter")
        page.locator(".job").wait_for()
        assert opener.get_attribute("aria-expanded") == "false"
        page.locator(".job").get_by_role("button", name="Cancel").click()


def test_a_file_is_continued(browser: Any, tiny: str, tmp_path: Path):
    path = tmp_path / "humming <b>.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 48_000), 24_000)
    with visit(browser, tiny) as visited:
        page = visited.page
        open_tab(page, "Your sound")
        page.locator("#sound-file").set_input_files(path)
        page.locator("#sound h3", has_text="humming <b>.wav").wait_for()
        box = page.get_by_label("number input for Seconds more")
        box.fill("2")
        box.press("Tab")
        button = page.get_by_role("button", name="Continue", exact=True)
        take = take_of(page, tiny, new_take(page, button.click))
        assert (take["kind"], take["seconds"]) == ("continuation", 4)


def test_a_reload_keeps_the_history(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny) as visited:
        page = visited.page
        page.reload()
        for take_id in four:
            card(page, take_id).wait_for()


def test_the_zip_makes_the_clips_again(
    browser: Any,
    tiny: str,
    four: list[str],
    releases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    with visit(browser, tiny) as visited, visited.page.expect_download() as download:
        visited.page.get_by_role("link", name="Export all as zip").click()
        download.value.save_as(tmp_path / "melody.zip")
    with zipfile.ZipFile(tmp_path / "melody.zip") as archive:
        lines = archive.read("manifest.jsonl").decode().splitlines()
        clips = {take_id: archive.read(f"clips/{take_id}.flac") for take_id in four}
    (tmp_path / "one.jsonl").write_text(next(line for line in lines if json.loads(line)["id"] == four[0]))
    monkeypatch.chdir(tmp_path)
    words = ["sample", "--prompts", "one.jsonl", "--out", "again", "--batch", "1", "--suffix", ".flac"]
    cli.run([*words, "--model", "tiny", "--folder", str(releases)])
    assert (tmp_path / "again" / f"{four[0]}.flac").read_bytes() == clips[four[0]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, tiny: str, four: list[str], scheme: str):
    with visit(browser, tiny, color_scheme=scheme) as visited:
        page = visited.page
        card(page, four[0]).get_by_role("button", name="Mend …").click()
        page.locator("#sound .plot").wait_for()
        severe = {}
        for tab in TABS:
            open_tab(page, tab)
            if tab == "Compare":
                page.get_by_role("button", name="Draw two takes").click()
                page.get_by_label("Play B", exact=True).wait_for()
            severe[tab] = violations(page)
        assert severe == {tab: [] for tab in TABS}


def test_a_phone_does_not_scroll_sideways(browser: Any, tiny: str, four: list[str]):
    with visit(browser, tiny, viewport={"width": 360, "height": 740}) as visited:
        page = visited.page
        card(page, four[0]).get_by_role("button", name="Mend …").click()
        page.locator("#sound .plot").wait_for()
        widths = {}
        for tab in TABS:
            open_tab(page, tab)
            widths[tab] = page.evaluate("document.documentElement.scrollWidth")
        assert widths == dict.fromkeys(TABS, 360)
