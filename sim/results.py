"""What an experiment gives back: tables, plots, gates and JSON lines, as values that any process can hand over.

Invariants: everything here is plain data, equal when it is printed equal; nothing depends on wall time, so that the
same seed gives the same outcome. A gate of a cell that is only recalled is reported and never decides.

    gates = (gate("Llama, 3 servers, 100 ms", ours=1.58, wanted=1.57, tolerance=0.05, source="S"),)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Cell = str | float | int | None
Source = Literal["S", "R", "cal", "ours"]
Sense = Literal["near", "at most", "at least"]

SOURCES: dict[Source, str] = {
    "S": "seen in the paper or its repository",
    "R": "recalled only: reported, never gated",
    "cal": "calibration: fitted to, so no evidence",
    "ours": "our own figure or promise",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it is printed; None is an empty cell."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells under {len(self.columns)} columns: {row}")


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one group of bars; a None in ``y`` is a gap."""

    name: str
    x: tuple[str | float, ...]
    y: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{self.name}: {len(self.x)} places for {len(self.y)} values")


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot; ``sim.plots`` draws it."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["line", "bar", "step"] = "line"
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """A figure beside what it has to be.

    Attributes:
        tolerance: relative.
        ok: None where the figure is reported only.
        source: where ``wanted`` comes from.
        sense: whether ``ours`` has to be close to ``wanted``, or on one side of it.
    """

    name: str
    ours: float | None
    wanted: float | None
    tolerance: float
    ok: bool | None
    source: Source
    sense: Sense = "near"

    @property
    def failed(self) -> bool:
        return self.ok is False

    @property
    def ratio(self) -> float | None:
        """Ours of theirs."""
        return self.ours / self.wanted if self.ours is not None and self.wanted else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that came of one play of a scenario.

    Attributes:
        results: JSON-able, one line each of ``--json``.
        notes: sentences for the reader: what was calibrated, how many variants were tried, what is not covered.
        trace_hash: of everything that happened; ``combined`` makes one of many.
        violations: promises that were broken, each as one line.
        faults: what was done to the swarm, in the text form that ``--faults`` takes.
    """

    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    gates: tuple[Gate, ...]
    results: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    trace_hash: str
    violations: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """No promise was broken and no gate failed."""
        return not self.violations and not any(gate.failed for gate in self.gates)


def gate(
    name: str,
    ours: float | None,
    wanted: float | None,
    tolerance: float,
    source: Source,
    sense: Sense = "near",
) -> Gate:
    """Hold ``ours`` against ``wanted``; a missing figure fails where there is something to hold it against."""
    return Gate(name, ours, wanted, tolerance, _holds(ours, wanted, tolerance, source, sense), source, sense)


def _holds(ours: float | None, wanted: float | None, tolerance: float, source: Source, sense: Sense) -> bool | None:
    if source == "R" or wanted is None:
        return None
    if ours is None or math.isnan(ours):
        return False
    slack = abs(wanted) * tolerance + 1e-12 * max(1.0, abs(wanted))  # the second: what sums of floats leave over
    match sense:
        case "at most":
            return ours <= wanted + slack
        case "at least":
            return ours >= wanted - slack
    return abs(ours - wanted) <= slack


def combined(hashes: Iterable[str]) -> str:
    """One trace hash of many, in order."""
    return hashlib.blake2b("\n".join(hashes).encode(), digest_size=16).hexdigest()
