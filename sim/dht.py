"""The DHT's verbs of the simulated network: values at the hosts nearest to their key, found in a few round trips.

A host with a connection is a member. A lookup walks three round trips and ends at the twenty members nearest to the
key; what they accept shows after ``Links.record_delay_s``.

Invariants: routing tables are not simulated (every member that can be reached is found), validity and expiry are: a
host stores only what the product's validator accepts, and keeps the newer of two values. A partition splits it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from heapq import nsmallest
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
        self._version = 0
        self._members: dict[str, int] = {}
        self._nearest: dict[str, tuple[int, list[SimNetwork]]] = {}

    def changed(self, host: SimNetwork) -> None:
        """A host's connections have changed: with one at least it is a member."""
        joined = host.alive and bool(host.links)
        if joined != (host.name in self._members):
            self._version += 1
            if joined:
                self._members[host.name] = _position(host.me)
            else:
                del self._members[host.name]

    def forget(self, host: SimNetwork) -> None:
        """A host died, and its share with it."""
        self._values.pop(host.name, None)
        self._providers.pop(host.name, None)

    async def _holders(self, host: SimNetwork, key: str) -> list[SimNetwork]:
        """Walk to the members nearest to ``key``."""
        cut = self._world.cut
        nearest = [other for other in self._around(key, host) if other is not host and not cut(host.name, other.name)]
        if not nearest or not host.links:
            await trio.sleep(self._world.config.dht_timeout_s)
            raise PeerLost("no other member of the DHT can be reached")
        latency = self._world.latency
        rtt = max(latency(host.name, other.name) + latency(other.name, host.name) for other in nearest[:COPIES])
        await trio.sleep(LOOKUP_ROUND_TRIPS * rtt)
        return [other for other in nearest[:COPIES] if self._world.open_to(host.name, other.name)]

    def _around(self, key: str, host: SimNetwork) -> list[SimNetwork]:
        """The members nearest to ``key``, nearest first; remembered while nobody comes or goes."""
        if self._world.divided:
            return self._sorted(key, [name for name in self._members if not self._world.cut(host.name, name)])
        known = self._nearest.get(key)
        if known is None or known[0] != self._version:
            known = self._nearest[key] = (self._version, self._sorted(key, list(self._members)))
        return known[1]

    def _sorted(self, key: str, names: list[str]) -> list[SimNetwork]:
        target = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
        nearest = nsmallest(COPIES + 1, names, key=lambda name: self._members[name] ^ target)
        return [self._world.hosts[name] for name in nearest]

    async def put(self, host: SimNetwork, key: str, value: bytes) -> None:
        """Store here and at the nearest members that accept it."""
        if not self.store(host, key, value, self._world.links.record_delay_s):
            raise LocalProtocolError(f"not a record for {key}, or a newer one is already out")
        self._world.note("put", host.name, key, value)
        holders = await self._holders(host, key)
        accepted = [self.store(holder, key, value, self._world.links.record_delay_s) for holder in holders]
        if not any(accepted):
            raise PeerLost("no other member of the DHT took the record")

    def store(self, holder: SimNetwork, key: str, value: bytes, delay_s: float = 0.0) -> bool:
        """What ``holder`` does with a value that it is asked to store; it shows after ``delay_s``."""
        try:
            validate_dht(key, value, self._world.wall_time(holder.name))
        except RemoteProtocolError:
            return False
        values = self._values.get(holder.name, {})
        if key in values and newer(values[key], value):
            return False
        self._soon(delay_s, partial(self._show, holder, key, value))
        return True

    def _show(self, holder: SimNetwork, key: str, value: bytes) -> None:
        values = self._values.setdefault(holder.name, {})
        if self._up(holder) and (key not in values or not newer(values[key], value)):
            values[key] = value

    def _up(self, holder: SimNetwork) -> bool:
        return holder.alive and self._world.hosts[holder.name] is holder

    def _soon(self, delay_s: float, call: Callable[[], None]) -> None:
        if delay_s:
            self._world.timers.after(delay_s, call)
        else:
            call()

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
            self._soon(self._world.links.record_delay_s, partial(self._offer, holder, key, host.me, host.addrs))

    def _offer(self, holder: SimNetwork, key: str, peer: PeerId, addrs: tuple[str, ...]) -> None:
        if self._up(holder):
            self._providers.setdefault(holder.name, {}).setdefault(key, {})[peer] = addrs

    async def find(self, host: SimNetwork, key: str, limit: int) -> tuple[PeerId, ...]:
        """Providers that the nearest members know, each once, and we ourselves."""
        found: dict[PeerId, tuple[str, ...]] = {}
        for holder in (*await self._holders(host, key), host):
            found.update(self._providers.get(holder.name, {}).get(key, {}))
        found.pop(host.me, None)
        for peer, addrs in list(found.items())[:limit]:
            host.learn(peer, addrs)
        return tuple(found)[:limit]


def _position(peer: PeerId) -> int:
    return int.from_bytes(hashlib.sha256(peer.encode()).digest(), "big")
