"""One HTML page of a folder of results: tables beside the paper's, plots, gates, and how to repeat each.

Beside it: ``report.json`` (what every scenario came to), ``gates.csv`` (every gate of every scenario).

Invariants: the page holds everything that it shows (pictures are inside), so it can be mailed; it follows from the
folder's files alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sim import plots, show
from sim.results import SOURCES, Cell, Gate, Plot, Table
from sim.store import Played, as_csv, jsonable, load_all, plot_paths, table_paths, write

PAGE = "report.html"
TIMES = "times.json"
"""Wall seconds by name, where ``all`` played them; apart from results, which wall time must not touch."""


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario on the page."""

    id: str
    played: Played
    pictures: tuple[tuple[Plot, str], ...]
    files: tuple[str, ...]
    wall_s: float | None

    @property
    def held(self) -> int:
        return sum(gate.ok is True for gate in self.played.outcome.gates)

    @property
    def failed(self) -> int:
        return sum(gate.failed for gate in self.played.outcome.gates)

    @property
    def reported(self) -> int:
        return sum(gate.ok is None for gate in self.played.outcome.gates)

    @property
    def state(self) -> str:
        """The class of its line."""
        if self.played.skipped:
            return "skipped"
        return "ok" if self.played.outcome.ok else "fails"

    @property
    def summary(self) -> str:
        """Its gates in a few words."""
        if self.played.skipped:
            return "skipped"
        broken = len(self.played.outcome.violations)
        gates = f"{self.held} of {self.held + self.failed} hold" if self.held + self.failed else "none"
        return gates + (f", {broken} broken promises" if broken else "")


@dataclass(frozen=True, slots=True)
class Total:
    """The page in figures."""

    held: int
    failed: int
    reported: int
    violations: int
    skipped: int


def report(folder: Path, *, draw: bool = True) -> list[Path]:
    """Write page, JSON and CSV; returns their paths.

    Args:
        draw: with plots, for which matplotlib has to be there.

    Raises:
        UserError: there are no results, or matplotlib is missing.
    """
    times = _times(folder)
    sections = [_section(folder, name, played, times.get(name), draw) for name, played in load_all(folder).items()]
    gates = all_gates(sections)
    paths = [folder / PAGE, folder / "report.json", folder / "gates.csv"]
    write(paths[0], page(sections))
    write(paths[1], json.dumps(jsonable({"report": [_summary(one) for one in sections]}), indent=1) + "\n")
    write(paths[2], as_csv(gates))
    return paths


def page(sections: list[Section]) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(Path(__file__).parent)
    )  # fmt: skip
    words: dict[str, Any] = {
        "text": show.text, "verdict": show.verdict, "wanted": show.wanted, "is_number": show.is_number,
        "sources": SOURCES, "sections": sections, "total": total(sections),
    }  # fmt: skip
    return environment.get_template("page.html").render(words) + "\n"


def total(sections: list[Section]) -> Total:
    """All scenarios together."""
    return Total(
        held=sum(one.held for one in sections),
        failed=sum(one.failed for one in sections),
        reported=sum(one.reported for one in sections),
        violations=sum(len(one.played.outcome.violations) for one in sections),
        skipped=sum(bool(one.played.skipped) for one in sections),
    )


def all_gates(sections: list[Section]) -> Table:
    """Every gate of every scenario."""
    columns = ("scenario", "stack", "figure", "ours", "sense", "wanted", "ratio", "tolerance", "source", "verdict")
    rows = tuple(_gate_row(one.played, gate) for one in sections for gate in one.played.outcome.gates)
    return Table("Gates", columns, rows)


def _gate_row(played: Played, gate: Gate) -> tuple[Cell, ...]:
    return (
        played.scenario, played.stack, gate.name, gate.ours, gate.sense, gate.wanted, gate.ratio, gate.tolerance,
        gate.source, show.verdict(gate),
    )  # fmt: skip


def _section(folder: Path, name: str, played: Played, wall_s: float | None, draw: bool) -> Section:
    found = []
    for plot, path in zip(played.outcome.plots, plot_paths(folder, name, played.outcome), strict=True):
        if draw:
            picture = plots.png(plot)
            write(path, picture)
            found.append((plot, base64.b64encode(picture).decode()))
    for table, path in zip(played.outcome.tables, table_paths(folder, name, played.outcome), strict=True):
        write(path, as_csv(table))
    files = (f"{name}.json", *(path.name for path in table_paths(folder, name, played.outcome)))
    return Section(f"s-{name}", played, tuple(found), files, wall_s)


def _summary(section: Section) -> dict[str, Any]:
    played = section.played
    return {
        "scenario": played.scenario,
        "seed": played.seed,
        "stack": played.stack,
        "trace_hash": played.outcome.trace_hash,
        "ok": played.outcome.ok,
        "gates": {"held": section.held, "failed": section.failed, "reported": section.reported},
        "failed_gates": [gate.name for gate in played.outcome.gates if gate.failed],
        "violations": played.outcome.violations,
        "skipped": played.skipped,
        "wall_s": section.wall_s,
        "repeat": played.repeat,
    }


def _times(folder: Path) -> Mapping[str, float]:
    try:
        found: dict[str, float] = json.loads((folder / TIMES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
