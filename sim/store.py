"""Outcomes as files: ``NAME.json`` holds all of one, CSV files its tables, PNG files its plots.

Invariants: what is written follows from the outcome alone (no wall time), so the same seed writes the same bytes; files
are replaced whole, never left half written.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from p2pllm.errors import UserError
from sim.results import Gate, Outcome, Plot, Series, Table

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Played:
    """A scenario that was played, and how.

    Attributes:
        repeat: the line that plays it again.
        skipped: why this machine could not play it; then the outcome is empty.
    """

    scenario: str
    about: str
    kind: str
    seed: int
    stack: str
    quick: bool
    repeat: str
    outcome: Outcome
    skipped: str = ""


NOTHING = Outcome((), (), (), (), (), "")


def jsonable(value: Any) -> Any:
    """``value`` for a JSON that every reader takes: what JSON has no number for becomes text, "not a number" null."""
    match value:
        case float() if math.isnan(value):
            return None
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case Mapping():
            return {str(key): jsonable(one) for key, one in value.items()}
        case list() | tuple():
            return [jsonable(one) for one in value]
    return value


def line(value: Mapping[str, Any]) -> str:
    """One JSON object on one line."""
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "untitled"


def stem(played: Played, usual_stack: str) -> str:
    """What the files of a play begin with: stacks beside the usual one get files of their own."""
    return played.scenario if played.stack == usual_stack else f"{played.scenario}@{played.stack}"


def write(path: Path, content: str | bytes) -> None:
    """Replace a file whole.

    Raises:
        UserError: the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.{os.getpid()}")
        half.write_bytes(data)
        half.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def save(folder: Path, name: str, played: Played) -> list[Path]:
    """Write ``NAME.json`` and a CSV per table; returns what was written."""
    paths = [folder / f"{name}.json"]
    write(paths[0], json.dumps(jsonable({"format": FORMAT, **asdict(played)}), indent=1, ensure_ascii=False) + "\n")
    for path, table in zip(table_paths(folder, name, played.outcome), played.outcome.tables, strict=True):
        write(path, as_csv(table))
        paths.append(path)
    return paths


def table_paths(folder: Path, name: str, outcome: Outcome) -> list[Path]:
    return [folder / f"{name}-{part}.csv" for part in _distinct(table.title for table in outcome.tables)]


def plot_paths(folder: Path, name: str, outcome: Outcome) -> list[Path]:
    return [folder / f"{name}-{part}.png" for part in _distinct(plot.title for plot in outcome.plots)]


def _distinct(titles: Iterable[str]) -> list[str]:
    """A slug each, numbered where two would be the same."""
    seen: dict[str, int] = {}
    parts = []
    for title in titles:
        part = slug(title)
        seen[part] = seen.get(part, 0) + 1
        parts.append(part if seen[part] == 1 else f"{part}-{seen[part]}")
    return parts


def as_csv(table: Table) -> str:
    """A table, every digit kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue()


def load(path: Path) -> Played:
    """A play from its ``NAME.json``.

    Raises:
        UserError: the file is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise UserError(f"{path} was written by another version: play the scenario again")
        return Played(**(data | {"outcome": _outcome(data["outcome"])}))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a result of python -m sim run --out: {error}") from error


def load_all(folder: Path) -> dict[str, Played]:
    """Every play of a folder by its files' stem, in alphabetical order; other JSON files are left alone.

    Raises:
        UserError: there is no folder, or nothing in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: python -m sim run SCENARIO --out {folder} makes one")
    paths = [path for path in sorted(folder.glob("*.json")) if _is_ours(path)]
    if not paths:
        raise UserError(f"no results in {folder}: python -m sim run SCENARIO --out {folder} writes some")
    return {path.stem: load(path) for path in paths}


def _is_ours(path: Path) -> bool:
    try:
        return '"format": ' in path.read_text(encoding="utf-8")[:40]
    except (OSError, UnicodeDecodeError):
        return False


def _outcome(data: Mapping[str, Any]) -> Outcome:
    tables = tuple(
        Table(one["title"], tuple(one["columns"]), tuple(map(tuple, one["rows"])), one["note"])
        for one in data["tables"]
    )
    plots = tuple(_plot(one) for one in data["plots"])
    gates = tuple(Gate(**{key: _number(value) for key, value in one.items()}) for one in data["gates"])
    plain = {key: tuple(data[key]) for key in ("results", "notes", "violations", "faults")}
    return Outcome(tables=tables, plots=plots, gates=gates, trace_hash=data["trace_hash"], **plain)


def _plot(data: Mapping[str, Any]) -> Plot:
    series = tuple(Series(one["name"], tuple(one["x"]), tuple(map(_number, one["y"]))) for one in data["series"])
    return replace(Plot(**(dict(data) | {"series": ()})), series=series)


def _number(value: Any) -> Any:
    """The infinities that ``jsonable`` wrote as text."""
    return float(value) if value in ("inf", "-inf") else value
