"""Trap: the DHT keeps 50,000 values for a day, providers for two, and no more than the first 20 providers of a key.

In a swarm that churns, the first twenty providers of a model would be dead machines soon, and no living one could join
them. Here both live as long as an announcement may, by the clock of the ports, and the longest-silent provider makes
room. The class digests also cover the private calls that ``p2pllm.net.kad`` makes on both stores.
"""

from __future__ import annotations

from collections.abc import Callable

from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.peerinfo import PeerInfo

from p2pllm.net.fixes.digest import require

REPLACED_VALUES = "005a6d53ae01eb8b"
REPLACED_PROVIDERS = "9b96ff0926f7d162"
VALUES_MAX = 4096
PROVIDED_KEYS_MAX = 4096


def install(dht: KadDHT, wall_time: Callable[[], float], life_s: float) -> None:
    """Values and providers of ``dht`` live ``life_s`` after they were last heard of; both stores are bounded."""
    require(ValueStore, REPLACED_VALUES, "kad_stores")
    require(ProviderStore, REPLACED_PROVIDERS, "kad_stores")
    _mend_values(dht.value_store, wall_time, life_s)
    _mend_providers(dht.provider_store, wall_time, life_s)


def _mend_values(values: ValueStore, wall_time: Callable[[], float], life_s: float) -> None:
    store = values.store

    def put_record(key: bytes, record: Record) -> None:
        store.pop(key, None)
        while len(store) >= VALUES_MAX:
            del store[next(iter(store))]
        store[key] = (record, wall_time() + life_s)

    def get(key: bytes) -> Record | None:
        record, until = store.get(key, (None, 0.0))
        return record if until >= wall_time() else None

    def cleanup_expired() -> int:
        late = [key for key, (_, until) in store.items() if until < wall_time()]
        for key in late:
            del store[key]
        return len(late)

    values.put_record = put_record  # type: ignore[method-assign]
    values.get = get  # type: ignore[method-assign]
    values.cleanup_expired = cleanup_expired  # type: ignore[method-assign]


def _mend_providers(providers: ProviderStore, wall_time: Callable[[], float], life_s: float) -> None:
    known = providers.providers

    def add_provider(key: bytes, provider: PeerInfo) -> None:
        of_key = known.setdefault(key, {})
        of_key.pop(str(provider.peer_id), None)
        while len(of_key) >= BUCKET_SIZE:
            del of_key[next(iter(of_key))]
        of_key[str(provider.peer_id)] = ProviderRecord(provider, wall_time())
        while len(known) > PROVIDED_KEYS_MAX:
            del known[next(iter(known))]

    def get_providers(key: bytes) -> list[PeerInfo]:
        late = wall_time() - life_s
        return [record.provider_info for record in known.get(key, {}).values() if record.timestamp >= late]

    def cleanup_expired() -> None:
        late = wall_time() - life_s
        for key, of_key in list(known.items()):
            known[key] = {peer: record for peer, record in of_key.items() if record.timestamp >= late}
            if not known[key]:
                del known[key]

    providers.add_provider = add_provider  # type: ignore[method-assign]
    providers.get_providers = get_providers  # type: ignore[method-assign]
    providers.cleanup_expired = cleanup_expired  # type: ignore[method-assign]
