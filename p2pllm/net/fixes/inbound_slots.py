"""Trap: an inbound connection keeps its slot of the connection limit, and a task, until the host ends.

libp2p's handler of an accepted connection waits for the end of the swarm, "to keep the connection open". So after as
many inbound connections as the limit allows, counted over the node's whole life, it accepts no more. Here the handler
is cancelled when its link has closed.
"""

from __future__ import annotations

import trio
from libp2p.custom_types import THandler

from p2pllm.net.link import Link


async def until_closed(handler: THandler, link: Link) -> None:
    """Run libp2p's handler of an accepted connection, no longer than the connection."""
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope

        async def handle() -> None:
            await handler(link)
            scope.cancel()

        nursery.start_soon(handle)
        await link.closed.wait()
        scope.cancel()
