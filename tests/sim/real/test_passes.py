"""What computing takes: noted from real passes, and told to simulated devices."""

from __future__ import annotations

import os

import pytest

from p2pllm.types import Cost, WorkKind
from sim.compute import SimCompute, flat_cost
from sim.measuring import Load
from sim.real.passes import NICE, Passes, Watched, before_others, passes_of


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [
        (Cost(WorkKind.STEP, 1, 40, 3), 0.006),
        (Cost(WorkKind.STEP, 1, 40, 2), 0.005),
        (Cost(WorkKind.PREFILL, 64, 0, 8), 0.016),  # nearest known length, per block
        (Cost(WorkKind.CLIENT, 1), 0.001),
    ],
)
def test_devices_take_what_was_measured(cost: Cost, seconds: float) -> None:
    model = Passes(((2, 5.0), (3, 6.0)), 1.0).cost_model()
    assert model(cost, "cpu") == pytest.approx(seconds)


async def test_only_steps_of_the_load_are_noted() -> None:
    """Prefills, and steps of other sizes (a server that measures itself), are not what is asked for."""
    watched = Watched(SimCompute(flat_cost(0.25)), rows=2)
    for cost in (
        Cost(WorkKind.STEP, 2, 10, 3), Cost(WorkKind.STEP, 1, 10, 3), Cost(WorkKind.PREFILL, 2, 0, 5),
        Cost(WorkKind.CLIENT, 2), Cost(WorkKind.CLIENT, 64),
    ):  # fmt: skip
        assert await watched.run(lambda: 7, cost) == (7, 0.25)
    assert watched.passes() == Passes(((3, 250.0),), 250.0)


@pytest.mark.real_clock
def test_this_machine_takes_some_time() -> None:
    """Each span is found by its number of blocks; more blocks take longer."""
    found = passes_of(((0, 1), (1, 8)), Load(1), steps=3)
    (one, short_ms), (seven, long_ms) = found.hop_ms
    assert (one, seven) == (1, 7)
    assert 0 < short_ms < long_ms
    assert found.client_ms > 0


def test_priority_is_borrowed_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is refused."""
    asked = []
    monkeypatch.setattr(os, "getpriority", lambda *_: 3)
    monkeypatch.setattr(os, "setpriority", lambda *values: asked.append(values[2]))
    with before_others():
        assert asked == [NICE]
    assert asked == [NICE, 3]

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    with before_others():
        pass
