"""The extra that provides each optional package, and the command that installs a missing one."""

import importlib.metadata
import os
import re
from pathlib import Path

EXTRAS = {
    "apache_beam": "beam",
    "array_record": "train",
    "av": "aac",
    "fastapi": "studio",
    "fluidsynth": "compose",
    "gradio": "studio",
    "fsspec": "buckets",
    "gcsfs": "buckets",
    "grain": "train",
    "httpx2": "hub",
    "huggingface_hub": "hub",
    "librosa": "evaluate",
    "libtpu": "tpu",
    "matplotlib": "evaluate",
    "PIL": "train",
    "s3fs": "buckets",
    "prometheus_client": "studio",
    "sklearn": "evaluate",
    "starlette": "studio",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "threadpoolctl": "evaluate",
    "uvicorn": "studio",
    "visqol": "evaluate",
    "wandb": "wandb",
}
"""Optional module -> the smallest extra that provides it."""


def install_hint(module: str, extra: str = "") -> str:
    """One line about a module that is not installed: the extra that provides it and the command that installs it.

    Args:
        module: import name, such as "grain".
        extra: the extra that the running command needs. It is named if it provides all of the one in `EXTRAS`.
    """
    name = module.partition(".")[0]
    smallest = EXTRAS.get(name, "")
    if not extra or not requirements(smallest) <= requirements(extra):
        extra = smallest
    if not extra:
        return f"the package {name} is not installed"
    return f"{name} is not installed; the extra '{extra}' provides it: {install_command(extra)}"


def install_command(extra: str) -> str:
    """The command that installs an extra: from the clone in use or, for an installed wheel, the missing packages."""
    clone = Path(__file__).parents[1]
    if (clone / "pyproject.toml").is_file():
        place = "." if clone == Path.cwd() else os.fspath(clone)
        return f'pip install -e "{place}[{extra}]"'
    missing = [line for line in sorted(requirements(extra)) if not _is_installed(line)]
    return " ".join(["pip install", *(f'"{requirement}"' for requirement in missing)])


def requirements(extra: str) -> set[str]:
    """Requirements of an extra of the installed package, including those of nested extras."""
    lines: set[str] = set()
    for line in importlib.metadata.requires("melody_jax") or []:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"""extra\s*==\s*["']{re.escape(extra)}["']""", marker):
            continue
        nested = re.match(r"melody[-_]jax\[(.*)\]", requirement.strip())
        for name in nested.group(1).split(",") if nested else []:
            lines |= requirements(name.strip())
        if not nested:
            lines.add(requirement.strip())
    return lines


def _is_installed(requirement: str) -> bool:
    """Whether any version of the distribution is installed."""
    name = re.match(r"[\w.-]+", requirement)
    try:
        importlib.metadata.distribution(name.group() if name else requirement)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
