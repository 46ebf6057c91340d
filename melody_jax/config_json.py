"""Configs as plain JSON values and back, and where two of them differ."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from melody_jax.errors import UserError

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """The resolved config as plain JSON values; where a file's reader could not know a config's class, it is said.

    That is of stages, of fields that may hold one of several, and of configs derived from a common one.
    """
    if dataclasses.is_dataclass(config):
        hints = typing.get_type_hints(type(config))
        values = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
        for name in values:
            if len(_dataclasses_of(hints[name])) > 1:
                values[name] = {"class": type(getattr(config, name)).__name__, **values[name]}
        derived = any(dataclasses.is_dataclass(base) for base in type(config).__bases__)
        return (
            {"class": type(config).__name__, **values} if derived or hasattr(config, "gradients") else values
        )
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    return config


def to_json(config: Any) -> str:
    """`to_dict` as indented JSON text."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """The dataclass that `to_dict` wrote; lists become tuples, nested dicts the dataclasses their types name.

    Of a class that others are derived from, the one that `values` names.

    Raises:
        UserError: a field that `cls` does not have, a class that is not known, or a value its checks refuse.
    """
    if values.get("class") != cls.__name__:
        cls = _named(_dataclasses_of(cls), values)
    values = {name: value for name, value in values.items() if name != "class"}
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
    if unknown:
        raise UserError(
            f"{cls.__name__} has no field {unknown[0]!r}: the file was written by another version"
        )
    return cls(**{name: _from_plain(hints[name], value) for name, value in values.items()})


def difference(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> both values, where two configs (dataclasses or the dicts of `to_dict`) differ; in order."""
    flat_a, flat_b = _flatten(to_dict(a)), _flatten(to_dict(b))
    both = {
        name: (flat_a.get(name, "absent"), flat_b.get(name, "absent")) for name in sorted(flat_a | flat_b)
    }
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _dataclasses_of(hint: Any) -> list[Any]:
    """The dataclasses of a union, those derived from the dataclass, or itself if there are none."""
    if isinstance(hint, types.UnionType):
        return [option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
    return list(_leaves(hint)) if dataclasses.is_dataclass(hint) else []


def _leaves(cls: Any) -> Iterator[Any]:
    """The classes derived from `cls` from which no others are."""
    for derived in cls.__subclasses__():
        yield from _leaves(derived)
    if not cls.__subclasses__():
        yield cls


def _named(options: list[Any], values: dict[str, Any]) -> Any:
    """The one of several classes that `values` says is its own."""
    named = {cls.__name__: cls for cls in options}
    if len(named) > 1 and values.get("class") not in named:
        raise UserError(f"class {values.get('class')!r}: it must be one of {', '.join(named)}")
    return named[values["class"]] if len(named) > 1 else options[0]


def _from_plain(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if len(several := _dataclasses_of(hint)) > 1:
        return from_dict(_named(several, value), value)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return _from_plain(options[0], value) if len(options) == 1 else value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if isinstance(value, list):
        arguments = typing.get_args(hint)
        inner = arguments[0] if arguments else Any
        return tuple(_from_plain(inner, element) for element in value)
    return value


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.")
    return flat
