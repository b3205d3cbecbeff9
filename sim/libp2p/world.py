"""The libp2p stack: whole product nodes below the Network port, over connections in memory, in virtual time.

libp2p's host, Noise, yamux and the Kademlia DHT are the real ones, each host's own; only sockets are not. Tens of
hosts, where ``sim.network`` simulates thousands.

Invariants: those of ``sim.world.World``; what passes between two hosts passes a ``Wire``. The same seed gives the same
trace under ``sim.run.run``, which pins the clocks and the chance that libp2p takes from the system.

    async with Libp2pWorld(seed=7) as world:
        server, client = await world.start("server"), await world.start("client")
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import TracebackType
from typing import Self, cast
from weakref import WeakValueDictionary

import trio

from p2pllm.config import NetConfig
from p2pllm.net.link import Link
from p2pllm.net.yamux import YamuxStream
from p2pllm.types import PeerId
from sim.libp2p.host import Libp2pHost
from sim.libp2p.stream import Libp2pStream
from sim.libp2p.transport import Address
from sim.libp2p.wire import Place, Way, Wire, connection
from sim.links import Access, Links
from sim.nat import dialable
from sim.queues import Downlink, Piece, Uplink
from sim.timers import Timers
from sim.verbs import Verbs

FIRST_PORT = 40000
"""Of those who dial."""


class Libp2pWorld(Verbs):
    """See ``sim.world.World``. Use it as ``async with``."""

    def __init__(
        self, seed: int = 0, latency_s: float = 0.010, config: NetConfig | None = None, *, links: Links | None = None
    ) -> None:
        super().__init__(seed, links or Links(seed, latency_s), config or NetConfig())
        self.hosts: dict[str, Libp2pHost] = {}
        self.timers = Timers()
        self.nursery: trio.Nursery
        self._nursery_manager = trio.open_nursery()
        self._by_ip: dict[str, str] = {}
        self._by_peer: dict[PeerId, str] = {}
        self._wires: list[Wire] = []
        self._ports = count(FIRST_PORT)
        self._ends: WeakValueDictionary[tuple[Link, int], Libp2pStream] = WeakValueDictionary()
        self._uplinks: dict[str, Uplink] = {}
        self._downlinks: dict[str, Downlink] = {}
        self._passable = trio.Event()

    async def __aenter__(self) -> Self:
        self.nursery = await self._nursery_manager.__aenter__()
        self.nursery.start_soon(self.timers.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        for wire in self._wires:  # nobody needs to say goodbye to anybody
            wire.crash()
        self.nursery.cancel_scope.cancel()
        return await self._nursery_manager.__aexit__(kind, exc, tb)

    @property
    def stack(self) -> str:
        return "libp2p"

    # -- hosts

    async def start(self, name: str, *, bootstrap: Sequence[str] | None = None) -> Libp2pHost:
        """See ``World.start``."""
        before = self.hosts.get(name)
        if before is not None:
            if before.alive:
                raise ValueError(f"host {name} is up already")
            await before.ended.wait()
        if bootstrap is None:
            first = next(iter(self.hosts.values()), None)
            bootstrap = first.addrs if first is not None and first.name != name else ()
        host = self.hosts[name] = Libp2pHost(self, name, bootstrap)
        self._by_ip[host.place.ip] = self._by_peer[host.me] = name
        await self.nursery.start(host.run)
        return host

    def by_peer(self, peer: PeerId) -> Libp2pHost:
        """The host of an identity that was proven."""
        return self.hosts[self._by_peer[peer]]

    def kill(self, name: str) -> None:
        """See ``World.kill``."""
        self.note("kill", name, name, b"")
        for wire in self._wires:
            if wire.out.source == name:
                wire.crash()
        self.uplink(name).clear()
        self.hosts[name].die()
        if name in self._hung:  # its machine answers again, and refuses
            self._hung.discard(name)
            self._cuts_changed()

    # -- connections

    async def connect(self, host: Libp2pHost, address: Address) -> Wire:
        """A connection from ``host``: a round trip. Who has no such port refuses, who is cut off stays silent."""
        name = host.name if address[0].startswith("127.") else self._by_ip.get(address[0])
        if name is None or not (name == host.name or dialable(self.links.access(name).nat)):
            await trio.sleep_forever()
        await self._travel(host.name, name)
        await self._travel(name, host.name)
        if address not in self.hosts[name].listeners:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        here = Place(host.name, host.place.ip, next(self._ports))
        near, far = connection(self, here, Place(name, *address))
        self._wires = [wire for wire in self._wires if not wire.over]
        self._wires += (near, far)
        self.timers.after(self.links.delay(host.name, name, 0), partial(self._accept, far, address))
        return near

    async def _travel(self, a: str, b: str) -> None:
        await trio.sleep(self.links.delay(a, b, 0))
        while self.cut(a, b):
            await self._passable.wait()

    def _accept(self, wire: Wire, address: Address) -> None:
        listener = self.hosts[wire.out.source].listeners.get(address)
        if listener is None:
            wire.crash()
        else:
            listener.accept(wire)

    def uplink(self, name: str) -> Uplink:
        """See ``wire.Between``."""
        if name not in self._uplinks:
            uplink = self._uplinks[name] = Uplink(self.timers, _launch)
            uplink.change(self.links.access(name).up_bytes_per_s)
        return self._uplinks[name]

    def downlink(self, name: str) -> Downlink:
        """See ``wire.Between``."""
        if name not in self._downlinks:
            downlink, access = Downlink(), self.links.access(name)
            downlink.change(access.down_bytes_per_s, access.queue_s)
            self._downlinks[name] = downlink
        return self._downlinks[name]

    def set_access(self, name: str, access: Access) -> None:
        """See ``World.set_access``."""
        super().set_access(name, access)
        self.uplink(name).change(access.up_bytes_per_s)
        self.downlink(name).change(access.down_bytes_per_s, access.queue_s)

    def _settle(self) -> None:
        now = trio.current_time()
        for downlink in self._downlinks.values():
            downlink.settle(now)

    def _cuts_changed(self) -> None:
        self._passable.set()
        self._passable = trio.Event()
        for downlink in self._downlinks.values():
            downlink.retry()
        for wire in self._wires:
            wire.out.look()

    def later(self, a: str, b: str, call: Callable[[], None]) -> None:
        """See ``World.later``."""
        self.timers.after(self.latency(a, b), call)

    # -- streams

    def remember(self, inner: YamuxStream, stream: Libp2pStream) -> None:
        """Both ends of a stream are found by their connection and number."""
        self._ends[inner.conn.secured_conn.link, inner.stream_id] = stream

    def other_end(self, stream: Libp2pStream) -> Libp2pStream | None:
        """The other end, if its host knows the stream."""
        link = stream.inner.conn.secured_conn.link
        return self._ends.get((link.other, stream.inner.stream_id)) if isinstance(link, Wire) else None


def _launch(piece: Piece) -> None:
    cast("Way", piece.pipe).launched(piece)
