"""A look at a swarm from outside: its announcements, and a ping to each server.

Invariants: bounded in time whatever the servers do; what does not answer is said so, not left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from p2pllm.client.route import name_blocks
from p2pllm.dht.ping import ping
from p2pllm.dht.record import Announcement
from p2pllm.dht.service import Directory
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId

GATHER_S = 3.0
"""How long announcements may keep coming in after the first answer."""
QUIET_S = 0.7
"""No news for so long: the view is complete."""
PING_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. ``alone``: nobody answered at all."""

    model: ModelId
    num_blocks: int
    alone: bool
    servers: tuple[Announcement, ...]
    coverage: tuple[int, ...]
    gaps: tuple[int, ...]
    rtt_s: dict[PeerId, float] = field(default_factory=dict)

    @property
    def gaps_text(self) -> str:
        """The blocks that nobody serves, in words."""
        return name_blocks(self.gaps)


async def look_around(ports: Ports, directory: Directory, model: ModelId, num_blocks: int) -> Look:
    """Gather announcements until they are complete, then ping every server once more than it takes to connect."""
    with trio.move_on_after(GATHER_S + PING_TIMEOUT_S):
        await directory.refresh()
    with trio.move_on_after(GATHER_S):
        quiet = False
        while not quiet:
            with trio.move_on_after(QUIET_S) as waiting:
                await directory.wait_changed()
            quiet = waiting.cancelled_caught and bool(directory.view.announcements(model))
    servers = tuple(directory.view.announcements(model))
    rtts: dict[PeerId, float] = {}

    async def one(server: Announcement) -> None:
        ports.network.learn(server.peer, server.addrs)
        rtt_s = await ping(ports.network, server.peer, server.model, PING_TIMEOUT_S)
        if rtt_s is not None:
            rtts[server.peer] = rtt_s

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(one, server)
    view = directory.view
    gaps = tuple(view.gaps(model, num_blocks))
    return Look(model, num_blocks, directory.lonely, servers, tuple(view.coverage(model, num_blocks)), gaps, rtts)
