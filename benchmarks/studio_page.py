"""How long the studio takes, from the command to the page and from the click to the sound, in a real Chromium.

    python benchmarks/studio_page.py

Runs `melody studio` twice: with an empty cache of compiled programs, then with the one that the first run has left.
The first take is asked for as soon as the page can be used, others once the programs are warm.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HEAR = """
window.firstSound = null;
const note = () => { window.firstSound ??= performance.now(); };
document.addEventListener("playing", note, true);
const Plain = window.Audio;
window.Audio = function (...words) {
  const sound = new Plain(...words);
  sound.addEventListener("playing", note);
  return sound;
};
"""
"""Notes when a player or a stream of the page begins to play."""
SILENCE = "document.querySelectorAll('audio').forEach((player) => player.pause())"
"""Ends what plays: a new take does not interrupt it."""
PATIENCE = 600.0


@dataclass(frozen=True)
class Arguments:
    """Times the studio with a released model."""

    model: str = "mini"
    seconds: tuple[int, ...] = (10, 30)
    """Lengths of the takes that are asked for once the programs are warm."""


@dataclass
class Times:
    """What one click led to, seconds after it."""

    first_sound: float
    take: float


class Rows(dict[str, float]):
    """Seconds by what took them; printed to stderr as they come."""

    def __setitem__(self, name: str, seconds: float) -> None:
        super().__setitem__(name, seconds)
        print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def studio(model: str, folder: Path, cache: Path) -> Iterator[tuple[str, float, Any]]:
    """A process of `melody studio`: its address, when it was started, and its output."""
    command = [sys.executable, "-c", "from melody_jax.cli import main; main()", "studio", "--model", model]
    command += ["--project", str(folder), "--port", "0", "--no-browser"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(match[0] for line in lines if (match := re.match(r"http://\S+", line))), started, lines
    finally:
        process.terminate()
        process.communicate()


def make_take(page: Any, seconds: int, seed: int) -> Times:
    """Asks for one take and waits for it."""
    page.evaluate(SILENCE)
    page.evaluate("window.firstSound = null")
    page.locator("#prompt textarea").fill("calm piano")
    length = page.get_by_label("number input for Length, seconds").first
    length.fill(str(seconds))
    length.press("Tab")
    page.get_by_label("Seed").first.fill(str(seed))
    cards = page.locator(".take").count()
    clicked = page.evaluate("performance.now()")
    page.get_by_role("button", name="Make one take").click()
    page.wait_for_function("window.firstSound !== null", timeout=1000 * PATIENCE)
    sound_time = page.evaluate("window.firstSound")
    page.wait_for_function(
        f"document.querySelectorAll('.take').length > {cards}", timeout=1000 * PATIENCE, polling=50
    )
    return Times((sound_time - clicked) / 1000, (page.evaluate("performance.now()") - clicked) / 1000)


def visit(browser: Any, address: str, started: float) -> tuple[Any, float, float]:
    """The page as soon as it can be used: the page, and the seconds from the command until it was there."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.add_init_script(HEAR)
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address, wait_until="commit")
    served = time.perf_counter() - started
    page.get_by_role("button", name="Make one take").wait_for()
    page.locator("#prompt textarea").wait_for()
    return page, served, time.perf_counter() - started


def measure(arguments: Arguments, browser: Any, folder: Path, cache: Path) -> dict[str, float]:
    """The times of one process of the studio; each is printed to stderr as soon as it is measured."""
    rows = Rows()
    with studio(arguments.model, folder, cache) as (address, started, lines):
        page, rows["command to the answer of the server"], rows["command to the page"] = visit(
            browser, address, started
        )
        first = make_take(page, 10, 1)
        rows["first click of 10 s, at once: to the sound"] = first.first_sound
        rows["first click of 10 s, at once: to the take"] = first.take
        next(line for line in lines if line.startswith("warm"))
        rows["command to warm"] = time.perf_counter() - started
        for seconds in arguments.seconds:
            times = make_take(page, seconds, 2)
            rows[f"{seconds} s, warm: to the sound"] = times.first_sound
            rows[f"{seconds} s, warm: to the take"] = times.take
    return rows


def main(arguments: Arguments) -> None:
    path = next(path for name in BROWSERS if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        runs = [
            measure(arguments, browser, Path(folder, f"project{run}"), Path(folder, "cache"))
            for run in range(2)
        ]
        browser.close()
    print("| from ... to | empty cache, s | filled cache, s |\n| --- | ---: | ---: |")
    for name in runs[0]:
        print(f"| {name} | " + " | ".join(f"{run[name]:.1f}" for run in runs) + " |")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
