"""Trap: whoever opens a DHT stream is put into the routing table as a server, though clients ask too and never answer.

A client in a table costs every later lookup a failed stream, or a dial to a machine that has left. Here a newcomer is
asked, once per connection, whether it speaks the DHT protocol: one round trip, off everybody's path.
"""

from __future__ import annotations

from collections.abc import Callable

from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer.id import ID

from p2pllm.net.fixes.digest import require

REPLACED = "8f3a7ec7983d2afd"


def install(dht: KadDHT, consider: Callable[[ID], None]) -> None:
    """``dht`` hands those who open streams to ``consider`` instead of trusting them to be servers."""
    require(KadDHT.add_peer, REPLACED, "kad_clients")

    async def add_peer(peer_id: ID, *, skip_server_mode_check: bool = False) -> bool:
        if dht.routing_table.peer_in_table(peer_id):
            return await dht.routing_table.add_peer(peer_id, skip_server_mode_check=True)
        consider(peer_id)
        return False

    dht.add_peer = add_peer  # type: ignore[method-assign]
