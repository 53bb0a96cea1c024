"""Strict schemas: frozen dataclasses that accept exactly the keys they declare.

A schema is any class under `@strict`. Fields may be other schemas, optional, in lists or in `dict[str, Schema]`.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

SchemaT = TypeVar("SchemaT")

strict = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
"""Decorator for a config class: frozen, keyword-only, unknown keys are errors, values are checked against types.

No number is infinite or none at all: nothing that is configured can mean that.
"""

# What a number of a config may be; a field without one of these may be negative (an angle, a shift, a place).
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NumberT = TypeVar("NumberT")


def _rising(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range must not fall, found [{pair[0]}, {pair[1]}]")
    return pair


Range = Annotated[tuple[NumberT, NumberT], AfterValidator(_rising)]
"""Lowest and highest: `Range[Positive]`."""

_BOUNDS = {
    "greater_than_equal": "must be at least {}",
    "greater_than": "must be above {}",
    "less_than_equal": "must be at most {}",
}  # of pydantic's problems
_ABOVE_ZERO = {"must be at least 0": "must not be negative", "must be above 0": "must be positive"}


def not_deciding(default: Any = dataclasses.MISSING) -> Any:
    """A field that does not decide what comes out (a device, a batch size): `deciding` leaves it out."""
    return dataclasses.field(default=default, metadata={"decides": False})


def decides(field: dataclasses.Field) -> bool:
    return field.metadata.get("decides", True)


class ConfigError(ValueError):
    """A person's configuration is wrong; the message says what was found and what would be right."""


def from_plain(schema: type[SchemaT], values: Mapping[str, Any], *, where: str = "config") -> SchemaT:
    """A schema instance from nested plain values; every problem is listed in one ConfigError that names `where`."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{where}: wanted keys and their values, found {values!r:.80}")
    try:
        return schema(**values)
    except ValidationError as error:
        lines = [describe_problem(schema, problem) for problem in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + "\n  ".join(lines)) from None


def empty_texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted keys of empty texts that are not their default: as a path each would mean the current folder."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            if held == "" and isinstance(held, str) and field.default != "":
                yield ".".join((*path, field.name))
            yield from empty_texts(held, (*path, field.name))
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from empty_texts(held, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, held in enumerate(value):
            yield from empty_texts(held, (*path, str(number)))


def describe_problem(schema: type, problem: Mapping[str, Any]) -> str:
    """One line for one pydantic problem: the dotted key, what was wrong, what would be right."""
    path = _without_tags(schema, tuple(str(step) for step in problem["loc"]))
    dotted = ".".join(path)
    if problem["type"] == "unexpected_keyword_argument":
        return unknown_key(schema, path)
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"missing key `{dotted}`"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in _BOUNDS:
        (bound,) = problem["ctx"].values()
        message = _BOUNDS[problem["type"]].format(f"{bound:g}")
        message = _ABOVE_ZERO.get(message, message)
    found = problem.get("input")
    is_short = isinstance(found, str | int | float | bool) or found is None
    text = f"`{dotted}`: {message}" if dotted else message
    return f"{text}, found {found!r}" if is_short and repr(found) not in message else text


def _without_tags(schema: type, path: tuple[str, ...]) -> tuple[str, ...]:
    """A path as a person writes it: pydantic also names which alternative of a union it was in."""
    kept: tuple[str, ...] = ()
    for step in path[:-1]:
        kept = (*kept, step) if types_at(schema, (*kept, step)) else kept
    return (*kept, *path[-1:])


def unknown_key(schema: type, path: Sequence[str]) -> str:
    """Message for a key that the schema does not know, with the nearest right one.

    The nearest name may stand beside it, or anywhere else in the tree when the level was forgotten.
    """
    dotted = ".".join(path)
    parent = tuple(path[:-1])
    while parent and fields_at(schema, parent) is None:
        parent = parent[:-1]
    beside = fields_at(schema, parent) or ()
    wrong = path[len(parent)] if len(parent) < len(path) else path[-1]
    nearest = difflib.get_close_matches(wrong, beside, n=1, cutoff=0.6)
    if nearest:
        suggestion = ".".join((*parent, nearest[0], *path[len(parent) + 1 :]))
        return f"unknown key `{dotted}`; did you mean `{suggestion}`?"
    elsewhere = [key for key in all_keys(schema) if key.rsplit(".", 1)[-1] == path[-1]]
    if elsewhere:
        return f"unknown key `{dotted}`; did you mean `{elsewhere[0]}`?"
    level = f"`{'.'.join(parent)}`" if parent else "the top level"
    return f"unknown key `{dotted}`; keys at {level}: {', '.join(sorted(beside)) or 'none'}"


def is_known_key(schema: type, path: Sequence[str]) -> bool:
    """Whether a dotted key (as its steps) exists in the schema; keys of open mappings are always known."""
    return len(types_at(schema, path)) > 0


def fields_at(schema: type, path: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the keys that may stand below `path`; None if nothing with named keys lies there."""
    names: list[str] = []
    found_schema = False
    for kind in types_at(schema, path):
        if dataclasses.is_dataclass(kind):
            found_schema = True
            names.extend(field.name for field in dataclasses.fields(kind))
    return tuple(dict.fromkeys(names)) if found_schema else None


def all_keys(schema: type, prefix: str = "", depth: int = 6) -> list[str]:
    """Every dotted key that the schema declares, without those below open mappings."""
    keys: list[str] = []
    for name in fields_at(schema, ()) or ():
        keys.append(prefix + name)
        for kind in types_at(schema, (name,)):
            if dataclasses.is_dataclass(kind) and depth > 0:
                keys.extend(all_keys(kind, f"{prefix}{name}.", depth - 1))
    return keys


def types_at(schema: Any, path: Sequence[str]) -> list[Any]:
    """The types a value at `path` may have, unions taken apart; empty if the path does not exist."""
    kinds = list(_alternatives(schema))
    for step in path:
        kinds = [found for kind in kinds for below in _step_into(kind, step) for found in _alternatives(below)]
    return kinds


def _step_into(kind: Any, step: str) -> Iterable[Any]:
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = {field.name for field in dataclasses.fields(kind)}
        return (hints[step],) if step in known else ()
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return (arguments[1],)
    if kind is Any or kind in (dict, list) or (isinstance(kind, type) and issubclass(kind, Mapping)):
        return (Any,)
    if origin in (list, tuple) and step.isdigit():
        return (arguments[0],)
    return ()


def _alternatives(kind: Any) -> Iterable[Any]:
    if get_origin(kind) in (typing.Union, types.UnionType):
        for alternative in get_args(kind):
            yield from _alternatives(alternative)
    elif get_origin(kind) is typing.Annotated:
        yield from _alternatives(get_args(kind)[0])
    else:
        yield kind
