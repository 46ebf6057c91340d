"""Command-line options from dataclasses: each field is an option, a `bool` is a flag, a nested dataclass is a group.

    --steps 50 --data.batch-size 4 --stream --data.no-shuffle

Options are shown with dashes and accepted with underscores too. `option(...)` gives a field a heading in the help, a
range, choices and synonyms.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from melody_jax.errors import UserError
from melody_jax.python_file import docstring

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

SYNONYMS = {
    "seconds": ("duration", "length"),
    "out": ("o", "output"),
    "batch": ("n", "num", "count"),
    "guidance_scale": ("cfg", "guidance"),
    "batch_size": ("batch",),
    "learning_rate": ("lr",),
    "folder": ("data", "dataset"),
}
"""Field -> its names in other programs. If an unknown option has one of them, the error suggests the field."""
PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
"""Type of a value -> its placeholder in the help."""
FIRST = ("what to make", "what to measure", "what to read")
"""Groups that the help shows before those of inherited fields."""
_INDENT = 28
"""Column of the help at which descriptions begin."""


class Option(NamedTuple):
    """One field of a configuration, as the command line sees it."""

    name: str
    """Dotted path with underscores, such as "data.batch_size"."""
    hint: Any
    """Type of its value."""
    default: Any
    owner: type
    """Dataclass that has the field."""
    metadata: Mapping[str, Any]

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return _without_none(self.hint) is bool

    @property
    def field(self) -> str:
        """Last part of the name."""
        return self.name.rpartition(".")[2]

    def shown(self, negated: bool = False) -> str:
        """The option as the help shows it, such as "--data.batch-size"."""
        prefix, dot, field = self.name.rpartition(".")
        return f"--{prefix}{dot}{'no_' if negated else ''}{field}".replace("_", "-")


def option(
    default: Any,
    *,
    group: str = "",
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    synonyms: Sequence[str] = (),
) -> Any:
    """A dataclass field with a group in the help, limits that `check_fields` enforces, and synonyms.

    Args:
        default: immutable value.
        group: heading in the help for this field and the following fields that have no group.
        least: smallest value allowed.
        above: exclusive lower bound.
        most: largest value allowed.
        choices: the values allowed, if they are few.
        synonyms: names in other programs; if an unknown option has one of them, the error suggests this field.
    """
    metadata = {
        "group": group,
        "least": least,
        "above": above,
        "most": most,
        "choices": tuple(choices),
        "synonyms": tuple(synonyms),
    }
    given = {name: value for name, value in metadata.items() if value not in (None, "", ())}
    return dataclasses.field(default=default, metadata=given)


def check_fields(config: "DataclassInstance") -> None:
    """Checks the ranges and choices given to `option`; call it in `__post_init__`. Values of None are not checked.

    Raises:
        UserError: a value is out of range or not among its choices.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        limits = field.metadata
        if value is None:
            continue
        outside = (
            ("least" in limits and not value >= limits["least"])
            or ("above" in limits and not value > limits["above"])
            or ("most" in limits and not value <= limits["most"])
            or ("choices" in limits and value not in limits["choices"])
        )
        if outside:
            raise UserError(f"{field.name} is {value}; it must be {_limits(limits)}")


def parse_options(
    config: T, arguments: Sequence[str], command: str = "melody", positional: str = "", summary: str = ""
) -> T:
    """A copy of a dataclass instance with command-line arguments applied; `--help` prints the options and exits.

    Args:
        config: holds the defaults; fields that hold dataclasses become groups with dotted names.
        arguments: such as ["--steps", "50", "--data.batch-size=4", "--stream"].
        command: the command in the usage line, such as "melody evaluate".
        positional: field set by the argument that has no option name, at any position; empty: none.
        summary: first paragraph of the help; empty: the docstring of the dataclass.

    Raises:
        UserError: an option is unknown (the error suggests one), a value has the wrong type, or a field is set twice.
        SystemExit: after printing the help.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text(config, command, positional, summary))
        raise SystemExit(0)
    options = {entry.name: entry for entry in options_of(config)}
    values: dict[str, Any] = {}
    for name, value in _read(list(arguments), options, positional):
        if name in values:
            raise UserError(
                f"{options[name].shown()} is set twice, to {values[name]} and to {value}; leave one out"
            )
        values[name] = value
    return replace_fields(config, values)


def options_of(config: "DataclassInstance", prefix: str = "") -> Iterator[Option]:
    """The options of a dataclass instance, including those of the dataclasses that its fields hold."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from options_of(value, f"{prefix}{field.name}.")
        elif not dataclasses.is_dataclass(_without_none(hints[field.name])):  # an absent one has no text form
            yield Option(prefix + field.name, hints[field.name], value, type(config), field.metadata)


def replace_fields(config: T, values: Mapping[str, Any]) -> T:
    """A copy with fields replaced by dotted name, all at once and innermost first.

    Checks that involve several fields therefore see only the final values.
    """
    changes: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    for head in {name.split(".")[0] for name in values if "." in name}:
        inner = {
            name.split(".", 1)[1]: value for name, value in values.items() if name.startswith(f"{head}.")
        }
        changes[head] = replace_fields(changes.get(head, getattr(config, head)), inner)
    return dataclasses.replace(config, **changes)


def _read(arguments: list[str], options: dict[str, Option], positional: str) -> Iterator[tuple[str, Any]]:
    """(name of the field, value) pairs in the order of the arguments."""
    free: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            free += arguments
            break
        if not _is_option(argument):
            free.append(argument)
            continue
        name, equals, inline = argument.lstrip("-").partition("=")
        entry, negated = _find(argument, name.replace("-", "_"), options)
        if entry.is_flag:
            if equals or (arguments and arguments[0] in ("True", "False", "true", "false")):
                raise UserError(
                    f"{entry.shown()} takes no value: write {entry.shown()} or {entry.shown(negated=True)}"
                )
            yield entry.name, not negated
        else:
            yield entry.name, _value(entry, [inline] if equals else _take(arguments, _arity(entry.hint)))
    if free and not positional:
        raise UserError(f"unexpected argument {free[0]!r}; options are written --name value")
    if len(free) > 1:
        raise UserError(
            f"unexpected argument {free[1]!r} after {free[0]!r}; quote a {positional} of several words"
        )
    if free:
        yield positional, _value(options[positional], free)


def _is_option(argument: str) -> bool:
    return argument.startswith("--") or re.match(r"-[A-Za-z]", argument) is not None


def _take(arguments: list[str], count: int | None) -> list[str]:
    """Removes the values that follow an option, at most `count`, and returns them."""
    values: list[str] = []
    while arguments and not _is_option(arguments[0]) and (count is None or len(values) < count):
        values.append(arguments.pop(0))
    return values


def _find(argument: str, name: str, options: dict[str, Option]) -> tuple[Option, bool]:
    """The option with that name, and whether it is negated ("no_stream")."""
    prefix, dot, field = name.rpartition(".")
    if argument.startswith("--"):
        if name in options:
            return options[name], False
        positive = options.get(f"{prefix}{dot}{field.removeprefix('no_')}")
        if positive is not None and positive.is_flag:
            return positive, True
    suggestion = _suggest(name, options)
    hint = f"did you mean {suggestion.shown()}?" if suggestion else "--help lists the options"
    raise UserError(f"unknown option {argument.partition('=')[0]}; {hint}")


def _suggest(name: str, options: dict[str, Option]) -> Option | None:
    """The option to suggest: one with this synonym, with the same last part, or with a similar spelling."""
    field = name.rpartition(".")[2]
    for entry in options.values():
        if name in (*entry.metadata.get("synonyms", ()), *SYNONYMS.get(entry.name, ())):
            return entry
    for entry in options.values():
        if field in (entry.field, *SYNONYMS.get(entry.field, ())):
            return entry
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return options[close[0]] if close else None


def _value(entry: Option, values: list[str]) -> Any:
    """The value parsed from the words after an option."""
    if _without_none(entry.hint) is str and len(values) == 1:
        return values[0]
    import tyro  # takes a fifth of a second

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(entry.hint, args=values)
    except SystemExit:
        problem = f"not {' '.join(values)!r}" if values else "and none is given"
        raise UserError(f"{entry.shown()} takes {_placeholder(entry)}, {problem}") from None


def _without_none(hint: Any) -> Any:
    """X of `X | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return members[0] if len(members) == 1 else hint
    return hint


def _arity(hint: Any) -> int | None:
    """Number of words that a value of this type takes; None: any number."""
    hint = _without_none(hint)
    if typing.get_origin(hint) is not tuple:
        return 1
    members = typing.get_args(hint)
    if Ellipsis in members:
        return None
    counts = [_arity(member) for member in members]
    return None if None in counts else sum(count or 0 for count in counts)


def _placeholder(entry: Option) -> str:
    """Placeholder of an option's value in the help."""
    if choices := entry.metadata.get("choices"):
        return "{" + ",".join(choices) + "}"
    return _type_name(entry.hint)


def _type_name(hint: Any) -> str:
    hint = _without_none(hint)
    members = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, members)) + "}"
    if typing.get_origin(hint) is tuple:
        if Ellipsis in members:
            return f"{_type_name(members[0])} ..."
        return " ".join(map(_type_name, members))
    return PLACEHOLDERS.get(hint) or getattr(hint, "__name__", str(hint)).upper()


def _limits(metadata: Mapping[str, Any]) -> str:
    """A range in words, such as "from 1 to 600"; empty if there is none."""
    if choices := metadata.get("choices"):
        return f"one of {', '.join(choices)}"
    least, above, most = (metadata.get(name) for name in ("least", "above", "most"))
    if least is not None and most is not None:
        return f"from {least:,} to {most:,}"
    words = [
        f"{phrase} {value:,}"
        for phrase, value in (("at least", least), ("above", above), ("at most", most))
        if value is not None
    ]
    return " and ".join(words)


def help_text(config: "DataclassInstance", command: str, positional: str = "", summary: str = "") -> str:
    """The help of a command: usage, summary, and its options by group with their ranges and defaults."""
    width = min(shutil.get_terminal_size().columns, 110)
    groups: dict[str, list[str]] = {}
    heading = "options"
    for entry in sorted(options_of(config), key=lambda entry: "." in entry.name):
        heading = _heading(config, entry, heading)
        groups.setdefault(heading, []).append(_entry_text(entry, width))
    summary = summary or docstring(type(config))
    words = [command, *([f"[{positional.upper()}]"] if positional else []), "[options]"]
    parts = [
        f"usage: {' '.join(words)}",
        "\n".join(textwrap.wrap(" ".join(summary.split("\n\n")[0].split()), width)),
    ]
    in_order = sorted(groups.items(), key=lambda group: not group[0].startswith(FIRST))
    parts += [f"{title}:\n" + "\n".join(entries) for title, entries in in_order]
    return "\n\n".join(part for part in parts if part)


def _heading(config: "DataclassInstance", entry: Option, previous: str) -> str:
    """The group of an option: the one it names, else its nested dataclass, else the group of the option before it."""
    prefix = entry.name.rpartition(".")[0]
    if group := entry.metadata.get("group"):
        return f"{prefix}: {group}" if prefix else group
    if not prefix:
        return previous
    words = descriptions(type(config)).get(prefix, "").rstrip(".")
    title = f"--{prefix}.*".replace("_", "-")
    return f"{title} ({words})" if words else title


def _entry_text(entry: Option, width: int) -> str:
    """An option's lines of the help."""
    name = f"  {entry.shown()}"
    if not entry.is_flag:
        name += f" {_placeholder(entry)}"
    elif entry.default is True:
        name = f"  {entry.shown(negated=True)}"
    notes = []
    if not entry.metadata.get("choices"):
        notes.append(_limits(entry.metadata))
    if not entry.is_flag and entry.default not in (None, "", ()):
        default = entry.default
        words = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        notes.append(f"default {words}")
    elif entry.default is True:
        notes.append(f"default {entry.shown()}")
    note = "; ".join(filter(None, notes))
    text = descriptions(entry.owner).get(entry.field, "")
    lines = textwrap.wrap(
        f"{text} ({note})" if note else text, max(width - _INDENT, 30), break_on_hyphens=False
    )
    if lines and len(name) < _INDENT - 1:
        name = f"{name:<{_INDENT}}{lines.pop(0)}"
    return "\n".join([name, *(" " * _INDENT + line for line in lines)])


def descriptions(owner: type) -> dict[str, str]:
    """Field -> the docstring below it, for a dataclass and its base classes."""
    texts: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        try:
            source = inspect.getsource(cls) if dataclasses.is_dataclass(cls) else ""
        except (OSError, TypeError):
            continue
        for definition in ast.parse(textwrap.dedent(source)).body:
            body = definition.body if isinstance(definition, ast.ClassDef) else []
            for field, text in itertools.pairwise(body):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    texts[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return texts
