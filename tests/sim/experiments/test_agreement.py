"""Kind "agreement": settings, gates and tables; and that the simulated stacks do agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.agreement import Cell, Punctuality
from sim.experiments import agreement
from sim.experiments.agreement import KIND, LoadSpec, Params, cells_of, run
from sim.kinds import Run
from sim.measuring import Load, Timed


def test_every_setting_is_there_once() -> None:
    cells = cells_of(Params())
    assert len(cells) == len(set(cells)) == 16
    assert str(cells[0]) == "10 ms, 10 Mbit/s, relayed, 1 x int8"


def test_simulated_stacks_agree_and_say_what_they_were_told() -> None:
    outcome = run(Params(loads=(LoadSpec(),)), Run(stack="libp2p", quick=True, processes=1))
    assert outcome.ok
    assert len(outcome.gates) == 2
    assert outcome.gates[0].name == "10 ms, 10 Mbit/s, relayed, 1 x int8: libp2p as ports"
    steps, told = outcome.tables
    assert [row[6] for row in steps.rows] == [None, None]
    assert told.rows == (("1 x int8", "2: 1.20 3: 1.40", 0.3, 1.2),)
    assert "not asked for" in outcome.notes[1]


def test_real_sockets_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth more or less is agreement; a machine that was late says so; another chain is a broken promise."""

    def play_real(cells, pace, repeats, congestion, on_cell):
        chain = ("0:3", "3:5", "5:8")
        found = {
            Cell(10.0, 10.0, "relayed", Load()): Timed((0.070,) * 4, chain),
            Cell(10.0, 10.0, "pushed", Load()): Timed((0.2,) * 4, ("0:8",)),
        }
        return found, Punctuality(10.0, 10.0, 1000, 0.02, 50.0, 9.0)

    monkeypatch.setattr(agreement, "play_real", play_real)
    monkeypatch.setattr(agreement, "measure_machine", lambda *_: (LoadSpec().machine(),))
    outcome = run(Params(loads=(LoadSpec(),)), Run(stack="real", quick=True, processes=1))
    assert [one.name for one in outcome.gates if one.failed] == [
        f"10 ms, 10 Mbit/s, pushed, 1 x int8: {stack} as real" for stack in ("ports", "libp2p")
    ]
    assert outcome.violations == ("10 ms, 10 Mbit/s, pushed, 1 x int8: chains 0:3 3:5 5:8, 0:8",)
    assert "too busy" in outcome.notes[1]
    assert outcome.tables[2].rows == ((10.0, 10.0, 1000, 0.02, 50.0, 9.0),)


def test_real_sockets_come_first() -> None:
    assert KIND.stacks[0] == "real"
    assert replace(Params(), modes=("pushed",)).modes == ("pushed",)
