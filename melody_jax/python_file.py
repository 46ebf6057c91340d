"""Files of Python that a user hands in: configs, studies, embeddings."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError

RETURNED = {
    "config": "a TrainConfig",
    "study": "a Study",
    "embedding": "an embedding (evaluation/embedding.py)",
}
"""Function of a user's file -> what it returns."""
OURS = {"config": Path("configs"), "study": Path("configs/ablations")}
"""Function of a user's file -> where those are that come with the project."""


def function_of(path: Path, name: str) -> Any:
    """The function `name`, one of `RETURNED`, of a user's file, which is run: it is trusted like any other program.

    Raises:
        UserError: there is no such file, it is not Python, or it has no such function.
    """
    if path.suffix != ".py":
        raise UserError(f"{path} has no {name}(): it must be a .py file that defines it{_known(path, name)}")
    if not path.is_file():
        raise UserError(f"no file {path} to take {name}() from{_known(path, name)}")
    spec = importlib.util.spec_from_file_location(f"melody_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and tyro look classes up by their module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    if not callable(getattr(module, name, None)):
        raise UserError(
            f"{path} has no function {name}(); such a file defines one that returns {RETURNED[name]}"
        )
    return getattr(module, name)


def _known(path: Path, name: str) -> str:
    """What may have been meant: the files beside the one that was named, or those that come with the project."""
    for folder in (path.parent, OURS.get(name)):
        known = sorted(file.name for file in folder.glob("*.py")) if folder and folder != Path() else []
        if known:
            return f"; in {folder} there are {', '.join(known)}"
    return ""
