"""The forms of the studio's page in a headless Chromium, with a system without networks that tests hold up."""

import json
import time
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.studio_page import (
    TABS,
    GatedStudio,
    make,
    open_tab,
    press_until,
    visit,
    wait_until,
)

pytestmark = pytest.mark.slow
MARKUP = '<img src="/x" onerror="window.hacked=1"><b>bold</b>'


def test_a_click_as_soon_as_there_is_a_button_counts(browser: Any, studio: GatedStudio):
    """Also when what answers to it comes late."""
    page = browser.new_page()
    page.route("**/studio/page.js", lambda route: (time.sleep(2), route.continue_()))
    page.goto(studio.url, wait_until="commit")
    page.get_by_role("button", name="a calm solo piano piece").click()
    page.get_by_role("button", name="Make one take").click()
    page.locator(".job").wait_for()
    page.close()


def test_texts_are_never_html(browser: Any, studio: GatedStudio):
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


def test_nothing_is_loaded_from_elsewhere(browser: Any, studio: GatedStudio):
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
def test_a_mistake_is_explained(browser: Any, studio: GatedStudio, prompt: str, seed: str, message: str):
    with visit(browser, studio.url) as visited:
        page = visited.page
        page.locator("#prompt textarea").fill(prompt)
        page.get_by_label("Seed").fill(seed)
        page.get_by_role("button", name="Make one take").click()
        page.get_by_role("alert").filter(has_text=message).wait_for()
        assert not page.locator(".job").count()


def test_a_blend_and_a_seed_of_the_die(browser: Any, studio: GatedStudio):
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


def test_a_story(browser: Any, studio: GatedStudio):
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


@pytest.mark.parametrize(
    ("at", "message"),
    [("15", "Two scenes begin at 15 s"), ("0", "Two scenes begin at 0 s"), ("", "Two scenes begin at 0 s"),
     ("-5", "A scene begins at -5 s"), ("500", "begins at 500 s; the clip ends at 30 s")],
)  # fmt: skip
def test_times_that_make_no_story(browser: Any, studio: GatedStudio, at: str, message: str):
    with visit(browser, studio.url) as visited:
        page = visited.page
        open_tab(page, "Story")
        page.get_by_role("button", name="Add a scene").click()
        scene = page.get_by_role("group", name="Scene 3")
        scene.get_by_label("At, s").fill(at)
        scene.get_by_label("Prompt").fill("drums")
        page.get_by_role("button", name="Make the story").click()
        page.get_by_role("alert").filter(has_text=message).wait_for()
        assert not page.locator(".job").count()


@pytest.mark.parametrize("seed", ["007", str(2**64 - 1)])
def test_any_seed_counts_to_its_last_digit(browser: Any, studio: GatedStudio, seed: str):
    with visit(browser, studio.url) as visited:
        page = visited.page
        page.get_by_role("textbox", name="Seed").press_sequentially(seed)
        make(page, "bossa nova")
        studio.finish()
        page.locator(".take", has_text=f"seed {int(seed)}").wait_for()


def test_a_vote_is_blind_and_kept(browser: Any, studio: GatedStudio):
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
        assert json.loads(studio.votes()[-1])["choice"] == "b"


def test_a_double_click_is_one_vote(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make(page, "bossa nova", "Make four takes")
        studio.finish()
        page.locator(".take").nth(3).wait_for()
        open_tab(page, "Compare")
        page.get_by_role("button", name="Draw two takes").click()
        votes = len(studio.votes())
        page.get_by_role("button", name="A is better").dblclick()
        page.locator(".result", has_text="one vote").wait_for()
        assert len(studio.votes()) == votes + 1


def test_the_keyboard_alone(browser: Any, studio: GatedStudio):
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
