"""The model card of a release in the Hugging Face Hub's format: README.md with YAML front matter.

The text of the release's own README.md stays; between `BEGIN` and `END` comes what the JSON files of its networks say.
When a release is published again, that part is replaced.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from melody_jax.errors import UserError, first_line
from melody_jax.hub import import_library
from melody_jax.training.card import PURPOSES, metrics_table

LIBRARY = "melody_jax"
TASK = "text-to-audio"
"""The hub's name for what the systems do."""
TAGS = ("jax", "music", "music-generation", "text-to-music")
BEGIN = "<!-- melody push: begin -->"
END = "<!-- melody push: end -->"
_GENERATED = re.compile(rf"\n*{BEGIN}.*?{END}\n*", re.DOTALL)
_HEADER = ("| network | purpose | parameters | file | training steps |", "| --- | --- | --- | --- | --- |")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


class NetworkFacts(NamedTuple):
    """What a card says of a network."""

    name: str
    parameters: int
    size: int
    """Bytes of its file of tensors."""
    hashes: Mapping[str, str]
    """Networks that it was trained with -> sha256."""
    metrics: Mapping[str, float]


def hub_card(
    readme: str,
    repo: str,
    networks: Sequence[NetworkFacts],
    licence: str = "",
    base_models: Sequence[str] = (),
) -> str:
    """The card of the release that becomes the repository `repo`, as Markdown with front matter.

    Args:
        readme: text of the release's README.md, with or without front matter; "" if it has none.
        repo: "owner/name".
        networks: the release's networks.
        licence: the hub's identifier, such as "apache-2.0"; "": that of the front matter.
        base_models: repositories of models that this one was made from; (): those of the front matter.

    Raises:
        UserError: there is no licence, or the front matter is not valid.
    """
    given, text = _split(readme)
    tags = given.get("tags") or []
    data = given | {
        "license": _checked_licence(licence or str(given.get("license") or "")),
        "library_name": LIBRARY,
        "pipeline_tag": given.get("pipeline_tag") or TASK,
        "tags": list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *TAGS])),
    }
    if base_models:
        data["base_model"] = list(base_models)
    front_matter = import_library(repo).CardData(**dict(sorted(data.items()))).to_yaml()
    text = _GENERATED.sub("\n\n", text).strip() or f"# {repo.rpartition('/')[2]}"
    return f"---\n{front_matter}\n---\n\n{text}\n\n{BEGIN}\n\n{_sections(repo, networks)}\n\n{END}\n"


def _split(readme: str) -> tuple[dict[str, Any], str]:
    """The front matter of a README and the text after it. Raises `UserError` if it is not YAML."""
    if not readme.lstrip().startswith("---"):
        return {}, readme
    library = import_library("README.md")
    try:
        card = library.ModelCard(readme, ignore_metadata_errors=True)
    except Exception as error:  # of the YAML parser, and of the library
        raise UserError(
            f"README.md: the front matter is not that of a model card ({first_line(error)})"
        ) from error
    return card.data.to_dict(), card.text


def _checked_licence(licence: str) -> str:
    """The hub's form of a licence. Raises `UserError` for none, or for another text than an identifier."""
    if not licence:
        raise UserError(
            "licence is missing: give --licence, such as apache-2.0, or `license:` in the front matter of README.md"
        )
    if not _LICENCE.fullmatch(licence.lower()):
        raise UserError(
            f"licence is {licence!r}; it must be an identifier of the hub, such as apache-2.0 or other"
        )
    return licence.lower()


def _sections(repo: str, networks: Sequence[NetworkFacts]) -> str:
    """How to use the release, and what its networks are."""
    lines = [
        "## Use",
        "With melody_jax and its extra `hub` installed:",
        f'```sh\nmelody sample "a calm solo piano piece" --model {repo} --out song.wav\n```',
        f'```python\nimport melody_jax\n\nmelody = melody_jax.load("{repo}")\n```',
        "## Networks",
        "\n".join([*_HEADER, *map(_row, networks)]),
    ]
    for facts in networks:
        lines += _training(facts)
    return "\n\n".join(lines)


def _row(facts: NetworkFacts) -> str:
    """A network in the table of networks."""
    steps = f"{facts.metrics['step']:.0f}" if "step" in facts.metrics else ""
    size = f"{facts.parameters / 1e6:.2f} M | {facts.size / 1e6:.2f} MB"
    return f"| `{facts.name}` | {PURPOSES[facts.name]} | {size} | {steps} |"


def _training(facts: NetworkFacts) -> list[str]:
    """The hashes and metrics of a network, if its JSON has any."""
    lines = []
    if facts.hashes:
        lines.append(
            "\n".join(f"- trained with {other} `{digest}`" for other, digest in sorted(facts.hashes.items()))
        )
    if facts.metrics:
        lines.append(metrics_table(facts.metrics))
    return [f"### {facts.name}", *lines] if lines else []
