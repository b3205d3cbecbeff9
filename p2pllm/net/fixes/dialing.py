"""Trap: libp2p dials one address of a peer, sleeps 250 ms beside it, remembers a failure for 60 s; and dials strangers.

Its own protocols (the DHT) dial through ``Swarm.dial_peer``; that method is replaced, on the one swarm, by our dialer,
which races all addresses, ends with the first that works, and remembers nothing. Its auto-connector, which dials
anybody of whom it has heard until half of the connection limit is used, is told to do nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from libp2p.abc import INetConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

from p2pllm.errors import PeerLost
from p2pllm.net.fixes.digest import require
from p2pllm.types import PeerId

REPLACED = "f8829e76d340f313"


def stay_put(swarm: Swarm) -> None:
    """``swarm`` dials nobody on its own."""

    async def dial_nobody() -> None:
        pass

    swarm.auto_connector.maybe_connect = dial_nobody  # type: ignore[method-assign]


def install(swarm: Swarm, connect: Callable[[PeerId], Awaitable[object]]) -> None:
    """``swarm`` dials through ``connect``."""
    require(Swarm.dial_peer, REPLACED, "dialing")

    async def dial_peer(peer_id: ID) -> list[INetConn]:
        try:
            await connect(PeerId(str(peer_id)))
        except PeerLost as exc:
            raise SwarmException(str(exc)) from exc
        return swarm.get_connections(peer_id)

    swarm.dial_peer = dial_peer  # type: ignore[method-assign]
