"""Kind "offload": the papers' upper bounds for offloading, digit by digit, and a real run for their shape.

Invariants: a bound that was seen has to agree to its last printed digit. The real run is reported only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from p2pllm.errors import UserError
from sim.kinds import Kind, Run
from sim.offloading import BATCH_S, RealRun, SmallModel, Timed, forward_rate, honest_one_rate, one_rate, step_rate
from sim.paper import OFFLOADS, Cell, Offload
from sim.results import Gate, Outcome, Plot, Series, Source, Table, combined, gate


@dataclass(frozen=True, slots=True)
class Params:
    """The real run."""

    hidden: int = field(default=1024, metadata={"min": 64, "max": 8192, "about": "of the small model; 32 divides it"})
    blocks: int = field(default=8, metadata={"min": 1, "max": 64})
    tokens: tuple[int, ...] = field(default=(1, 128), metadata={"min": 1, "max": 512, "about": "new tokens per step"})
    real: bool = field(default=True, metadata={"about": "measure this machine, too"})


@dataclass(frozen=True, slots=True)
class _Bound:
    row: Offload
    what: str
    paper: Cell
    ours: float
    digits: int
    fitted: bool = False

    @property
    def name(self) -> str:
        return f"{self.row.gpus} x A100, {self.row.gbit_per_s:g} Gbit/s, {self.what}"

    @property
    def printed(self) -> float:
        """As the papers print it."""
        return round(self.ours, self.digits)

    @property
    def source(self) -> Source:
        return "cal" if self.fitted else self.paper.found


def bounds() -> Iterator[_Bound]:
    """All cells of the table."""
    for row in OFFLOADS:
        for length in (128, 2048):
            yield _Bound(row, f"steps/s at {length}", row.step, step_rate(row), 2)
        yield _Bound(row, "tokens/s, 1 x 128", row.one, one_rate(row), 1)
        yield _Bound(row, "tokens/s, 64 x 128", row.forward, forward_rate(row), 1, fitted=row is OFFLOADS[0])


def run(params: Params, how: Run) -> Outcome:
    """The bounds, then this machine."""
    if params.hidden % 32:
        raise UserError(f"hidden: {params.hidden} is no multiple of 32: the small model has 16 heads of an even size")
    cells = list(bounds())
    gates = tuple(gate(cell.name, cell.printed, cell.paper.value, 0.0, cell.source) for cell in cells)
    tables = [_bounds_table(cells), _honest_table()]
    plots = []
    if params.real:
        timed = _measured(params, how)
        tables.append(_real_table(timed))
        plots.append(_real_plot(timed))
    return Outcome(
        tables=tuple(tables),
        plots=tuple(plots),
        gates=gates,
        results=tuple(_result(cell, held) for cell, held in zip(cells, gates, strict=True)),
        notes=(f"Computing time of the batch: {BATCH_S:.1f} s, from the one cell 170.3; nothing else is fitted.",),
        trace_hash=combined(f"{cell.what} {cell.ours!r}" for cell in cells),
    )


def _bounds_table(cells: list[_Bound]) -> Table:
    rows = tuple(
        (cell.row.gpus, cell.row.gbit_per_s, cell.what, cell.paper.value, cell.source, cell.printed, cell.ours)
        for cell in cells
    )
    note = "176 GB x 8 / bandwidth per step, twice that with 3 GPUs; S: seen, R: recalled (not gated), cal: fitted to"
    columns = ("A100", "Gbit/s", "bound", "paper", "cell", "ours, printed", "ours")
    return Table("Offloading, upper bounds for BLOOM-176B", columns, rows, note)


def _honest_table() -> Table:
    rows = tuple(
        (row.gpus, row.gbit_per_s, row.one.value, round(one_rate(row), 2), round(honest_one_rate(row), 1))
        for row in OFFLOADS
    )
    note = "The papers' figure for one sequence is a 64th of the batch's; a pass of 1 x 128 tokens alone is faster."
    return Table(
        "One sequence of 128 tokens under the same bound",
        ("A100", "Gbit/s", "paper", "batch / 64", "1 x 128 alone"), rows, note,
    )  # fmt: skip


def _result(cell: _Bound, held: Gate) -> dict[str, object]:
    return {"name": held.name, "paper": cell.paper.value, "cell": cell.source, "ours": cell.ours, "equal": held.ok}


# -- this machine ----------------------------------------------------------------------------------------------------


def _measured(params: Params, how: Run) -> list[tuple[str, Timed]]:
    """From the operating system's memory, and from the disk."""
    small = SmallModel(256, 704, 2) if how.quick else SmallModel(params.hidden, 11 * params.hidden // 4, params.blocks)
    lengths = params.tokens[:1] if how.quick else params.tokens
    ways = (("memory", False), ("disk", True))
    found: list[tuple[str, Timed]] = []
    total = len(ways) * len(lengths)
    with tempfile.TemporaryDirectory() as folder:
        small.write(Path(folder))
        for name, cold in ways:
            real = RealRun(Path(folder), time.perf_counter, cold)
            for tokens in lengths:
                how.progress("a real run", len(found), total)
                found.append((name, real.time(tokens)))
    how.progress("a real run", total, total)
    return found


def _real_table(found: list[tuple[str, Timed]]) -> Table:
    rows = tuple(
        (
            name, timed.tokens, timed.weight_bytes / 1e6, timed.weight_bytes / timed.read_s / 1e9, 1e3 * timed.read_s,
            1e3 * timed.loaded_s, 1e3 * timed.resident_s, 1e3 * timed.offloaded_s,
            timed.offloaded_s / (timed.loaded_s + timed.resident_s),
        )
        for name, timed in found
    )  # fmt: skip
    columns = (
        "weights from", "tokens", "MB", "read GB/s", "bytes / bandwidth ms", "loading ms", "resident ms",
        "offloaded ms", "offloaded / (loading + resident)",
    )  # fmt: skip
    note = (
        "A random Llama on this machine's CPU, in real time: not a gate. loading: reading, checking and building "
        "blocks by the loader of servers; what it takes beyond bytes / bandwidth are its copies. disk: the system's "
        "memory of the file is dropped before each step, as far as the file system allows."
    )
    return Table("Offloading for real, for the shape", columns, tuple(map(_rounded, rows)), note)


def _rounded(row: tuple[str | float | int, ...]) -> tuple[str | float | int, ...]:
    return tuple(float(f"{cell:.3g}") if isinstance(cell, float) else cell for cell in row)


def _real_plot(found: list[tuple[str, Timed]]) -> Plot:
    series = []
    for name in dict.fromkeys(name for name, _ in found):
        mine = [timed for other, timed in found if other == name]
        places = tuple(f"{timed.tokens}" for timed in mine)
        bound = tuple(1e3 * (timed.read_s + timed.resident_s) for timed in mine)
        series.append(Series(f"{name}, measured", places, tuple(1e3 * timed.offloaded_s for timed in mine)))
        series.append(Series(f"{name}, bytes / bandwidth + compute", places, bound))
    return Plot("A step with offloaded weights, this machine", "tokens", "ms", tuple(series), kind="bar")


KIND = Kind(
    "offload", "the papers' offloading bounds to the last digit, and a real run for their shape", Params, run,
    measured=True,
)  # fmt: skip
