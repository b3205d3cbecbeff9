"""Fills frozen dataclasses from TOML, and answers a mistake with the file, the key, what was found and what is allowed.

What a field may be: bool, int, float, str, ``Literal``, ``Enum`` (by value), ``Path`` (relative to the file, and it
must be there), another dataclass (a table), ``tuple[X, ...]`` or ``tuple[X, Y]`` (a list), ``dict[str, X]`` (a table
with free keys), and unions of these: dataclasses in a union are told apart by a ``Literal`` field of theirs. Bounds of
numbers and of list items come from ``field(metadata={"min": ..., "max": ..., "about": ...})``; ``"max": inf`` lets
infinity in.

Invariants: pure but for asking whether a file is there; every complaint is a ``UserError`` of one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from p2pllm.errors import UserError
from sim.kinds import nearest

T = TypeVar("T")
Limits = Mapping[str, Any]
NO_LIMITS: Limits = {}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file: what a complaint begins with."""

    file: Path
    keys: str = ""

    def key(self, name: str) -> Place:
        return Place(self.file, f"{self.keys}.{name}" if self.keys else name)

    def item(self, index: int) -> Place:
        return Place(self.file, f"{self.keys}[{index}]")

    def wrong(self, text: str) -> UserError:
        return UserError(f"{self.file}: {self.keys + ': ' if self.keys else ''}{text}")

    def expected(self, hint: Any, limits: Limits, value: object) -> UserError:
        return self.wrong(f"found {shown(value)}, expected {described(hint, limits)}")


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML file, read."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> Document:
    """Read a TOML file.

    Raises:
        UserError: there is none, or it is no TOML; says where.
    """
    try:
        return Document(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not TOML: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from error


def fill(cls: type[T], table: Mapping[str, Any], place: Place) -> T:
    """An instance of the dataclass ``cls`` with what the table says, and defaults for the rest.

    Raises:
        UserError: a key is unknown or missing, or its value is not allowed.
    """
    assert dataclasses.is_dataclass(cls)
    hints = get_type_hints(cls)
    known = {one.name: one for one in dataclasses.fields(cls) if one.init}
    for key in table:
        if key not in known:
            raise place.wrong(f"unknown key {key!r}{nearest(key, known)}; allowed here: {', '.join(known) or 'none'}")
    for name, one in known.items():
        if name not in table and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            wanted = described(hints[name], one.metadata)
            raise place.wrong(f"key {name!r} is missing; expected {wanted}")
    values = {key: convert(hints[key], table[key], place.key(key), known[key].metadata) for key in table}
    try:
        return cls(**values)
    except (UserError, ValueError) as error:  # what the dataclass itself demands of its fields together
        raise place.wrong(" ".join(str(error).split())) from error


def convert(hint: Any, value: Any, place: Place, limits: Limits = NO_LIMITS) -> Any:
    """``value`` as the type wants it.

    Raises:
        UserError: it is something else.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(get_args(hint), hint, value, place, limits)
    if not fits(hint, value):
        raise place.expected(hint, limits, value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return fill(hint, value, place)
    if origin is tuple:
        return _items(get_args(hint), hint, value, place, limits)
    if origin is dict:
        return {key: convert(get_args(hint)[1], one, place.key(key), limits) for key, one in value.items()}
    if hint is Path:
        return _file(value, place)
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        return _chosen(hint, value, place)
    if hint in (int, float):
        return _number(hint, value, place, limits)
    return value


def fits(hint: Any, value: object) -> bool:
    """Whether the value has the shape of the type, its content aside."""
    origin = get_origin(hint)
    if hint is type(None):
        return False  # TOML has no null: leave the key out
    if dataclasses.is_dataclass(hint) or origin is dict:
        return isinstance(value, dict)
    if origin is tuple:
        return isinstance(value, list)
    if origin is Literal:
        return any(type(one) is type(value) for one in get_args(hint))
    if hint is Path or (isinstance(hint, type) and issubclass(hint, Enum)):
        return isinstance(value, str)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    assert hint in (bool, str), f"no scenario can say what {hint} is"
    return isinstance(value, hint)


def _one_of(options: tuple[Any, ...], hint: Any, value: Any, place: Place, limits: Limits) -> Any:
    able = [option for option in options if fits(option, value)]
    literals = [option for option in able if get_origin(option) is Literal and value in get_args(option)]
    plain = [option for option in able if get_origin(option) is not Literal]
    if dataclasses.is_dataclass(able[0] if able else None) and len(able) > 1:
        return fill(_tagged(able, value, place), value, place)
    if literals or plain:
        return convert((literals or plain)[0], value, place, limits)
    real = [option for option in options if option is not type(None)]
    if len(real) == 1:
        return convert(real[0], value, place, limits)
    raise place.expected(hint, limits, value)


def _tagged(classes: list[Any], table: Mapping[str, Any], place: Place) -> Any:
    """Which of several dataclasses a table means, by the first ``Literal`` field that they share."""
    for one in dataclasses.fields(classes[0]):
        tags = [get_type_hints(cls).get(one.name) for cls in classes]
        if all(get_origin(tag) is Literal for tag in tags):
            choice = table.get(one.name, one.default)
            for cls, tag in zip(classes, tags, strict=True):
                if choice in get_args(tag):
                    return cls
            every: Any = Literal[tuple(word for tag in tags for word in get_args(tag))]
            raise place.key(one.name).expected(every, NO_LIMITS, table.get(one.name))
    raise AssertionError(f"nothing tells {classes} apart")


def _items(kinds: tuple[Any, ...], hint: Any, value: list[Any], place: Place, limits: Limits) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is ...:
        return tuple(convert(kinds[0], one, place.item(i), limits) for i, one in enumerate(value))
    if len(value) != len(kinds):
        raise place.expected(hint, limits, value)
    pairs = zip(kinds, value, strict=True)
    return tuple(convert(kind, one, place.item(i), limits) for i, (kind, one) in enumerate(pairs))


def _number(hint: Any, value: float, place: Place, limits: Limits) -> float:
    low, high = limits.get("min", -math.inf), limits.get("max")
    finite = math.isfinite(value) or high == math.inf
    if math.isnan(value) or not finite or value < low or (high is not None and value > high):
        raise place.expected(hint, limits, value)
    return float(value) if hint is float else value


def _chosen(hint: Any, value: Any, place: Place) -> Any:
    options = words(hint)
    if value not in options:
        near = nearest(value, map(str, options)) if isinstance(value, str) else ""
        raise place.wrong(f"found {shown(value)}, expected {described(hint)}{near}")
    return value if get_origin(hint) is Literal else hint(value)


def _file(value: str, place: Place) -> Path:
    path = (place.file.parent / value).resolve()
    if not path.exists():
        raise place.wrong(f"there is no file {path}")
    return path


# -- how types and values are spoken of ----------------------------------------------------------------------------


def words(hint: Any) -> tuple[Any, ...]:
    """The values of a ``Literal`` or an ``Enum``."""
    return get_args(hint) if get_origin(hint) is Literal else tuple(one.value for one in hint)


def described(hint: Any, limits: Limits = NO_LIMITS) -> str:
    """A type, as a person would say it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described(one, limits) for one in args if one is not type(None))
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        options = words(hint)
        return ("one of " if len(options) > 1 else "") + ", ".join(shown(one, kind=False) for one in options)
    if origin is tuple:
        if args[1:] == (...,):
            return f"a list, each item {described(args[0], limits)}"
        return f"a list of {len(args)}: {'; '.join(described(one, limits) for one in args)}"
    if origin is dict:
        return f"a table, each value {described(args[1], limits)}"
    if dataclasses.is_dataclass(hint):
        keys = ", ".join(one.name for one in dataclasses.fields(hint) if one.init)
        return f"a table with {keys or 'nothing in it'}"
    if hint in (int, float):
        return ("a whole number" if hint is int else "a number") + bounds(limits)
    return {bool: "true or false", str: "text", Path: "the path of a file", Any: "anything"}[hint]


def bounds(limits: Limits) -> str:
    """`` from 1 to 10``, or as much of it as there is."""
    low = limits.get("min")
    high = limits.get("max") if limits.get("max") != math.inf else None
    if low is not None and high is not None:
        return f" from {_plain(low)} to {_plain(high)}"
    if low is not None:
        return f" of at least {_plain(low)}"
    return f" of at most {_plain(high)}" if high is not None else ""


def _plain(bound: float) -> str:
    return f"{bound:.0f}" if bound == round(bound) and abs(bound) < 1e15 else f"{bound:g}"


def shown(value: object, *, kind: bool = True) -> str:
    """A value as TOML writes it, short, with its kind where that could be mistaken."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return (text if len(text) <= 60 else text[:56] + '..."') + (" (text)" if kind else "")
        case dict():
            return "a table" if value else "an empty table"
        case list():
            return f"a list of {len(value)}"
        case int() | float():
            return f"{value}"
    return f"{value} ({type(value).__name__})"
