"""The page of the studio in a headless Chromium: with a system without networks that tests hold up, and with "tiny"."""

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.studio_page import open_browser, open_tab, run_studio, serve_page, visit, wait_until

from melody_jax import cli
from melody_jax.studio.job import JobState
from melody_jax.studio.jobs import JobQueue

pytestmark = pytest.mark.slow
MARKUP = '<img src="/x" onerror="window.hacked=1"><b>bold</b>'
TABS = ("Make", "Your sound", "Story", "Compare")
SEVERE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as started:
        yield started


class Studio:
    """A studio whose system makes a window for each `gate.release`."""

    def __init__(self, url: str, queue: JobQueue, gate: threading.Semaphore) -> None:
        self.url = url
        self.queue = queue
        self.gate = gate

    def finish(self) -> None:
        """Lets all jobs end, and takes back what they did not need."""
        self.gate.release(1000)
        wait_until(lambda: all(job.state.is_final for job in self.queue.jobs()))
        while self.gate.acquire(blocking=False):
            pass


@pytest.fixture(scope="module")
def gated(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    gate = threading.Semaphore(0)
    with serve_page(tmp_path_factory.mktemp("gated") / "project", gate) as (url, queue):
        yield Studio(url, queue, gate)


@pytest.fixture
def studio(gated: Studio) -> Iterator[Studio]:
    """The studio without takes and jobs."""
    for take in gated.queue.project.takes():
        gated.queue.project.delete(take.id)
    yield gated
    gated.finish()


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


def set_length(page: Any, seconds: float) -> None:
    box = page.get_by_label("number input for Length, seconds").first
    box.fill(str(seconds))
    box.press("Tab")


def make(page: Any, prompt: str, button: str = "Make one take") -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.get_by_role("button", name=button).click()
    page.locator(".job").first.wait_for()


def running(queue: JobQueue) -> list[Any]:
    return [job for job in queue.jobs() if job.state == JobState.RUNNING]


def take_of(page: Any, url: str, take_id: str) -> dict[str, Any]:
    return page.request.get(f"{url}/api/takes/{take_id}").json()


def sound_of(page: Any, url: str, take_id: str) -> np.ndarray:
    """The samples of a take, 16-bit integers."""
    body = page.request.get(f"{url}/api/takes/{take_id}/sound.flac").body()
    return soundfile.read(io.BytesIO(body), dtype="int16")[0]


def card(page: Any, take_id: str) -> Any:
    return page.locator(f'[data-take="{take_id}"]')


def new_take(page: Any, action: Any) -> str:
    """The id of the take that an action makes."""
    before = take_ids(page)
    action()
    page.locator(".job").first.wait_for()
    page.locator(".job").first.wait_for(state="detached")
    (take_id,) = take_ids(page) - before
    card(page, take_id).wait_for()
    return take_id


def take_ids(page: Any) -> set[str]:
    """Those of the project: the page may not show them yet."""
    return {take["id"] for take in page.request.get(urljoin(page.url, "/api/takes?limit=50")).json()["takes"]}


def violations(page: Any) -> list[str]:
    """What axe-core finds serious or critical, with the elements."""
    axe_core = pytest.importorskip(
        "axe_core_python.sync_playwright", reason="axe-core-python is not installed"
    )
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
    results = axe_core.Axe().run(page)
    return [
        f"{entry['id']}: {node['html']}"
        for entry in results["violations"]
        if entry["impact"] in SEVERE
        for node in entry["nodes"]
    ]


class TestWhileItIsMade:
    def test_the_sound_plays_before_the_clip_is_done(self, browser: Any, studio: Studio):
        """Chromium begins after some 220 kB: 14 s of this system, 5 s of `mini`, whose windows have 10."""
        with visit(browser, studio.url) as visited:
            page = visited.page
            set_length(page, 40)
            make(page, "bossa nova")
            studio.gate.release(20)
            page.locator(".job .time", has_text="0:01").wait_for()
            assert len(running(studio.queue)) == 1
            studio.gate.release(20)
            page.locator(".take").wait_for()
            assert not page.locator(".job").count()

    def test_a_take_that_is_made_at_once_plays(self, browser: Any, studio: Studio):
        studio.gate.release(1000)
        with visit(browser, studio.url) as visited:
            visited.page.get_by_role("button", name="a calm solo piano piece").click()
            visited.page.get_by_role("button", name="Make one take").click()
            visited.page.locator(".take").wait_for()
            visited.page.wait_for_function("!document.querySelector('.take audio').paused")

    def test_progress_is_shown_and_announced(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            make(page, "bossa nova", "Make four takes")
            studio.gate.release(5)
            page.locator(".job", has_text="5 of 10 windows, about").wait_for()
            page.locator(".job", has_text="Next in the queue").wait_for()
            assert page.locator(".job progress").first.evaluate("bar => bar.value") == 0.5
            page.locator("#announcer", has_text="of 10 windows").wait_for()
            studio.finish()
            page.locator(".take").nth(3).wait_for()
            page.locator("#announcer", has_text="Ready: bossa nova").wait_for()

    def test_cancel(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            make(page, "slow sad cello", "Make four takes")
            studio.gate.release(2)
            jobs = page.locator(".job")
            jobs.nth(3).get_by_role("button", name="Cancel").click()
            page.locator('.job[data-state="cancelled"]').wait_for()
            jobs.nth(0).get_by_role("button", name="Cancel").click()
            studio.gate.release(1)
            wait_until(lambda: studio.queue.stats().cancelled >= 2)
            studio.gate.release(20)
            page.locator(".take").nth(1).wait_for()
            assert len(studio.queue.project) == 2

    def test_a_reload_shows_the_jobs_again(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            make(page, "bossa nova", "Make four takes")
            page.reload()
            page.locator(".job").nth(3).wait_for()
            studio.finish()
            page.locator(".take").nth(3).wait_for()

    def test_a_job_that_fails_says_why(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            make(visited.page, "refuse")
            studio.finish()
            visited.page.locator('.job[data-state="failed"]', has_text="the prompt is refused").wait_for()


class TestForms:
    def test_a_click_as_soon_as_there_is_a_button_counts(self, browser: Any, studio: Studio):
        """Also when what answers to it comes late."""
        page = browser.new_page()
        page.route("**/studio/page.js", lambda route: (time.sleep(2), route.continue_()))
        page.goto(studio.url, wait_until="commit")
        page.get_by_role("button", name="a calm solo piano piece").click()
        page.get_by_role("button", name="Make one take").click()
        page.locator(".job").wait_for()
        page.close()

    def test_texts_are_never_html(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            make(page, MARKUP)
            studio.finish()
            page.locator(".take").wait_for()
            assert page.locator(".take h3").inner_text() == MARKUP
            page.locator(".take summary").click()
            open_tab(page, "Compare")
            page.get_by_role("button", name="Another seed").click()
            page.locator(".job").first.wait_for()
            studio.finish()
            page.locator(".take").nth(1).wait_for()
            page.get_by_role("button", name="Draw two takes").click()
            page.locator(".pair", has_text=MARKUP).wait_for()
            assert not page.locator("b:has-text('bold')").count()
            assert page.evaluate("window.hacked") is None

    def test_nothing_is_loaded_from_elsewhere(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            make(visited.page, "bossa nova")
            studio.finish()
            visited.page.locator(".take").wait_for()
            for tab in TABS:
                open_tab(visited.page, tab)
            assert {f"http://{host}" for host in visited.hosts} == {studio.url}
            assert not visited.complaints

    @pytest.mark.parametrize(
        ("prompt", "seed", "message"),
        [("", "", "Describe the music"), ("bossa nova", "seven", "The seed is “seven”")],
    )
    def test_a_mistake_is_explained(self, browser: Any, studio: Studio, prompt: str, seed: str, message: str):
        with visit(browser, studio.url) as visited:
            page = visited.page
            page.locator("#prompt textarea").fill(prompt)
            page.get_by_label("Seed").fill(seed)
            page.get_by_role("button", name="Make one take").click()
            page.get_by_role("alert").filter(has_text=message).wait_for()
            assert not page.locator(".job").count()

    def test_a_blend_and_a_seed_of_the_die(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            page.get_by_role("button", name="Draw a seed").click()
            wait_until(lambda: page.get_by_label("Seed").input_value().isdigit())
            seed = page.get_by_label("Seed").input_value()
            page.get_by_role("button", name="Blend with a second prompt").click()
            page.get_by_label("Second prompt").fill("drums")
            make(page, "bossa nova")
            studio.finish()
            page.locator(".take").wait_for()
            (take,) = studio.queue.project.takes()
            assert str(take.settings["seed"]) == seed
            assert [part["text"] for part in take.settings["prompt"]] == ["bossa nova", "drums"]

    def test_a_story(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            open_tab(page, "Story")
            page.get_by_role("button", name="Add a scene").click()
            scene = page.get_by_role("group", name="Scene 3")
            scene.get_by_label("At, s").fill("20")
            scene.get_by_label("Prompt").fill("drums")
            assert page.get_by_role("list", name="Timeline").get_by_role("listitem").count() == 3
            page.get_by_role("button", name="Make the story").click()
            page.locator(".job").wait_for()
            studio.finish()
            page.locator(".take").wait_for()
            (take,) = studio.queue.project.takes()
            assert take.seconds == 30
            assert [(scene["at"], scene["prompt"]) for scene in take.settings["story"]] == [
                (15, "driving techno at 130 bpm"),
                (20, "drums"),
            ]

    def test_a_vote_is_blind_and_kept(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            make(page, "bossa nova", "Make four takes")
            studio.finish()
            page.locator(".take").nth(3).wait_for()
            open_tab(page, "Compare")
            page.get_by_role("button", name="Draw two takes").click()
            page.get_by_label("Play B", exact=True).wait_for()
            assert "seed" not in page.locator("#compare").inner_text()
            page.get_by_role("button", name="B is better").click()
            page.locator(".result", has_text="seed").wait_for()
            (line,) = studio.queue.project.votes_path.read_text().splitlines()
            assert json.loads(line)["choice"] == "b"

    def test_pages_of_takes_and_favourites(self, browser: Any, studio: Studio):
        with visit(browser, studio.url) as visited:
            page = visited.page
            set_length(page, 1)
            for _ in range(4):
                make(page, "bossa nova", "Make four takes")
                studio.finish()
                page.locator(".job").first.wait_for(state="detached")
            page.reload()
            page.get_by_role("button", name="Older takes").click()
            wait_until(lambda: page.locator(".take").count() == 4)
            page.get_by_role("button", name="☆ Favourite").first.click()
            page.get_by_role("button", name="★ Favourite").wait_for()
            page.get_by_label("Favourites only").check()
            wait_until(lambda: page.locator(".take").count() == 1)
            page.once("dialog", lambda dialog: dialog.accept())
            page.get_by_role("button", name="Delete").click()
            page.get_by_text("No favourites yet.").wait_for()
            assert len(studio.queue.project) == 15

    def test_a_recording(self, browser: Any, studio: Studio):
        with visit(browser, studio.url, permissions=["microphone"]) as visited:
            page = visited.page
            open_tab(page, "Your sound")
            page.get_by_role("button", name="Record").click()
            page.get_by_role("button", name="Stop recording").wait_for()
            page.wait_for_timeout(1500)
            page.get_by_role("button", name="Stop recording").click()
            page.locator("#sound h3", has_text="recording.wav").wait_for()
            make_button = page.get_by_role("button", name="Make four in its style")
            make_button.click()
            page.locator(".job").nth(3).wait_for()


class TestTiny:
    def test_prompt_to_four_players(self, browser: Any, tiny: str, four: list[str]):
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

    def test_a_variation(self, browser: Any, tiny: str, four: list[str]):
        with visit(browser, tiny) as visited:
            page = visited.page

            def vary() -> None:
                card(page, four[0]).get_by_role("button", name="Variation …").click()
                card(page, four[0]).get_by_label("Strength").fill("0.3")
                card(page, four[0]).get_by_role("button", name="Make the variation").click()

            take = take_of(page, tiny, new_take(page, vary))
            assert (take["kind"], take["parent"], take["settings"]["strength"]) == ("variation", four[0], 0.3)

    def test_other_words_over_the_same_tokens(self, browser: Any, tiny: str, four: list[str]):
        with visit(browser, tiny) as visited:
            page = visited.page

            def restyle() -> None:
                card(page, four[1]).get_by_role("button", name="Other prompt …").click()
                card(page, four[1]).get_by_label("Other prompt, same tokens").fill("slow sad cello")
                card(page, four[1]).get_by_role("button", name="Make it").click()

            take = take_of(page, tiny, new_take(page, restyle))
            assert (take["kind"], take["settings"]["prompt"]) == ("restyle", "slow sad cello")

    def test_a_continuation(self, browser: Any, tiny: str, four: list[str]):
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

    def test_a_region_that_is_dragged_is_mended(self, browser: Any, tiny: str, four: list[str]):
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

    def test_a_file_is_continued(self, browser: Any, tiny: str, tmp_path: Path):
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

    def test_a_reload_keeps_the_history(self, browser: Any, tiny: str, four: list[str]):
        with visit(browser, tiny) as visited:
            page = visited.page
            page.reload()
            for take_id in four:
                card(page, take_id).wait_for()

    def test_the_zip_makes_the_clips_again(
        self,
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
    def test_axe_finds_nothing_serious(self, browser: Any, tiny: str, four: list[str], scheme: str):
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

    def test_a_phone_does_not_scroll_sideways(self, browser: Any, tiny: str, four: list[str]):
        with visit(browser, tiny, viewport={"width": 360, "height": 740}) as visited:
            page = visited.page
            card(page, four[0]).get_by_role("button", name="Mend …").click()
            page.locator("#sound .plot").wait_for()
            widths = {}
            for tab in TABS:
                open_tab(page, tab)
                widths[tab] = page.evaluate("document.documentElement.scrollWidth")
            assert widths == dict.fromkeys(TABS, 360)


def press_until(page: Any, key: str, selector: str, most: int = 60) -> None:
    """Presses a key until the focus is on an element."""
    for _ in range(most):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} does not lead to {selector}")


def test_the_keyboard_alone(browser: Any, studio: Studio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        press_until(page, "Tab", "#prompt textarea")
        page.keyboard.type("bossa nova")
        press_until(page, "Tab", "#make-four")
        outline = page.evaluate(
            "(({outlineStyle, boxShadow}) => [outlineStyle, boxShadow])(getComputedStyle(document.activeElement))"
        )
        assert outline != ["none", "none"]
        page.keyboard.press("Enter")
        page.locator(".job").nth(3).wait_for()
        studio.finish()
        page.locator(".take").nth(3).wait_for()
        press_until(page, "Tab", ".take audio")
        page.keyboard.press("Space")
        wait_until(lambda: page.evaluate("document.activeElement.currentTime > 0"))
        press_until(page, "Tab", ".take .buttons button")
        page.keyboard.press("Enter")
        page.locator(".job").wait_for()
