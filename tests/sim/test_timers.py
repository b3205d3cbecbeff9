"""Calls come at their times, in order."""

from __future__ import annotations

from collections.abc import Callable

import trio

from sim.timers import Timers


async def test_calls_come_at_their_times_and_in_the_order_of_asking():
    timers, seen = Timers(), []

    def saw(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, trio.current_time() - began))

    began = trio.current_time()
    timers.after(2, saw("c"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.after(3, saw("d"))
        await trio.sleep(0.5)
        timers.at(began + 1, saw("a"))  # earlier than what the task waits for
        timers.at(began + 1, saw("b"))
        timers.at(began, saw("late"))
        timers.after(4, lambda: timers.after(0, saw("e")))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert seen == [("late", 0.5), ("a", 1), ("b", 1), ("c", 2), ("d", 3), ("e", 4.5)]
