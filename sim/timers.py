"""Things that happen at a virtual time: one task for all of them, where a task each would cost a scheduler turn each.

Invariants: calls happen in the order of their times, those of one moment in the order in which they were asked for;
none waits, and none may raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import trio


class Timers:
    """Calls to come. ``run`` makes them, until it is cancelled."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._scope = trio.CancelScope()

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """Call at this virtual time, or as soon as may be when it has passed."""
        heappush(self._calls, (when_s, next(self._numbers), call))
        if when_s < self._scope.deadline:
            self._scope.deadline = when_s

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call so many seconds from now."""
        self.at(trio.current_time() + delay_s, call)

    async def run(self) -> None:
        """Make the calls."""
        calls = self._calls
        while True:
            with trio.CancelScope(deadline=calls[0][0] if calls else math.inf) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while calls and calls[0][0] <= now:
                heappop(calls)[2]()
