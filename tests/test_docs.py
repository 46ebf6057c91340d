"""What the documentation says is true: paths, names and options exist, figures match reports, commands run."""

import importlib
import json
import re
from pathlib import Path

import pytest
from helpers.docs import PAGES, ROOT, blocks, commands, links, spans

from melody_jax import cli
from melody_jax.config import load_config
from melody_jax.options import options_of

PLACES = (
    "",
    "docs",
    "melody_jax",
    "melody_jax/models",
    "melody_jax/weights/mini",
    "docs/evaluation",
    "tests",
)
"""Folders from which a path in the documentation may be given."""
EXAMPLES = re.compile(
    r"^(runs|corpus|features|release|report|clips|exported|player|audio2?|validation|my_music|shared|tfds|<|/|\.\.\.)"
)
"""Paths that a command of the reader makes, or that stand for one of theirs."""
FILES_MADE = {
    "bases.json",
    "captions.csv", "config.json", "dataset_info.json", "decoder.cpu.jax", "decoder.accelerator.jax", "diverged.json",
    "captions.jsonl",
    "evaluation.json", "evaluation.md", "evaluation.png", "index.html", "manifest.json", "manifest.jsonl",
    "manifest-000-of-004.jsonl", "metadata.csv", "metrics.jsonl", "notes.jsonl", "mine.wav", "play.py",
    "prompts.jsonl", "rejects.jsonl",
    "sampler.cpu.jax", "sampler.accelerator.jax", "sampler.json", "tokenizer.json", "vggish.py", "weights.safetensors",
    "cello.wav",
    "song.wav", "compiled/",
    "autotagging.tsv", "fma_metadata/tracks.csv", "musiccaps-public.csv", "song_describer.csv",
    "mulan.tokenizer.json",
}  # fmt: skip
"""Files that commands write, or that come with other people's data."""
PATH = re.compile(r"^[\w./<>*-]+\.(py|md|json|jsonl|csv|txt|toml|svg|png|wav|cff)$|^\.?[\w.-]+(/[\w.-]+)*/$")
OURS = re.compile(r"^(\w+)\.(\w+)$")
FOREIGN = {
    "jax",
    "nnx",
    "np",
    "tfds",
    "data",
    "stage",
    "optimizer",
    "lora",
    "watch",
    "hosts",
    "time",
    "flax",
    "runs",
}
"""First words of dotted spans that name no module of the package."""


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Command -> its options with dashes; of `train` those of every config."""
    options: dict[str, set[str]] = {}
    for name, command in cli.COMMANDS.items():
        if command.config:
            module, _, cls = command.config.partition(":")
            config = getattr(importlib.import_module(f"melody_jax.{module}"), cls)()
            options[name] = {entry.name.replace("_", "-") for entry in options_of(config)}
    configs = [load_config(path) for path in sorted((ROOT / "configs").glob("*.py"))]
    options["train"] = {entry.name.replace("_", "-") for config in configs for entry in options_of(config)}
    options["train"] |= {"print-parameters"}
    return options


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path):
    missing = [target for target in links(page) if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page: Path):
    missing = []
    for span in spans(page):
        path = span.split(":")[0]
        if not PATH.match(path) or EXAMPLES.match(path) or path in FILES_MADE or "<" in path:
            continue
        if not any(list(ROOT.glob(f"{place}/{path}".strip("/"))) for place in PLACES):
            missing.append(span)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_options_exist(page: Path, options: dict[str, set[str]]):
    every = set().union(*options.values()) | {"help", "version", "logdir"}
    unknown = []
    for span in spans(page):
        for name in re.findall(r"(?<![\w-])--(?:no-)?([a-z][\w.-]*)", span):
            if name.rstrip(".") not in every and not span.startswith("pip "):
                unknown.append(span)
    for text in [*blocks(page, "sh"), *blocks(page, "text")]:
        for name, *words in commands(text):
            valid = options.get(name, set())
            unknown += [
                f"melody {name} {word}"
                for word in words
                if word.startswith("--") and word[2:].split("=")[0].removeprefix("no-") not in valid
            ]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_exist(page: Path):
    """`diffusion.corrupt` and its kind: an attribute of a module of the package, or of one of its classes."""
    missing = []
    for span in spans(page):
        match = OURS.match(span)
        if not match or match[1] in FOREIGN or PATH.match(span):
            continue
        places = ["", "models.", "training.", "training.stages.", "sampling.", "evaluation.", "data."]
        modules = [
            p for p in places if (ROOT / "melody_jax" / f"{p.replace('.', '/')}{match[1]}.py").exists()
        ]
        if modules and not any(
            hasattr(importlib.import_module(f"melody_jax.{place}{match[1]}"), match[2]) for place in modules
        ):
            missing.append(span)
    assert not missing


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def test_figures_are_those_of_the_reports():
    diagnosis = json.loads((ROOT / "docs/evaluation/diagnosis-mini.json").read_text())["stages"]
    adherence = json.loads((ROOT / "docs/evaluation/evaluation-mini.json").read_text())["adherence"]
    reconstruction = (ROOT / "docs/evaluation/reconstruction-mini.md").read_text()
    genre, group, composed = (
        percent(adherence["genre"]["right"][0]),
        percent(diagnosis["text"]["group"][0]),
        percent(diagnosis["truth"]["group"][0]),
    )
    tempo = percent(diagnosis["text"]["tempo"][0])
    for name in ("README.md", "docs/mini.md", "melody_jax/weights/mini/README.md"):
        text = " ".join((ROOT / name).read_text().split())
        for figure in (genre, group, composed, tempo, percent(adherence["genre"]["composed"])):
            assert figure in text, (name, figure)
        others = text.replace(genre, "", 1)  # the two figures may be equal
        assert text.index(genre) <= others.index(group), f"{name}: the stricter figure comes first"
    table = (ROOT / "docs/mini.md").read_text()
    for row, stage in {
        "composed pieces": "truth",
        "after the autoencoder": "vae",
        "DPD on true tokens": "dpd",
        "LM on a true prefix": "lm",
        "from text": "text",
        "judged against": "shuffled",
    }.items():
        figures = diagnosis[stage]
        cells = [percent(figures["group"][0]), percent(figures["tempo"][0]), f"{figures['cycle'][0]:.2f}"]
        assert re.search(rf"\| {row}[^|]*\| " + r" \| ".join(map(re.escape, cells)), table), (row, cells)
    for value in re.findall(
        r"\d\.\d{3}", table[table.index("## What it measures") : table.index("# The lab book")]
    ):
        assert value in reconstruction


def test_sizes_add_up():
    """The size of the shipped weights and the minutes of training are sums, not memories."""
    weights = sum(file.stat().st_size for file in (ROOT / "melody_jax/weights/mini").iterdir()) / 1e6
    assert f"{weights:.1f} MB" in (ROOT / "melody_jax/weights/mini/README.md").read_text()
    recipe = (ROOT / "docs/mini.md").read_text()
    minutes = [
        int(cell)
        for cell in re.findall(r"^\| [\w ]+ \| (\d+) \|", recipe[: recipe.index("## What it")], re.M)
    ]
    assert f"{sum(minutes)} minutes" in recipe
