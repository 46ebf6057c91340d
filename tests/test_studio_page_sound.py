""" "Your sound" of the studio's page in a headless Chromium: recordings and files."""

import base64
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra 'studio' is not installed")
from helpers.studio import noise
from helpers.studio_page import GatedStudio, open_tab, visit

pytestmark = pytest.mark.slow
DROP = """([selector, sound]) => {
  const bytes = Uint8Array.from(atob(sound), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "tune.wav"));
  const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  document.querySelector(selector).dispatchEvent(event);
  return event.defaultPrevented;
}"""
"""Drops a sound on an element; whether the browser leaves the page where it is."""
COUNT_STREAMS = """() => {
  const devices = navigator.mediaDevices;
  const open = devices.getUserMedia.bind(devices);
  window.streams = [];
  devices.getUserMedia = async (wanted) => {
    window.streams.push(await open(wanted));
    return window.streams.at(-1);
  };
}"""
REFUSE = (
    "() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error('Permission denied'); }; }"
)


def test_a_recording(browser: Any, studio: GatedStudio):
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


def drop(page: Any, selector: str) -> bool:
    return page.evaluate(DROP, [selector, base64.b64encode(noise()).decode()])


def test_a_double_click_opens_one_microphone(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url, permissions=["microphone"]) as visited:
        page = visited.page
        open_tab(page, "Your sound")
        page.evaluate(COUNT_STREAMS)
        page.get_by_role("button", name="Record").dblclick()
        page.get_by_role("button", name="Stop recording").wait_for()
        page.wait_for_timeout(1500)
        page.get_by_role("button", name="Stop recording").click()
        page.locator("#sound h3", has_text="recording.wav").wait_for()
        states = page.evaluate(
            "streams.flatMap((stream) => stream.getTracks()).map((track) => track.readyState)"
        )
        assert states == ["ended"]


def test_a_microphone_that_is_refused(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        open_tab(page, "Your sound")
        page.evaluate(REFUSE)
        page.get_by_role("button", name="Record").click()
        page.get_by_role("alert").filter(
            has_text="The microphone cannot be used (Permission denied)"
        ).wait_for()
        page.get_by_role("button", name="● Record").wait_for()


def test_a_file_is_dropped(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        open_tab(page, "Your sound")
        assert drop(page, "#takes-header"), "a file that misses its place would open in place of the page"
        assert drop(page, ".drop")
        page.locator("#sound", has_text="Reading tune.wav").wait_for()
        page.locator("#sound h3", has_text="tune.wav").wait_for()
        assert "Reading" not in page.locator("#sound").inner_text()


def test_the_picture_moves_the_player_of_a_system_that_cannot_mend(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        open_tab(page, "Your sound")
        drop(page, ".drop")
        page.locator("#sound .plot").click()
        page.wait_for_function("document.querySelector('#sound audio').currentTime > 0.5")
        assert page.locator("#sound .mark").is_hidden()


def test_the_length_of_takes_in_the_style_of_a_sound(browser: Any, studio: GatedStudio):
    with visit(browser, studio.url) as visited:
        page = visited.page
        open_tab(page, "Your sound")
        drop(page, ".drop")
        page.locator("#sound h3").wait_for()
        length = page.get_by_label("number input for Length of new takes, seconds")
        length.fill("3")
        length.press("Tab")
        page.get_by_role("button", name="Make four in its style").click()
        page.locator(".job").nth(3).wait_for()
        studio.finish()
        assert [take.seconds for take in studio.queue.project.takes()] == [3, 3, 3, 3]
