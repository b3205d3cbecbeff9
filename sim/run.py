"""Run something in virtual time so that the same seed gives the same trace.

Invariants: the one place that touches trio's private determinism switch (``tests/sim/test_run.py`` is the canary for
new trio versions); whatever else could differ between two runs is an argument of the thing that runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import torch
import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from sim.ambient import pinned

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]], seed: int = 0) -> T:
    """Run ``main`` under an autojump clock, with trio's scheduling order drawn from ``seed``."""
    switch = "_ALLOW_DETERMINISTIC_SCHEDULING"
    private = vars(trio_run)  # the switch is declared Final, for everybody but trio's own tests
    before, state = private[switch], trio_run._r.getstate()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums must not depend on the machine's cores
    private[switch] = True
    trio_run._r.seed(seed)
    try:
        with pinned(seed):
            return trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        private[switch] = before
        trio_run._r.setstate(state)
        torch.set_num_threads(threads)
