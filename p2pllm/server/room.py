"""The KV cache's accounting for tasks that wait: an open stands in line until its pages are free or its time is up.

Invariants: all decisions are ``kvcache``'s; this wakes the tasks whose turn came. Nobody waits without a deadline, and
who gives up waiting leaves the line at once.
"""

from __future__ import annotations

from collections.abc import Hashable

import trio

from p2pllm.server.kvcache import KVCache, Reservation


class CacheRoom:
    """Reservations of pages, with waiting."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._waiting: dict[Hashable, trio.Event] = {}
        self._granted: dict[Hashable, Reservation] = {}

    async def reserve(self, owner: Hashable, rows: int, length: int, timeout_s: float) -> Reservation | None:
        """Pages for ``rows`` rows of up to ``length`` tokens; None: still none free after ``timeout_s``.

        Raises:
            ValueError: the owner has asked already, or so much can never fit.
        """
        reservation = self.cache.ask(owner, rows, length)
        if reservation is not None:
            return reservation
        event = self._waiting[owner] = trio.Event()
        try:
            with trio.move_on_after(timeout_s):
                await event.wait()
            reservation = self._granted.get(owner)
        finally:
            del self._waiting[owner]
            self._granted.pop(owner, None)
            if reservation is None:  # too late, or cancelled, perhaps in the moment of the grant
                self.release(owner)
        return reservation

    def release(self, owner: Hashable) -> None:
        """Give the owner's pages back, as soon as no pass in flight uses them."""
        self._wake(self.cache.release(owner))

    def pin(self, reservation: Reservation) -> None:
        self.cache.pin(reservation)

    def unpin(self, reservation: Reservation) -> None:
        self._wake(self.cache.unpin(reservation))

    def _wake(self, granted: list[Reservation]) -> None:
        for reservation in granted:
            self._granted[reservation.owner] = reservation
            self._waiting[reservation.owner].set()
