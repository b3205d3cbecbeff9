"""Measured latencies between regions or hosts, from a CSV file.

The first cell says what the figures are, ``rtt_ms`` or ``one_way_ms``; the first line and the first column name
regions; lines that begin with ``#`` are comments. An empty cell takes the value of the other direction.

Invariants: a mistake in the file is a UserError that names the file and the place; nothing is guessed.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pllm.errors import UserError

UNITS = {"rtt_ms": 0.5e-3, "one_way_ms": 1e-3}
"""What a figure is worth in seconds, one way."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One-way latencies in seconds from region to region."""

    regions: tuple[str, ...]
    seconds: Mapping[tuple[str, str], float]

    def one_way_s(self, a: str, b: str) -> float | None:
        """From ``a`` to ``b``; None: the table does not know one of them."""
        return self.seconds.get((a, b))


def read_matrix(path: Path) -> Matrix:
    """The matrix in a CSV file.

    Raises:
        UserError: the file is missing or is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"cannot read the latencies in {path}: {exc}") from exc
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if not rows or rows[0][0] not in UNITS:
        raise UserError(f"{path}: the first cell must be one of {', '.join(UNITS)}")
    names, scale = rows[0][1:], UNITS[rows[0][0]]
    if [row[0] for row in rows[1:]] != names or len(set(names)) != len(names):
        raise UserError(f"{path}: lines and columns must name the same regions in the same order, each once")
    seconds: dict[tuple[str, str], float] = {}
    for row in rows[1:]:
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: the line of {row[0]} has {len(row) - 1} figures, not {len(names)}")
        for name, cell in zip(names, row[1:], strict=True):
            if cell:
                seconds[row[0], name] = scale * _figure(path, row[0], name, cell)
    for a in names:
        for b in names:
            if (a, b) not in seconds:
                if (b, a) not in seconds:
                    raise UserError(f"{path}: no figure between {a} and {b}")
                seconds[a, b] = seconds[b, a]
    return Matrix(tuple(names), seconds)


def _figure(path: Path, a: str, b: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise UserError(f"{path}: {cell!r} between {a} and {b} is not a number of milliseconds")
    return value
