"""Reads the documentation: code spans, links, and blocks of commands."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("melody_jax/weights/*/*.md")],
    key=lambda page: page.as_posix(),
)
"""All pages written by hand; reports under docs/evaluation and docs/studies are written by programs."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, without their fences; indented ones are dedented."""
    matches = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in matches]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """The inline code spans of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[str]:
    """Local targets of the links and images of a page, without anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target.split("#")[0] for target in targets if "://" not in target and not target.startswith("#")]


def commands(text: str) -> Iterator[list[str]]:
    """The `melody` commands in a text as lists of words, continued lines joined, comments and redirections cut."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for call in re.findall(r"(?:melody|python (?:sample|train)\.py) [^\n`;|&<>#)]*", joined):
        name, *words = re.findall(r"\"[^\"]*\"|\S+", call.removeprefix("python "))
        if name == "melody" and words[0].startswith("-"):
            continue  # a cluster's name, not a command
        yield words if name == "melody" else [name.removesuffix(".py"), *words]
