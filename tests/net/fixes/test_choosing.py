"""p2pllm.net.fixes.choosing: what libp2p does with equally good connections, and that ours is the same every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.network.swarm import Swarm

from p2pllm.net.fixes.choosing import newest_of_the_best


@dataclass(eq=False)
class Connection:
    """As much of a connection as choosing looks at."""

    streams: int = 0
    kind: ConnectionType = ConnectionType.DIRECT

    def get_connection_type(self) -> ConnectionType:
        return self.kind

    def get_streams(self) -> tuple[int, ...]:
        return tuple(range(self.streams))


def chosen(*connections: Connection) -> Connection:
    return cast("Connection", newest_of_the_best(cast("list[INetConn]", list(connections))))


def test_without_the_fix_addresses_in_memory_decide() -> None:
    one, two = Connection(), Connection()
    best = Swarm._best_connection
    both = {id(best(cast("Swarm", None), order)) for order in ([one, two], [two, one])}  # type: ignore[list-item]
    assert both == {max(id(one), id(two))}


@pytest.mark.parametrize("reverse", [False, True])
def test_with_it_the_newest_is_taken(reverse: bool) -> None:
    pair = [Connection(), Connection()]
    if reverse:
        pair.reverse()
    assert chosen(*pair) is pair[1]


def test_direct_ones_then_busy_ones_come_first() -> None:
    relayed, direct, busy = Connection(9, ConnectionType.RELAYED), Connection(), Connection(2)
    assert chosen(direct, relayed) is direct
    assert chosen(busy, direct, relayed) is busy
