"""Several faults in one generation: during a replay, of the replacement, of neighbours, in the prefill."""

from __future__ import annotations

import functools

import pytest

from sim.failover import Case, Outcome, play
from sim.faults import FaultAt, Mishap
from tests.failover.verdicts import MODE_NAMES, MODES, check_all, opened

SPARES = ((0, 1), (1, 2), (2, 3)) * 3
STEP = 6
"""Messages of one step through three hops, and a bit of prefill, opening and closing around them."""


@functools.cache
def clean(case: Case) -> Outcome:
    return play(case)


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
@pytest.mark.parametrize("second", [Mishap.KILL, Mishap.HANG, Mishap.GONE], ids=lambda mishap: mishap.value)
def test_a_second_fault_while_the_first_is_mended(second: Mishap, push: bool) -> None:
    """The replacement dials, opens, replays and answers in the messages that follow the first fault."""
    case = Case(push=push, spans=SPARES)
    run = clean(case)
    middle = len(run.seen) // 2
    cases = [
        Case(push=push, spans=SPARES, faults=(FaultAt(Mishap.KILL, first), FaultAt(second, first + later)))
        for first in range(middle, middle + STEP)
        for later in range(1, 10)
    ]
    check_all(cases, run)


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
def test_three_faults_in_the_prefill(push: bool) -> None:
    case = Case(push=push, spans=SPARES)
    run = clean(case)
    start = opened(run)
    cases = [
        Case(push=push, spans=SPARES, faults=tuple(FaultAt(Mishap.KILL, start + first + i * gap) for i in range(3)))
        for first in range(0, 18, 3)
        for gap in (1, 2, 5, 9)
        if gap != 1 or first % 2
    ]
    check_all(cases, run)
