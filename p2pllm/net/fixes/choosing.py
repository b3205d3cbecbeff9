"""Trap: of two connections that two peers made by dialling each other at once, the higher memory address is used.

``Swarm._best_connection`` breaks ties by ``id()``: one process chooses this connection, the next one that, and no run
can be repeated. Here the newest one wins, which is what libp2p in Go does.
"""

from __future__ import annotations

from typing import Any, cast

from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.network.swarm import Swarm

from p2pllm.net.fixes.digest import require

REPLACED = "71d6d6eaa98fc8b7"


def install(swarm: Swarm) -> None:
    """Among connections to one peer ``swarm`` takes the direct, then the busiest, then the newest."""
    require(Swarm._best_connection, REPLACED, "choosing")
    cast("Any", swarm)._best_connection = newest_of_the_best


def newest_of_the_best(connections: list[INetConn]) -> INetConn:
    """The one to open a stream on; ``connections`` are in the order in which they were made."""

    def rank(index: int) -> tuple[bool, int, int]:
        one = connections[index]
        return one.get_connection_type() == ConnectionType.DIRECT, len(one.get_streams()), index

    return connections[max(range(len(connections)), key=rank)]
