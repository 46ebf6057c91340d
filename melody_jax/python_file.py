"""Python files that a user names: configs, studies, embeddings; and the docstrings of source files."""

import ast
import difflib
import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError

RETURNED = {
    "config": "a TrainConfig",
    "study": "a Study",
    "embedding": "an embedding (evaluation/embedding.py)",
}
"""Function of a user's file -> what it returns."""
FOLDERS = {"config": "", "study": "ablations"}
"""Function of a file that comes with the project -> its folder in configs/."""


def function_of(path: str | Path, name: str) -> Any:
    """The function `name`, one of `RETURNED`, of a Python file, which is run: it is trusted like any other program.

    Args:
        path: a file, or for configs and studies the bare name of one that comes with the project, such as "lm_tiny".
        name: the function's name.

    Raises:
        UserError: there is no such file, it is not Python, or it has no such function.
    """
    path = locate(path, name)
    if path.suffix != ".py":
        raise UserError(
            f"{path} has no {name}(): it must be a .py file that defines it{_alternatives(path, name)}"
        )
    if not path.is_file():
        raise UserError(f"no file {path} to take {name}() from{_alternatives(path, name)}")
    spec = importlib.util.spec_from_file_location(f"melody_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look classes up by their module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    if not callable(getattr(module, name, None)):
        raise UserError(
            f"{path} has no function {name}(); such a file defines one that returns {RETURNED[name]}"
        )
    return getattr(module, name)


def locate(path: str | Path, name: str) -> Path:
    """The file itself, or the one of the project's configs or studies whose bare name was given."""
    path = Path(path)
    if path.is_file() or path.name != str(path) or name not in FOLDERS:
        return path
    shipped = shipped_folder(name) / f"{path.name.removesuffix('.py')}.py"
    return shipped if shipped.is_file() else path


def shipped_folder(name: str) -> Path:
    """Folder of the configs ("config") or studies ("study"): in the installed package, or in the clone."""
    package = Path(__file__).parent
    folder = package / "configs"
    return (folder if folder.is_dir() else package.parent / "configs") / FOLDERS[name]


def shipped_names(name: str) -> list[str]:
    """Bare names of the project's configs ("config") or studies ("study")."""
    return sorted(file.stem for file in shipped_folder(name).glob("*.py"))


def _alternatives(path: Path, name: str) -> str:
    """What may have been meant: the files beside the one that was named, or those of the project."""
    siblings = sorted(file.name for file in path.parent.glob("*.py")) if path.parent != Path() else []
    if siblings:
        return f"; in {path.parent} there are {', '.join(siblings)}"
    if name not in FOLDERS:
        return ""
    names = shipped_names(name)
    closest = difflib.get_close_matches(path.stem, names, 1)
    meant = f"; is {closest[0]} meant? T" if closest else "; t"
    return f"{meant}he package has {', '.join(names)}"


def docstring(owner: Any) -> str:
    """The docstring of a class or module as its source has it, so that `python -OO` shows it too."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):
        return ""
    definition = node.body[0] if isinstance(owner, type) else node
    return ast.get_docstring(definition) or "" if isinstance(definition, ast.ClassDef | ast.Module) else ""
