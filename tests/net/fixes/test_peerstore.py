"""p2pllm.net.fixes.peerstore: a node that knows many peers still knows itself."""

from __future__ import annotations

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from multiaddr import Multiaddr

from p2pllm.net.addresses import ADDRESSES_PER_PEER_MAX
from p2pllm.net.fixes.peerstore import BoundedPeerStore
from tests.net.memory import MemoryNet, networks

KEYS = create_new_key_pair(bytes(31) + b"\1")
ME = ID.from_pubkey(KEYS.public_key)


def crowd(store: PeerStore, count: int) -> None:
    store.add_key_pair(ME, KEYS)
    for number in range(count):
        peer = ID(b"\x12\x20" + number.to_bytes(32, "big"))
        store.add_addrs(peer, [Multiaddr("/ip4/10.0.0.1/tcp/1")], 3600)


def test_without_the_fix_it_forgets_itself() -> None:
    store = PeerStore(max_peers=100)
    crowd(store, 101)
    with pytest.raises(PeerStoreError):
        store.privkey(ME)


def test_with_it_others_are_forgotten() -> None:
    store = BoundedPeerStore(ME, peers_max=100)
    crowd(store, 300)
    assert store.privkey(ME) == KEYS.private_key
    assert len(store.peer_ids()) == 100
    assert store.has_peer(ID(b"\x12\x20" + (299).to_bytes(32, "big")))


def test_addresses_of_a_peer_are_bounded_the_newest_stay() -> None:
    store = BoundedPeerStore(ME)
    peer = ID(b"\x12\x20" + bytes(32))
    for port in range(1, 100):
        store.add_addrs(peer, [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}")], 3600)
    assert len(store.addrs(peer)) == ADDRESSES_PER_PEER_MAX
    assert Multiaddr("/ip4/10.0.0.1/tcp/99") in store.addrs(peer)


async def test_it_is_the_one_in_use() -> None:
    async with networks(MemoryNet(), 1) as (a,):
        assert isinstance(a._host.get_peerstore(), BoundedPeerStore)
