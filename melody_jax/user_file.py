"""Files of Python that a user hands in: configs, studies, embeddings."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError

RETURNED = {"config": "a TrainConfig", "study": "a Study", "embedding": "an embedding (evaluation/embedding.py)"}
"""Function of a user's file -> what it returns."""


def function_of(path: Path, name: str) -> Any:
    """The function `name`, one of `RETURNED`, of a user's file, which is run: it is trusted like any other program.

    Raises:
        UserError: there is no such file, it is not Python, or it has no such function.
    """
    if path.suffix != ".py":
        raise UserError(f"{path} is not a config: it must be a .py file, such as {_known_configs(path)}")
    if not path.is_file():
        raise UserError(f"no config {path}; there are {_known_configs(path)}")
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
        raise UserError(f"{path} has no function {name}(); such a file defines one that returns {RETURNED[name]}")
    return getattr(module, name)


def _known_configs(path: Path) -> str:
    folder = path.parent if path.parent.name == "configs" or list(path.parent.glob("*.py")) else Path("configs")
    known = sorted(file.name for file in folder.glob("*.py"))
    return f"{', '.join(known)} in {folder}" if known else f"no configs in {folder} either"
