"""Results as a Markdown page, for the documentation: every table, every gate, plots as files beside the page.

Invariants: follows from the results alone, so that what changes when all is played again shows as a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sim import plots, show
from sim.results import SOURCES, Plot, Table
from sim.store import Played, plot_paths, write

PLOTS = "plots"
HEADER = """\
# Results

Every table and plot of the simulator, as `make sim` makes them; [simulator.md](simulator.md) says how to read them,
what calibration means, and what may be concluded. A cell that agrees with the paper validates the model of network and
queues, and says nothing of this software's speed on the paper's machines.
"""


def table(found: Table, *, code: bool = False) -> str:
    """A table in Markdown.

    Args:
        code: the first column holds names.
    """
    if not found.rows:
        return f"{found.note or 'Nothing.'}\n"
    numbers = [show.is_number(found, column) for column in range(len(found.columns))]
    lines = [_row(found.columns), "|" + "|".join("---:" if number else "---" for number in numbers) + "|"]
    for row in found.rows:
        cells = [show.text(cell) for cell in row]
        lines.append(_row([f"`{cells[0]}`", *cells[1:]] if code else cells))
    return "\n".join(lines) + "\n" + (f"\n{found.note}\n" if found.note else "")


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def page(results: Mapping[str, Played]) -> str:
    """The whole page."""
    parts = [HEADER, table(summary(results))]
    parts += [section(name, played) for name, played in results.items()]
    return "\n".join(parts)


def summary(results: Mapping[str, Played]) -> Table:
    """Every scenario in one line."""
    rows = []
    for played in results.values():
        gates = played.outcome.gates
        held, decided = sum(one.ok is True for one in gates), sum(one.ok is not None for one in gates)
        state = "skipped" if played.skipped else f"{held} of {decided} hold" if decided else "none"
        rows.append((f"[{played.scenario}](#{anchor(played.scenario)})", played.stack, state, played.about))
    note = "; ".join(f"{source}: {meaning}" for source, meaning in SOURCES.items())
    return Table("Scenarios", ("scenario", "stack", "gates", "about"), tuple(rows), f"Sources of figures: {note}.")


def anchor(title: str) -> str:
    """Where a heading's link goes."""
    return "".join(one for one in title.lower().replace(" ", "-") if one.isalnum() or one in "-_")


def section(name: str, played: Played) -> str:
    """One scenario."""
    outcome = played.outcome
    parts = [f"## {played.scenario}\n", f"{played.about[:1].upper()}{played.about[1:]}.\n", f"    {played.repeat}\n"]
    if played.skipped:
        parts.append(f"Skipped: {played.skipped}.\n")
    parts += [f"**Broken promise:** {one}\n" for one in outcome.violations]
    for one in outcome.tables:
        parts += [f"### {one.title}\n", table(one)]
    for plot, path in zip(outcome.plots, plot_paths(Path(PLOTS), name, outcome), strict=True):
        parts.append(f"![{plot.title}: {plot.y_label} by {plot.x_label}]({path.as_posix()})\n")
    if outcome.gates:
        parts += ["### Gates\n", table(show.gate_table(outcome.gates))]
    parts += [f"* {note}" for note in outcome.notes] + [""] * bool(outcome.notes)
    return "\n".join(parts)


def publish(path: Path, results: Mapping[str, Played], *, draw: bool = True) -> list[Path]:
    """Write the page, and its plots beside it; those of plots that are no more go away.

    Raises:
        UserError: it cannot be written, or matplotlib is missing.
    """
    write(path, page(results))
    if not draw:
        return [path]
    wanted: dict[Path, Plot] = {}
    for name, played in results.items():
        paths = plot_paths(path.parent / PLOTS, name, played.outcome)
        wanted |= dict(zip(paths, played.outcome.plots, strict=True))
    for old in (path.parent / PLOTS).glob("*.png"):
        if old not in wanted:
            old.unlink()
    for place, plot in wanted.items():
        write(place, plots.png(plot))
    return [path, *wanted]
