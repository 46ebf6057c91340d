"""The history of the studio's page in a headless Chromium: pages, favourites, deleted takes, several windows."""

import time
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.studio_page import GatedStudio, make, set_length, visit, wait_until

pytestmark = pytest.mark.slow


def test_pages_of_takes_and_favourites(browser: Any, studio: GatedStudio):
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


def make_takes(page: Any, studio: GatedStudio, count: int) -> None:
    """Makes takes of a second and shows them."""
    names = {4: "Make four takes", 1: "Make one take"}
    set_length(page, 1)
    while missing := count - len(studio.queue.project):
        before = len(studio.queue.project)
        make(page, f"prompt {before}", names[4 if missing >= 4 else 1])
        studio.finish()
        page.locator(".job").first.wait_for(state="detached")
    page.reload()
    page.locator(".take").first.wait_for()


def test_a_full_page_is_the_last_one(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make_takes(page, studio, 12)
        page.locator(".take").nth(11).wait_for()
        assert page.get_by_role("button", name="Older takes").is_disabled()


def test_the_page_before_follows_when_the_last_take_of_a_page_is_deleted(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make_takes(page, studio, 13)
        page.get_by_role("button", name="Older takes").click()
        wait_until(lambda: page.locator(".take").count() == 1)
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete").click()
        wait_until(lambda: page.locator(".take").count() == 12)


def test_what_plays_goes_on_when_another_take_is_deleted(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make_takes(page, studio, 4)
        audio = page.locator(".take audio").nth(2)
        audio.evaluate("audio => { audio.loop = true; return audio.play(); }")
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator(".take").nth(0).get_by_role("button", name="Delete").press("Enter")
        wait_until(lambda: page.locator(".take").count() == 3)
        assert not page.locator(".take audio").nth(1).evaluate("audio => audio.paused")
        assert page.locator(".take").nth(0).locator("button:focus").count()


def test_a_double_click_marks_a_favourite_once(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make_takes(page, studio, 1)
        changes = []
        page.on(
            "request", lambda request: changes.append(request.method) if request.method == "PATCH" else None
        )
        page.route("**/api/takes/*", lambda route: (time.sleep(0.3), route.continue_()))
        page.get_by_role("button", name="☆ Favourite").dblclick()
        page.get_by_role("button", name="★ Favourite").wait_for()
        assert changes == ["PATCH"]


def test_another_window_changes_the_takes(browser: Any, studio: GatedStudio):
    """A window shows what has changed as soon as it gets the focus."""
    with visit(browser, studio.url) as visited, visit(browser, studio.url) as other:
        page = other.page
        make_takes(page, studio, 4)
        assert not visited.page.locator(".take").count()
        make(page, "slow sad cello")
        visited.page.evaluate("window.dispatchEvent(new Event('focus'))")
        visited.page.locator(".take").nth(3).wait_for()
        visited.page.locator(".job", has_text="slow sad cello").wait_for()
        studio.finish()
        visited.page.locator(".take").nth(4).wait_for()


def test_a_take_that_another_window_has_deleted(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make_takes(page, studio, 1)
        studio.clear()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("alert").filter(has_text="no such take").wait_for()
        page.get_by_text("No takes yet.").wait_for()
