"""Outcomes on a terminal: tables, gates, notes and what went wrong.

Invariants: formats and prints, decides nothing; numbers look the same here and in the report.
"""

from __future__ import annotations

import math
import sys

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from sim.results import SOURCES, Cell, Gate, Outcome, Table

WIDE = 200
"""Columns where nobody watches: nothing is cut for want of room."""


def text(cell: Cell) -> str:
    """A cell as people read it: four digits that count."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, float):
        return str(cell)
    if not math.isfinite(cell):
        return "" if math.isnan(cell) else f"{cell:g}"
    if abs(cell) >= 1000:
        return f"{cell:,.0f}" if abs(cell) < 1e9 else f"{cell:.3g}"
    return f"{cell:.4g}"


def verdict(gate: Gate) -> str:
    """Whether a gate holds, in a word."""
    return "reported" if gate.ok is None else "ok" if gate.ok else "FAILS"


def wanted(gate: Gate) -> str:
    """What a gate wants, and how closely."""
    if gate.wanted is None:
        return ""
    sense = {"near": "", "at most": "≤ ", "at least": "≥ "}[gate.sense]
    slack = f" ± {100 * gate.tolerance:g} %" if gate.tolerance else ""
    return f"{sense}{text(gate.wanted)}{slack}"


def gate_table(gates: tuple[Gate, ...]) -> Table:
    """All gates as one table."""
    sources = {gate.source: SOURCES[gate.source] for gate in gates}
    rows = tuple((one.name, one.ours, wanted(one), one.ratio, one.source, verdict(one)) for one in gates)
    note = "; ".join(f"{name}: {meaning}" for name, meaning in sources.items())
    return Table("Gates", ("figure", "ours", "wanted", "ratio", "source", "verdict"), rows, note)


def is_number(table: Table, column: int) -> bool:
    """Whether a column holds figures, and therefore stands to the right."""
    cells = [row[column] for row in table.rows if row[column] not in (None, "")]
    return bool(cells) and all(isinstance(cell, int | float) or cell in ("inf", "-inf") for cell in cells)


def console(*, stderr: bool = False) -> Console:
    """A console that never wraps a table to nothing where nobody watches."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else max(WIDE, int(Console().width))
    return Console(file=file, width=width, highlight=False)


def show(title: str, outcome: Outcome, out: Console) -> None:
    """Print all of an outcome."""
    out.print(f"[bold]{escape(title)}[/bold]\n", soft_wrap=True)
    for table in outcome.tables:
        out.print(grid(table), "")
    if outcome.gates:
        out.print(grid(gate_table(outcome.gates)), "")
    for note in outcome.notes:
        out.print(f"[dim]•[/dim] {escape(note)}", soft_wrap=True)
    if outcome.faults:
        out.print(f"faults: {escape(' '.join(outcome.faults))}", soft_wrap=True)
    for violation in outcome.violations:
        out.print(f"[bold red]violation:[/bold red] {escape(violation)}", soft_wrap=True)
    out.print(f"trace {outcome.trace_hash}")


def grid(table: Table) -> Grid:
    """A table for a terminal."""
    found = Grid(
        title=escape(table.title), title_justify="left", title_style="bold", caption=escape(table.note) or None,
        caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
    )  # fmt: skip
    for index, column in enumerate(table.columns):
        found.add_column(escape(column), justify="right" if is_number(table, index) else "left", overflow="fold")
    for row in table.rows:
        found.add_row(*(escape(text(cell)) for cell in row))
    return found
