"""Who is connected: live connections by peer, and the news of it for subscribers.

Invariants: bookkeeping only. A peer is connected while it has at least one live connection; its coming and going are
told once each. A subscriber that does not read loses the oldest news, never makes anybody wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import trio
from libp2p.connection_types import ConnectionType

from p2pllm.net.yamux import YamuxConnection
from p2pllm.types import Path, PeerEvent, PeerId

EVENTS_KEPT_MAX = 1024


class Subscription:
    """An async iterator of the latest events."""

    def __init__(self) -> None:
        self._events: deque[PeerEvent] = deque(maxlen=EVENTS_KEPT_MAX)
        self._news = trio.Event()

    def tell(self, event: PeerEvent) -> None:
        self._events.append(event)
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PeerEvent:
        await trio.lowlevel.checkpoint()
        while not self._events:
            self._news = trio.Event()
            await self._news.wait()
        return self._events.popleft()


class Peers:
    """See the module."""

    def __init__(self) -> None:
        self._live: dict[PeerId, list[YamuxConnection]] = {}
        self._subscribers: list[Subscription] = []
        self.on_left: Callable[[PeerId], None] | None = None

    def add(self, conn: YamuxConnection) -> None:
        """A connection is ready for streams."""
        if conn.is_closed:
            return
        conns = self._live.setdefault(conn.peer, [])
        if conn not in conns:
            conns.append(conn)
            if len(conns) == 1:
                self._tell(PeerEvent(conn.peer, connected=True))

    def remove(self, conn: YamuxConnection) -> None:
        """A connection is over."""
        conns = self._live.get(conn.peer, [])
        if conn in conns:
            conns.remove(conn)
            if not conns:
                del self._live[conn.peer]
                self._tell(PeerEvent(conn.peer, connected=False))
                if self.on_left is not None:
                    self.on_left(conn.peer)

    def best(self, peer: PeerId) -> YamuxConnection | None:
        """The connection to use: direct before relayed, then the oldest, on which other streams already are."""
        conns = self._live.get(peer)
        return min(conns, key=lambda conn: not is_direct(conn)) if conns else None

    def all(self, peer: PeerId) -> tuple[YamuxConnection, ...]:
        return tuple(self._live.get(peer, ()))

    @property
    def connected(self) -> tuple[PeerId, ...]:
        return tuple(self._live)

    def path(self, peer: PeerId) -> Path | None:
        """How ``peer`` is connected now."""
        conn = self.best(peer)
        if conn is None:
            return None
        addrs = conn.get_transport_addresses()
        return Path(is_direct(conn), str(addrs[0]) if addrs else "", conn.rtt() or None)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Events from now on."""
        subscription = Subscription()
        self._subscribers.append(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.remove(subscription)

    def _tell(self, event: PeerEvent) -> None:
        for subscriber in self._subscribers:
            subscriber.tell(event)


def is_direct(conn: YamuxConnection) -> bool:
    """Not through a relay."""
    return conn.get_connection_type() is not ConnectionType.RELAYED
