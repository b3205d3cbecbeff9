"""What may stand in a scenario: every key of every kind, from the dataclasses that the reader fills.

Invariants: nothing here is written by hand, so the reference in the documentation cannot lie: a test compares it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from p2pllm.errors import UserError
from sim.catalog import Head
from sim.kinds import KINDS, Kind, kind_of
from sim.markdown import table as in_markdown
from sim.reader import described
from sim.results import Table
from sim.store import write

LONG = 60
"""Lists that are longer as text are shortened."""
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"


def kinds(names: Iterable[str] = ()) -> list[Kind[Any]]:
    """Kinds by name; all of them where none is named."""
    return [kind_of(name) for name in list(names) or sorted(KINDS)]


def table(cls: type, title: str = "") -> Table:
    """The keys of one dataclass."""
    hints = get_type_hints(cls)
    rows = []
    for one in dataclasses.fields(cls):
        if one.init:
            allowed = _allowed(hints[one.name], one.metadata)
            rows.append((one.name, allowed, default(one), str(one.metadata.get("about", ""))))
    return Table(title or cls.__name__, ("key", "allowed", "default", "about"), tuple(rows))


def _allowed(hint: Any, limits: Any) -> str:
    """As a mistake is answered, but tables are named instead of spelled out."""
    text = described(hint, limits)
    for cls in nested(hint):
        text = text.replace(described(cls), f"a table {cls.__name__}")
    return text


def nested(hint: Any) -> Iterator[type]:
    """Dataclasses inside a type."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    if get_origin(hint) is not None:
        for one in get_args(hint):
            yield from nested(one)


def tables(classes: Iterable[type]) -> list[type]:
    """Every dataclass that a scenario of one of these can hold below its top level, once, in order of appearance."""
    found: dict[type, None] = {}

    def visit(cls: type) -> None:
        for hint in get_type_hints(cls).values():
            for inner in nested(hint):
                if inner not in found:
                    found[inner] = None
                    visit(inner)

    for cls in classes:
        visit(cls)
    return list(found)


def default(one: dataclasses.Field[Any]) -> str:
    """A field's default as TOML writes it."""
    if one.default is not dataclasses.MISSING:
        return literal(one.default)
    if one.default_factory is not dataclasses.MISSING:
        return literal(one.default_factory())
    return "needed"


def literal(value: Any) -> str:
    """A value as TOML writes it, where it can."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case float():
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case tuple() | list():
            if any(dataclasses.is_dataclass(one) for one in value):
                return "some tables"
            text = f"[{', '.join(map(literal, value))}]"
            return (
                text if len(text) <= LONG else f"[{literal(value[0])}, {literal(value[1])}, ...] ({len(value)} items)"
            )
        case dict():
            return "{" + ", ".join(f"{key} = {literal(one)}" for key, one in value.items()) + "}"
        case Enum():
            return literal(value.value)
    return "its defaults" if dataclasses.is_dataclass(value) else str(value)


def markdown() -> str:
    """The whole reference."""
    found = kinds()
    parts = ["### In every scenario\n", _markdown(table(Head))]
    for kind in found:
        stacks = ", ".join(f"`{stack}`" for stack in kind.stacks)
        parts.append(f'### `kind = "{kind.name}"`\n\n{kind.about[:1].upper()}{kind.about[1:]}. Stacks: {stacks}.\n')
        parts.append(_markdown(table(kind.params)))
    for cls in tables(kind.params for kind in found):
        parts.append(f"### Table {cls.__name__}\n")
        parts.append(_markdown(table(cls)))
    return "\n".join(parts)


def _markdown(found: Table) -> str:
    note = "" if found.rows else "No keys of its own."
    rows = tuple((key, allowed, f"`{usual}`", about) for key, allowed, usual, about in found.rows)
    return in_markdown(dataclasses.replace(found, rows=rows, note=note), code=True)


def updated(text: str) -> str:
    """A document with the reference between its two marks.

    Raises:
        UserError: the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"there is no {BEGIN} with an {END} after it")
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def update(path: Path) -> bool:
    """Renew the reference in a document; whether that changed anything.

    Raises:
        UserError: it cannot be read, or has no place for it.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    after = updated(before)
    if after != before:
        write(path, after)
    return after != before
