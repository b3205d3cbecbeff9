"""Scenarios: TOML files, those of the catalogue by name and a user's own by path.

Invariants: listing imports no kind, so it is instant; a scenario is read and checked whole before anything is played.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from p2pllm.errors import UserError
from sim.kinds import KINDS, Kind, kind_of, nearest
from sim.reader import Place, fill, read

FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, slots=True)
class Head:
    """What every scenario says of itself, whatever its kind."""

    kind: str = field(metadata={"about": "what plays it; everything else in the file is for the kind to read"})
    about: str = field(default="", metadata={"about": "one line for `python -m sim list` and the report"})
    minutes: float = field(default=0.0, metadata={"min": 0.0, "about": "about how long it takes on two cores"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario that can be played.

    Attributes:
        name: the file's, without its suffix.
        asked: what the user called it: what repeats it.
        kind: what plays it.
        params: the kind's dataclass, filled.
        minutes: about how long it takes on two cores.
    """

    name: str
    asked: str
    path: Path
    about: str
    kind: Kind[Any]
    params: Any
    minutes: float


def names() -> tuple[str, ...]:
    """The catalogue's scenarios, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def locate(asked: str) -> Path:
    """The file that a user means: a name of the catalogue, or the path of a file.

    Raises:
        UserError: there is none; names the nearest ones.
    """
    if asked in names():
        return FOLDER / f"{asked}.toml"
    path = Path(asked)
    if path.is_file():
        return path
    if path.suffix == ".toml" or os.sep in asked:
        raise UserError(f"there is no file {asked}{nearest(path.stem, names())}; scenarios: {', '.join(names())}")
    raise UserError(f"there is no scenario {asked!r}{nearest(asked, names())}; there are: {', '.join(names())}")


def head(path: Path) -> tuple[Head, Mapping[str, Any]]:
    """What a scenario says of itself, and the rest, which its kind has to read.

    Raises:
        UserError: the file cannot be read, or says nothing of its kind.
    """
    data = read(path).data
    own = {one.name for one in fields(Head)}
    found = fill(Head, {key: value for key, value in data.items() if key in own}, Place(path))
    if found.kind not in KINDS:
        near, every = nearest(found.kind, KINDS), ", ".join(sorted(KINDS))
        raise UserError(f"{path}: kind: there is no kind {found.kind!r}{near}; there are: {every}")
    return found, {key: value for key, value in data.items() if key not in own}


def scenario(asked: str) -> Scenario:
    """A scenario, read and checked.

    Raises:
        UserError: it is not there, or something in it is wrong.
    """
    path = locate(asked)
    found, rest = head(path)
    kind = kind_of(found.kind)
    clash = {one.name for one in fields(Head)} & {one.name for one in fields(kind.params)}
    assert not clash, f"kind {kind.name} cannot have keys that every scenario has: {sorted(clash)}"
    params = fill(kind.params, rest, Place(path))
    return Scenario(path.stem, asked, path, found.about, kind, params, found.minutes)
