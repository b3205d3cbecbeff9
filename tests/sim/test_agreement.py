"""One chain on every stack: virtual time by what it is told, real sockets by the clock."""

from __future__ import annotations

import pytest

from sim.agreement import Cell, Machine, Virtual, measure_machine, play_real, play_virtual
from sim.measuring import Load, Pace
from sim.real.passes import Passes
from tests.sim.netlab.laboratory import needs_lab

LOAD = Load(8, "fp32")
MACHINE = Machine(LOAD, Passes(((2, 1.0), (3, 2.0)), 0.5), 1.0)
PACE = Pace(position=8, warmup=2, steps=3)


@pytest.mark.parametrize(("mode", "ways"), [("relayed", 6), ("pushed", 4)])
def test_virtual_steps_are_ways_and_passes(mode: str, ways: int) -> None:
    """On wide links nothing else takes long, whatever the stack."""
    cell = Cell(20.0, 1000.0, mode, LOAD)
    ports, libp2p = (play_virtual(Virtual(stack, cell, MACHINE, PACE, 0))[0] for stack in ("ports", "libp2p"))
    assert ports.chain == libp2p.chain == ("0:3", "3:5", "5:8")
    assert ports.median_s == pytest.approx(ways * 0.021 + 0.005 + 0.001, rel=0.01)
    assert libp2p.median_s == pytest.approx(ports.median_s, rel=0.01)


def test_virtual_steps_take_the_bandwidth_that_there_is() -> None:
    """6.5 kB six times through 10 Mbit/s, and a packet: uplink and downlink work side by side, on whole packets."""
    wide, narrow = (
        play_virtual(Virtual("libp2p", Cell(20.0, mbit, "relayed", LOAD), MACHINE, PACE, 0))[0] for mbit in (1000, 10)
    )
    assert narrow.median_s - wide.median_s == pytest.approx(6 * (6500 + 1514) * 8 / 10e6, rel=0.03)


@needs_lab
@pytest.mark.real_clock
def test_real_steps_take_at_least_their_ways() -> None:
    """Latency can only be added to; both modes and loads come back, from the chain that was meant."""
    cells = [Cell(15.0, 100.0, mode, Load(1)) for mode in ("relayed", "pushed")]
    told = []
    found, punctual = play_real(cells, Pace(8, 1, 3), 2, "reno", lambda: told.append(1))
    assert list(found) == cells
    assert len(told) == 2
    for cell, ways in zip(cells, (6, 4), strict=True):
        assert found[cell].chain == ("0:3", "3:5", "5:8")
        assert len(found[cell].step_s) == 6
        assert min(found[cell].step_s) > ways * 0.0149
    assert punctual.delivered > 100


@needs_lab
@pytest.mark.real_clock
def test_the_machine_is_measured() -> None:
    (machine,) = measure_machine((Load(1),), Pace(8, 1, 3), 1, "reno")
    assert machine.load == Load(1)
    assert [blocks for blocks, _ in machine.passes.hop_ms] == [2, 3]
    assert 0 <= machine.message_ms < 100
