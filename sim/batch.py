"""Every scenario of the catalogue, each in a process of its own, as many at once as there are cores.

Scenarios whose kind spreads its cells over processes itself go first, one at a time; the others follow side by side,
the longest first.

Invariants: a scenario that fails or crashes keeps no other one from being played; what each took is measured here,
outside of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from sim.catalog import Scenario
from sim.report import TIMES
from sim.results import Table
from sim.store import write

COMMAND = (sys.executable, "-m", "sim")
ENDS = {0: "ok", 1: "fails", 2: "mistake", 130: "interrupted"}


@dataclass(frozen=True, slots=True)
class Done:
    """One scenario, played.

    Attributes:
        code: exit code of its process.
        told: what went wrong, if anything did.
    """

    name: str
    took_s: float
    code: int
    told: str = ""

    @property
    def end(self) -> str:
        """In a word."""
        return ENDS.get(self.code, "crashed")


@dataclass(frozen=True, slots=True)
class Batch:
    """What to play and how."""

    scenarios: tuple[Scenario, ...]
    out: Path
    seed: int = 0
    quick: bool = False
    processes: int = 1
    command: tuple[str, ...] = COMMAND

    def words(self, scenario: Scenario, processes: int) -> list[str]:
        """The command that plays one of them."""
        words = [*self.command, "run", scenario.asked, "--seed", str(self.seed), "--out", str(self.out)]
        return words + ["--processes", str(processes), "--json"] + ["--quick"] * self.quick


def lanes(scenarios: Sequence[Scenario]) -> tuple[list[Scenario], list[Scenario]]:
    """Those that use all cores by themselves, and the others; the longest first."""
    ordered = sorted(scenarios, key=lambda one: (-one.minutes, one.name))
    return [one for one in ordered if one.kind.parallel], [one for one in ordered if not one.kind.parallel]


async def play_all(batch: Batch, on_done: Callable[[Done], None]) -> list[Done]:
    """Play all; ``on_done`` hears of each one as it ends."""
    found: list[Done] = []

    async def one(scenario: Scenario, processes: int) -> None:
        done = await _play(batch, scenario, processes)
        found.append(done)
        on_done(done)

    alone, beside = lanes(batch.scenarios)
    for scenario in alone:
        await one(scenario, batch.processes)
    waiting = list(reversed(beside))

    async def lane() -> None:
        while waiting:
            await one(waiting.pop(), 1)

    async with trio.open_nursery() as nursery:
        for _ in range(batch.processes):
            nursery.start_soon(lane)
    return found


async def _play(batch: Batch, scenario: Scenario, processes: int) -> Done:
    began = trio.current_time()
    words = batch.words(scenario, processes)
    ended = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    told = _why(_last(ended.stdout), _last(ended.stderr)) if ended.returncode else ""
    return Done(scenario.name, trio.current_time() - began, ended.returncode, told)


def _last(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _why(result: str, complaint: str) -> str:
    """From the last line of results where there is one, else from that of stderr."""
    try:
        found = json.loads(result)
        reasons = [*found["violations"], *(f"gate {name!r}" for name in found["failed_gates"])]
    except (ValueError, KeyError, TypeError):
        return complaint
    return reasons[0] + (f" and {len(reasons) - 1} more" if len(reasons) > 1 else "") if reasons else complaint


def remember(folder: Path, done: Sequence[Done]) -> None:
    """Write what each took beside the results; what others took before stays."""
    path = folder / TIMES
    try:
        before: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    times = before | {one.name: round(one.took_s, 1) for one in done}
    write(path, json.dumps(dict(sorted(times.items())), indent=1) + "\n")


def time_table(done: Sequence[Done], whole_s: float) -> Table:
    """What each took, the longest first, and all of them together."""
    ordered = sorted(done, key=lambda one: (-one.took_s, one.name))
    rows = tuple((one.name, round(one.took_s, 1), one.end, one.told) for one in ordered)
    together_s = sum(one.took_s for one in done)
    note = f"{len(done)} scenarios in {whole_s:.0f} s; one after another they would take about {together_s:.0f} s"
    return Table("Wall time", ("scenario", "s", "end", "why"), rows, note)
