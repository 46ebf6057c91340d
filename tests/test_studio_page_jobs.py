"""The page of the studio in a headless Chromium while takes are made, by a system that tests hold up."""

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.studio_page import (
    GatedStudio,
    make,
    running,
    serve_gated,
    set_length,
    visit,
    wait_until,
)

pytestmark = pytest.mark.slow


def test_the_sound_plays_before_the_clip_is_done(browser: Any, studio: GatedStudio):
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


def test_a_take_that_is_made_at_once_plays(browser: Any, studio: GatedStudio):
    studio.gate.release(1000)
    with visit(browser, studio.url) as visited:
        visited.page.get_by_role("button", name="a calm solo piano piece").click()
        visited.page.get_by_role("button", name="Make one take").click()
        visited.page.locator(".take").wait_for()
        visited.page.wait_for_function("!document.querySelector('.take audio').paused")


def test_progress_is_shown_and_announced(browser: Any, studio: GatedStudio):
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


def test_cancel(browser: Any, studio: GatedStudio):
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


def test_a_reload_shows_the_jobs_again(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make(page, "bossa nova", "Make four takes")
        page.reload()
        page.locator(".job").nth(3).wait_for()
        studio.finish()
        page.locator(".take").nth(3).wait_for()


def test_a_job_that_fails_says_why(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        make(visited.page, "refuse")
        studio.finish()
        visited.page.locator('.job[data-state="failed"]', has_text="the prompt is refused").wait_for()


def test_one_sound_at_a_time(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        set_length(page, 40)
        make(page, "first")
        make(page, "second")
        studio.gate.release(40)
        page.wait_for_function("document.querySelector('.take audio')?.paused === false")
        studio.gate.release(25)
        job = page.locator(".job", has_text="second")
        job.get_by_role("button", name="Listen").click()
        job.locator(".time", has_text="0:01").wait_for()
        assert page.locator(".take audio").evaluate("audio => audio.paused")
        page.locator(".take audio").evaluate("audio => audio.play()")
        job.get_by_role("button", name="Listen").wait_for()


def test_a_job_that_starts_does_not_interrupt_what_plays(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        studio.gate.release(10)
        make(page, "first")
        audio = page.locator(".take audio")
        audio.wait_for()
        page.wait_for_function("!document.querySelector('.take audio').paused")
        audio.evaluate("audio => audio.pause()")
        make(page, "second")
        audio.evaluate("audio => { audio.loop = true; return audio.play(); }")
        studio.gate.release(1)
        job = page.locator('.job[data-state="running"]', has_text="1 of 10 windows")
        job.get_by_role("button", name="Listen").wait_for()
        assert not audio.evaluate("audio => audio.paused")


def test_a_double_click_makes_one_take(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        page.locator("#prompt textarea").fill("bossa nova")
        page.get_by_role("button", name="Make one take").dblclick()
        page.locator(".job").wait_for()
        make(page, "slow sad cello")
        page.locator(".job", has_text="slow sad cello").wait_for()
        assert [job.title for job in studio.unfinished()] == ["bossa nova", "slow sad cello"]


def test_enter_makes_four_takes(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        visited.page.locator("#prompt textarea").fill("bossa nova")
        visited.page.locator("#prompt textarea").press("Enter")
        visited.page.locator(".job").nth(3).wait_for()
        assert {job.title for job in studio.unfinished()} == {"bossa nova"}


def test_the_focus_stays_when_a_job_is_cancelled_or_ends(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make(page, "bossa nova", "Make four takes")
        page.locator(".job").nth(3).get_by_role("button", name="Cancel").press("Enter")
        page.locator(".job button:focus", has_text="Close").wait_for()
        page.locator(".job").nth(0).get_by_role("button", name="Cancel").focus()
        studio.gate.release(10)
        page.locator(".take audio:focus").wait_for()


def test_a_take_that_the_page_does_not_show_is_one_click_away(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        page.get_by_label("Favourites only").check()
        make(page, "bossa nova")
        studio.finish()
        page.locator(".job", has_text="Ready").get_by_role("button", name="Show").click()
        page.locator(".take").wait_for()
        assert not page.locator(".job").count()
        assert not page.get_by_label("Favourites only").is_checked()


def test_a_job_that_ends_leaves_an_error_on_the_screen(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        make(page, "bossa nova")
        page.get_by_role("textbox", name="Seed").fill("seven")
        page.get_by_role("button", name="Make one take").click()
        page.get_by_role("alert").filter(has_text="The seed is").wait_for()
        studio.finish()
        page.locator(".take").wait_for()
        assert "The seed is" in page.get_by_role("alert").inner_text()


def test_a_studio_that_is_started_again(browser: Any, tmp_path: Path):
    """The page says that the studio is away, goes on by itself, and shows which jobs are lost."""
    with contextlib.ExitStack() as first:
        studio = first.enter_context(serve_gated(tmp_path / "project"))
        with visit(browser, studio.url) as visited:
            page = visited.page
            make(page, "bossa nova")
            first.close()
            page.get_by_role("alert").filter(has_text="The studio does not answer").wait_for()
            with serve_gated(tmp_path / "project", urlsplit(studio.url).port):
                page.locator(".job", has_text="The studio was started again").wait_for()
                assert page.get_by_role("alert").inner_text() == ""
