"""The order of the package's folders and modules, and what its source must not hold; read from the syntax trees."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "melody_jax"
GROUND = (
    "audio",
    "loudness",
    "audio_decoding",
    "audio_format",
    "audio_headers",
    "chips",
    "collectives",
    "config_json",
    "control_tokens",
    "melody_tokens",
    "diffusion",
    "guidance",
    "errors",
    "extras",
    "files",
    "flops",
    "folders",
    "hlo",
    "mirror",
    "mpeg_audio",
    "object_store",
    "options",
    "parameterisation",
    "python_file",
    "roles",
    "runtime",
    "sharding",
    "spectral",
    "tensor_file",
    "text",
)
"""Modules that may be imported from anywhere."""
FLOORS = (
    GROUND,
    ("config",),
    ("models",),
    ("release", "release_check", "release_folder", "release_source", "hub"),
    ("composer",),
    ("data",),
    ("convert",),
    ("training",),
    ("sampling",),
    ("systems",),
    ("evaluation",),
    ("ablation", "scale"),
    ("studio",),
    ("cli",),
)
"""From the ground up: a module imports from its own floor and from those below it."""
LAZY_FRONTS = ("melody_jax", "melody_jax.cli")
"""Import what stands above them, inside functions: the public API and the command line."""
IDENTIFIERS = {
    "_fooling_loss", "Alarm", "apart", "asked", "at", "before_any", "both", "carry_out", "d_judged",
    "exits_cleanly", "explains_full_disk", "found", "hear", "Heard", "heard", "held", "ill",
    "judge", "kept", "known", "look_back", "look_up", "made", "nothing_heard", "own", "paste",
    "said", "Sentinel", "Shell", "split_batch", "spread", "there", "told", "untouched", "using",
    "verdict", "went_back", "whole",
}  # fmt: skip
"""Names that the project's language has better ones for."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of each module of the package."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = (file.relative_to(ROOT).with_suffix("").parts for file in files)
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): file
        for parts, file in zip(names, files, strict=True)
    }


@cache
def sources() -> dict[str, Path]:
    """Name -> file of all source that the size checks read: the package, scripts, configs and benchmarks."""
    files = [*modules().values(), *ROOT.glob("*.py")]
    files += [file for folder in ("configs", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    return {str(file.relative_to(ROOT)): file for file in files}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, at its top or inside a function."""
    package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(modules()[name])):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            candidates = [path if path in modules() else base for path in submodules]
        else:
            continue
        yield from (path for path in candidates if path in modules())


def floor(name: str) -> int:
    """Index of a module's floor."""
    top = name.split(".")[1]
    return next(index for index, members in enumerate(FLOORS) if top in members)


def test_every_module_has_a_floor() -> None:
    listed = {member for members in FLOORS for member in members}
    tops = {name.split(".")[1] for name in modules() if "." in name}
    assert tops <= listed


def test_no_import_runs_up() -> None:
    upward = {
        f"{name} -> {target}"
        for name in modules()
        if name not in LAZY_FRONTS
        for target in imports(name)
        if target != PACKAGE and floor(target) > floor(name)
    }
    assert not upward


def test_no_import_runs_in_a_circle() -> None:
    graph = {
        name: {target for target in imports(name) if target not in (*LAZY_FRONTS, name)}
        for name in modules()
        if name not in LAZY_FRONTS
    }
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    while roots := graph.keys() - {target for targets in graph.values() for target in targets}:
        graph = {name: targets for name, targets in graph.items() if name not in roots}
    assert not graph


def test_files_are_short() -> None:
    long = {name for name, file in sources().items() if len(file.read_text().splitlines()) > MAX_FILE_LINES}
    assert not long


def test_functions_are_short() -> None:
    long = {
        f"{name}: {node.name}"
        for name, file in sources().items()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    }
    assert not long


def identifiers(node: ast.AST) -> Iterator[str]:
    """Names that a node of a syntax tree introduces or uses as its own."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or ""
    elif isinstance(node, ast.ExceptHandler):
        yield node.name or ""


def test_names_are_the_fields() -> None:
    offenders = {
        f"{name}: {identifier}"
        for name, file in sources().items()
        for node in ast.walk(tree(file))
        for identifier in identifiers(node)
        if identifier in IDENTIFIERS
    }
    assert not offenders


def test_no_type_is_ignored() -> None:
    ignored = {name for name, file in sources().items() if re.search(r"#\s*type:\s*ignore", file.read_text())}
    assert not ignored


def test_tests_do_not_import_each_other() -> None:
    names = {file.stem for file in (ROOT / "tests").glob("test_*.py")}
    offenders = {
        f"tests/{file.name}: {node.module}"
        for file in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ImportFrom) and node.module in names
    }
    assert not offenders
