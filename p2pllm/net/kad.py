"""The DHT as p2pllm needs it: KadDHT's routing and stores, our own lookups.

Invariants: a value that ``dht.record`` does not accept is neither stored nor returned, whoever sends it. ``get`` asks
other members and takes the newest of what they say; a copy of our own is never the whole answer.
Lookups go to the hash of a key (members refuse longer lookup keys), so that a key's members are the same for everybody.
Every operation ends within the DHT deadline, and soon after the first answer when others are slow.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.records.record import make_signed_put_record
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import background_trio_service

from p2pllm.dht.record import NAMESPACE, TTL_MAX_MS, newer, validate_dht
from p2pllm.errors import LocalProtocolError, PeerLost, RemoteProtocolError
from p2pllm.net.fixes import kad_clients, kad_protocol, kad_stores
from p2pllm.types import PeerId

ASKED_MAX = 8
"""Members asked for one key: replicas beyond these add little but time."""
STORED_AT_MAX = 20
GRACE_S = 0.5
"""How long others may still answer after the first did."""
ADMISSION_TIMEOUT_S = 5.0


Speaks = Callable[[PeerId, str], Awaitable[bool]]
"""Whether a connected peer speaks a protocol."""


class RecordValidator(Validator):
    """p2pllm's records in libp2p's interface."""

    def __init__(self, wall_time: Callable[[], float]) -> None:
        self._wall_time = wall_time

    def validate(self, key: str, value: bytes) -> None:
        validate_dht(key, value, self._wall_time())

    def select(self, key: str, values: list[bytes]) -> int:
        """The index of the newest; the first of equals, so that nothing is replaced by itself."""
        best = 0
        for at in range(1, len(values)):
            if newer(values[at], values[best]):
                best = at
        return best


class Kad:
    """See the module. Made by ``open_kad``."""

    def __init__(
        self,
        host: IHost,
        dht: KadDHT,
        speaks: Speaks,
        nursery: trio.Nursery,
        wall_time: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._host = host
        self._speaks = speaks
        self._dht = dht
        self._nursery = nursery
        self._wall_time = wall_time
        self._timeout_s = timeout_s
        self._asked: dict[ID, bool] = {}

    # --- membership ---

    def consider(self, peer: ID) -> None:
        """Find out, in the background, whether ``peer`` serves the DHT, and remember it if so."""
        if peer not in self._asked and peer != self._host.get_id():
            self._asked[peer] = False
            self._nursery.start_soon(self.admit, peer)

    def disconnected(self, peer: ID) -> None:
        """It may come back as something else."""
        self._asked.pop(peer, None)

    async def admit(self, peer: ID) -> bool:
        """Put a connected peer into the routing table if it serves the DHT; whether it does."""
        self._asked[peer] = False
        with trio.move_on_after(ADMISSION_TIMEOUT_S):
            self._asked[peer] = await self._speaks(PeerId(str(peer)), kad_protocol.KAD_PROTOCOL)
        if self._asked.get(peer):
            try:
                addrs = self._host.get_peerstore().addrs(peer)
            except PeerStoreError:  # it came to us, and has not yet said where it listens
                addrs = []
            await self._dht.routing_table.add_peer(PeerInfo(peer, addrs), skip_server_mode_check=True)
        return self._asked.get(peer, False)

    async def look_around(self) -> None:
        """Learn who is near us: the join's one lookup."""
        with trio.move_on_after(self._timeout_s):
            await self._dht.peer_routing.find_closest_peers_network(self._host.get_id().to_bytes())

    @property
    def members(self) -> int:
        """Peers in the routing table."""
        return self._dht.get_routing_table_size()

    # --- records ---

    async def put(self, key: str, value: bytes) -> None:
        """Store at the members nearest to ``key`` and here."""
        try:
            validate_dht(key, value, self._wall_time())
        except RemoteProtocolError as exc:
            raise LocalProtocolError(f"not a record for {key}: {exc}") from exc
        name = key.encode()
        held = self._dht.value_store.get(name)
        if held is not None and newer(held.value, value):
            raise LocalProtocolError(f"a newer record for {key} is already out")
        record = make_signed_put_record(name, value, self._host.get_private_key())
        self._dht.value_store.put_record(name, record)
        stored: list[ID] = []

        async def store(peer: ID) -> None:
            if await self._dht.value_store._store_at_peer(peer, name, value, record=record):
                stored.append(peer)

        await self._ask(await self._nearest(name, STORED_AT_MAX), store, stored)
        if not stored:
            raise PeerLost(f"no other member took the record for {key}")

    async def get(self, key: str) -> bytes | None:
        """The newest valid value that other members hold."""
        name = key.encode()
        values: list[bytes] = []
        answered: list[ID] = []

        async def fetch(peer: ID) -> None:
            record = await self._dht.value_store._get_from_peer(peer, name, return_record=True)
            answered.append(peer)
            if isinstance(record, Record) and self._valid(key, record.value):
                values.append(record.value)

        await self._ask(await self._nearest(name, ASKED_MAX), fetch, answered)
        held = self._dht.value_store.get(name)
        if held is not None and values and self._valid(key, held.value):
            values.append(held.value)
        best = None
        for value in values:
            if best is None or newer(value, best):
                best = value
        return best

    def _valid(self, key: str, value: bytes) -> bool:
        try:
            validate_dht(key, value, self._wall_time())
        except RemoteProtocolError:
            return False
        return True

    # --- providers ---

    async def provide(self, key: str) -> None:
        """Tell the members nearest to ``key`` that we have it."""
        target = _target(key.encode())
        self._dht.provider_store.add_provider(target, PeerInfo(self._host.get_id(), self._host.get_addrs()))
        told: list[ID] = []

        async def tell(peer: ID) -> None:
            if await self._dht.provider_store._send_add_provider(peer, target):
                told.append(peer)

        await self._ask(await self._nearest(key.encode(), STORED_AT_MAX), tell, told)
        if not told:
            raise PeerLost(f"no other member could be told that we have {key}")

    async def find(self, key: str, limit: int) -> dict[PeerId, tuple[str, ...]]:
        """Who has ``key``, as far as the nearest members and we know, with addresses."""
        target = _target(key.encode())
        found: dict[PeerId, tuple[str, ...]] = {}
        answered: list[ID] = []

        def add(providers: Sequence[PeerInfo]) -> None:
            for provider in providers:
                peer = PeerId(str(provider.peer_id))
                if provider.peer_id != self._host.get_id() and (peer in found or len(found) < limit):
                    found[peer] = tuple(dict.fromkeys((*found.get(peer, ()), *map(str, provider.addrs))))

        async def ask(peer: ID) -> None:
            providers, _ = await self._dht.provider_store._get_providers_from_peer_with_closers(peer, target)
            answered.append(peer)
            add(providers)

        await self._ask(await self._nearest(key.encode(), ASKED_MAX), ask, answered)
        add(self._dht.provider_store.get_providers(target))
        return found

    # --- inside ---

    async def _nearest(self, name: bytes, count: int) -> list[ID]:
        near: list[ID] = []
        with trio.move_on_after(self._timeout_s / 2):
            near = await self._dht.peer_routing.find_closest_peers_network(_target(name), count)
        if not near:
            near = self._dht.routing_table.find_local_closest_peers(_target(name), count)
        return [peer for peer in near if peer != self._host.get_id()]

    async def _ask(self, peers: Sequence[ID], ask: Callable[[ID], Awaitable[None]], answered: list[ID]) -> None:
        """Ask all at once; once one has answered, the others have a moment left."""
        with trio.move_on_after(self._timeout_s / 2) as scope:
            async with trio.open_nursery() as nursery:

                async def one(peer: ID) -> None:
                    await ask(peer)
                    if answered:
                        scope.deadline = min(scope.deadline, trio.current_time() + GRACE_S)

                for peer in peers:
                    nursery.start_soon(one, peer)


@asynccontextmanager
async def open_kad(
    host: IHost, *, speaks: Speaks, wall_time: Callable[[], float], timeout_s: float, serve: bool
) -> AsyncIterator[Kad]:
    """A DHT node on ``host``; with ``serve`` it also answers others."""
    kad_protocol.install()
    validator = NamespacedValidator({NAMESPACE: RecordValidator(wall_time)}, strict_validation=True)
    dht = KadDHT(
        host,
        DHTMode.SERVER if serve else DHTMode.CLIENT,
        validator=validator,
        validator_changed=True,
        strict_validation=True,
    )
    kad_stores.install(dht, wall_time, TTL_MAX_MS / 1000)
    async with background_trio_service(dht), trio.open_nursery() as nursery:
        kad = Kad(host, dht, speaks, nursery, wall_time, timeout_s)
        kad_clients.install(dht, kad.consider)
        yield kad
        nursery.cancel_scope.cancel()


def _target(name: bytes) -> bytes:
    """A key's place among peers: the sha2-256 multihash of its name."""
    return b"\x12\x20" + hashlib.sha256(name).digest()
