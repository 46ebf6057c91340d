"""Configs as plain JSON values and back, and the differences between two of them."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from melody_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
"""Type of a field -> what its JSON values are called in an error."""


def to_dict(config: Any) -> Any:
    """The resolved config as plain JSON values, with the name of its class where the field's type leaves it open.

    That is the case for stages, for fields that may hold one of several classes, and for configs derived from another.
    """
    if dataclasses.is_dataclass(config):
        hints = typing.get_type_hints(type(config))
        names = [field.name for field in dataclasses.fields(config)]
        values = {name: _named(getattr(config, name), hints[name]) for name in names}
        derived = any(dataclasses.is_dataclass(base) for base in type(config).__bases__)
        if derived or hasattr(config, "gradients"):
            return {"class": type(config).__name__, **values}
        return values
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    return config


def _named(value: Any, hint: Any) -> Any:
    """`to_dict` of a field's value, with the name of its class if the field may hold several."""
    plain = to_dict(value)
    has_choice = isinstance(plain, dict) and len(_dataclasses_of(hint)) > 1
    return {"class": type(value).__name__, **plain} if has_choice else plain


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """The dataclass that `to_dict` wrote; lists become tuples, nested dicts the dataclasses that their types name.

    If classes are derived from `cls`, the result is the one that `values` names.

    Raises:
        UserError: a field that `cls` does not have, an unknown class, a value of another type than its field, or one
            that the checks of the class refuse.
    """
    if values.get("class") != cls.__name__:
        cls = _class_named(_dataclasses_of(cls), values)
    values = {name: value for name, value in values.items() if name != "class"}
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise UserError(
            f"{cls.__name__} has no field {unknown[0]!r}: the file was written by another version"
        )
    fields = {name: _from_plain(hints[name], value, name) for name, value in values.items()}
    try:
        return cls(**fields)
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"{cls.__name__}: {error}") from error


def flat_values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a config; elements of tuples are numbered."""
    if dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from flat_values(getattr(config, field.name), f"{prefix}.{field.name}".lstrip("."))
    elif isinstance(config, tuple | list):
        for i, element in enumerate(config):
            yield from flat_values(element, f"{prefix}.{i}")
    else:
        yield prefix, config


COMPUTE_FIELDS = ("dtype", "remat", "dropout")
"""Fields of a network's config that affect how it computes, not what its weights mean."""


def network_difference(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """`difference` of the configs of two networks, without fields that do not change what weights mean."""
    return {
        name: values
        for name, values in difference(a, b).items()
        if name.rpartition(".")[2] not in COMPUTE_FIELDS
    }


def difference(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> the two values, where two configs (dataclasses or dicts of `to_dict`) differ; in order."""
    flat_a = _flatten(to_dict(a))
    flat_b = _flatten(to_dict(b))
    pairs = {
        name: (flat_a.get(name, "absent"), flat_b.get(name, "absent")) for name in sorted(flat_a | flat_b)
    }
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def with_new_fields(values: dict[str, Any], config: Any) -> dict[str, Any]:
    """What `to_dict` wrote of a config like this one, with the defaults of fields that did not exist then."""
    completed = dict(values)
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        stored = values.get(field.name)
        if field.name not in values:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if default is not dataclasses.MISSING:
                completed[field.name] = _named(default, hints[field.name])
        elif dataclasses.is_dataclass(value) and isinstance(stored, dict):
            completed[field.name] = with_new_fields(stored, value)
    return completed


def _dataclasses_of(hint: Any) -> list[Any]:
    """The dataclasses of a union; those derived from a dataclass, or the dataclass itself if there are none."""
    if isinstance(hint, types.UnionType):
        return [option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
    return list(_leaves(hint)) if dataclasses.is_dataclass(hint) else []


def _leaves(cls: Any) -> Iterator[Any]:
    """The classes derived from `cls` that have no derived classes."""
    for derived in cls.__subclasses__():
        yield from _leaves(derived)
    if not cls.__subclasses__():
        yield cls


def _class_named(options: list[Any], values: dict[str, Any]) -> Any:
    """The one of several classes that `values` names."""
    by_name = {cls.__name__: cls for cls in options}
    name = values.get("class")
    if len(by_name) == 1 and "class" not in values:
        return options[0]
    if not isinstance(name, str) or name not in by_name:
        raise UserError(f"class {name!r}: it must be one of {', '.join(by_name)}")
    return by_name[name]


def _from_plain(hint: Any, value: Any, name: str) -> Any:
    """A field's value from its JSON form. Raises `UserError` for a value of another type than the field's."""
    classes = _dataclasses_of(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        if len(classes) > 1 and len(classes) == len(options):
            values = _object(value, name)
            return from_dict(_class_named(classes, values), values)
        if len(options) == 1:
            return _from_plain(options[0], value, name)
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[DataclassInstance]", hint), _object(value, name))
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (
            Ellipsis not in arguments and len(value) != len(arguments)
        ):
            raise UserError(f"{name} is {value!r}; it must be a list of the field's length")
        hints = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return tuple(_from_plain(hint, item, name) for hint, item in zip(hints, value, strict=True))
    if hint in PLAIN and not _is_plain(value, hint):
        raise UserError(f"{name} is {value!r}; it must be {PLAIN[hint]}")
    return tuple(_from_plain(Any, item, name) for item in value) if isinstance(value, list) else value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name} is {value!r}; it must be an object")
    return value


def _is_plain(value: Any, kind: type) -> bool:
    """Whether a JSON value has the type of a field; True is no number, and a whole number is a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> leaf of nested dicts."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.")
    return flat
