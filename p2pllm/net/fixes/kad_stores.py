"""Trap: the DHT keeps 50,000 values for a day, providers for two, and no more than the first 20 providers of a key.

In a swarm that churns, the first twenty providers of a model would be dead machines soon, and no living one could join
them. Here both live as long as an announcement may, and the longest-silent provider makes room.
"""

from __future__ import annotations

from collections.abc import Callable

from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.peerinfo import PeerInfo

from p2pllm.net.fixes.digest import require

REPLACED_PUT_RECORD = "5dca808da3442239"
REPLACED_ADD_PROVIDER = "69188266eae0ada6"
VALUES_MAX = 4096
PROVIDED_KEYS_MAX = 4096


def install(dht: KadDHT, wall_time: Callable[[], float], life_s: float) -> None:
    """Values and providers of ``dht`` live ``life_s`` after they were last heard of; both stores are bounded."""
    require(ValueStore.put_record, REPLACED_PUT_RECORD, "kad_stores")
    require(ProviderStore.add_provider, REPLACED_ADD_PROVIDER, "kad_stores")
    values, providers = dht.value_store, dht.provider_store
    add_stock = providers.add_provider

    def put_record(key: bytes, record: Record) -> None:
        values.store.pop(key, None)
        while len(values.store) >= VALUES_MAX:
            del values.store[next(iter(values.store))]
        values.store[key] = (record, wall_time() + life_s)

    def add_provider(key: bytes, provider: PeerInfo) -> None:
        known = providers.providers.setdefault(key, {})
        late = wall_time() - life_s
        for peer in [peer for peer, record in known.items() if record.timestamp < late]:
            del known[peer]
        if len(known) >= BUCKET_SIZE and str(provider.peer_id) not in known:
            del known[min(known, key=lambda peer: known[peer].timestamp)]
        add_stock(key, provider)
        while len(providers.providers) > PROVIDED_KEYS_MAX:
            del providers.providers[next(iter(providers.providers))]

    values.put_record = put_record  # type: ignore[method-assign]
    providers.add_provider = add_provider  # type: ignore[method-assign]
