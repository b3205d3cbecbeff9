"""The DHT's verbs of the simulated network: values at the hosts nearest to their key, found in a few round trips.

Invariants: routing tables are not simulated (every member that can be reached is found), validity and expiry are: a
host stores only what the product's validator accepts, and keeps the newer of two values. A partition splits it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import trio

from p2pllm.dht.record import newer, validate_dht
from p2pllm.errors import LocalProtocolError, PeerLost, RemoteProtocolError
from p2pllm.types import PeerId

if TYPE_CHECKING:
    from sim.host import SimNetwork
    from sim.network import SimWorld

COPIES = 20
"""Kademlia's k."""
LOOKUP_ROUND_TRIPS = 3


class SimDht:
    """What every host stores for the others."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self._values: dict[str, dict[str, bytes]] = {}
        self._providers: dict[str, dict[str, dict[PeerId, tuple[str, ...]]]] = {}

    def forget(self, host: SimNetwork) -> None:
        """A host died, and its share with it."""
        self._values.pop(host.name, None)
        self._providers.pop(host.name, None)

    async def _holders(self, host: SimNetwork, key: str) -> list[SimNetwork]:
        """Walk to the members nearest to ``key``."""
        members = [other for other in self._members(host) if other is not host]
        if not members:
            await trio.sleep(self._world.config.dht_timeout_s)
            raise PeerLost("no other member of the DHT can be reached")
        target = hashlib.sha256(key.encode()).digest()
        nearest = sorted(members, key=lambda other: _distance(other.me, target))[:COPIES]
        rtt = 2 * max(self._world.latency(host.name, other.name) for other in nearest)
        await trio.sleep(LOOKUP_ROUND_TRIPS * rtt)
        return [other for other in nearest if self._world.open_to(host.name, other.name)]

    def _members(self, host: SimNetwork) -> list[SimNetwork]:
        """Everybody whom connections lead to, hop by hop."""
        found, frontier = {host.name: host}, [host]
        while frontier:
            for other in frontier.pop().connected():
                if other.name not in found and self._world.open_to(host.name, other.name):
                    found[other.name] = other
                    frontier.append(other)
        return list(found.values())

    async def put(self, host: SimNetwork, key: str, value: bytes) -> None:
        """Store here and at the nearest members that accept it."""
        if not self.store(host, key, value):
            raise LocalProtocolError(f"not a record for {key}, or a newer one is already out")
        self._world.note("put", host.name, key, value)
        accepted = [self.store(holder, key, value) for holder in await self._holders(host, key)]
        if not any(accepted):
            raise PeerLost("no other member of the DHT took the record")

    def store(self, holder: SimNetwork, key: str, value: bytes) -> bool:
        """What ``holder`` does with a value that it is asked to store."""
        try:
            validate_dht(key, value, self._world.wall_time(holder.name))
        except RemoteProtocolError:
            return False
        values = self._values.setdefault(holder.name, {})
        if key in values and newer(values[key], value):
            return False
        values[key] = value
        return True

    async def get(self, host: SimNetwork, key: str) -> bytes | None:
        """The newest value of the nearest members; our own copy only if it is newer than theirs."""
        holders = await self._holders(host, key)
        values = [value for holder in holders if (value := self._values.get(holder.name, {}).get(key)) is not None]
        mine = self._values.get(host.name, {}).get(key)
        if values and mine is not None:
            values.append(mine)
        best: bytes | None = None
        for value in values:
            if best is None or newer(value, best):
                best = value
        return best

    async def provide(self, host: SimNetwork, key: str) -> None:
        """Leave our id and addresses with the nearest members."""
        self._world.note("provide", host.name, key, b"")
        for holder in (host, *await self._holders(host, key)):
            self._providers.setdefault(holder.name, {}).setdefault(key, {})[host.me] = host.addrs

    async def find(self, host: SimNetwork, key: str, limit: int) -> tuple[PeerId, ...]:
        """Providers that the nearest members know, each once, and we ourselves."""
        found: dict[PeerId, tuple[str, ...]] = {}
        for holder in (*await self._holders(host, key), host):
            found.update(self._providers.get(holder.name, {}).get(key, {}))
        found.pop(host.me, None)
        for peer, addrs in list(found.items())[:limit]:
            host.learn(peer, addrs)
        return tuple(found)[:limit]


def _distance(peer: PeerId, target: bytes) -> int:
    return int.from_bytes(hashlib.sha256(peer.encode()).digest(), "big") ^ int.from_bytes(target, "big")
