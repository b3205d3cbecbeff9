"""Trap: once a thousand peers are known, libp2p's peer store first forgets those without addresses: itself, its key.

From then on the node can sign nothing, and the DHT is over for it. Besides, a peer may have any number of addresses.
Here the node itself is never forgotten, the others in the order in which they were heard of, and addresses are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

from p2pllm.net.addresses import ADDRESSES_PER_PEER_MAX
from p2pllm.net.fixes.digest import require

REPLACED = "db1c540c22e00eed"
PEERS_MAX = 4096


class BoundedPeerStore(PeerStore):
    """A peer store that remembers its owner."""

    def __init__(self, me: ID, peers_max: int = PEERS_MAX) -> None:
        require(PeerStore._enforce_peer_limit, REPLACED, "peerstore")
        super().__init__(max_peers=peers_max)
        self._me = me

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        super().add_addrs(peer_id, addrs[:ADDRESSES_PER_PEER_MAX], ttl)
        kept = self.peer_data_map[peer_id].addrs
        del kept[:-ADDRESSES_PER_PEER_MAX]

    def _enforce_peer_limit(self) -> None:
        for peer in list(self.peer_data_map):
            if len(self.peer_data_map) <= self.max_peers:
                return
            if peer != self._me:
                del self.peer_data_map[peer]
                self.peer_record_map.pop(peer, None)
