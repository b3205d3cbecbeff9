"""One simulated host: identity, connections, protocols, as ``ports.Network`` wants them.

Invariants: what another host learns of this one, it learns a latency later; the other host's code runs in tasks of
that host, so that killing a host stops exactly its own. Idle connections cost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pllm.dht.keys import peer_id_of
from p2pllm.errors import PeerLost
from p2pllm.ports import EventSource, StreamHandler
from p2pllm.types import Path, PeerEvent, PeerId, Reachability
from sim.circuits import Circuits
from sim.links import Access
from sim.nat import Nat, dialable
from sim.queues import Downlink, Piece, Uplink
from sim.route import Route
from sim.stream import SimStream, stream_pair
from sim.verbs import PORT, ip_of, key_seed

if TYPE_CHECKING:
    from sim.network import SimWorld

log = logging.getLogger(__name__)

DIAL_ROUND_TRIPS = 6
"""What a fresh connection costs before its first stream: TCP one, agreeing on Noise two, Noise one, yamux two."""
_Subscriber = tuple[trio.MemorySendChannel[PeerEvent], trio.MemoryReceiveChannel[PeerEvent]]

EVENTS_MAX = 256
"""Peer events that a slow subscriber may leave unread."""


class Link:
    """This host's end of a connection."""

    __slots__ = ("route", "streams")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.streams: dict[int, SimStream] = {}


class SimNetwork:
    """One host; see ``ports.Network``. Made by ``SimWorld.host``."""

    def __init__(self, world: SimWorld, name: str, bootstrap: Sequence[str]) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.uplink = Uplink(world.timers, self._launch)
        self.downlink = Downlink()
        self.circuits = Circuits(self)
        self.links: dict[PeerId, Link] = {}
        self._key = Ed25519PrivateKey.from_private_bytes(key_seed(world.seed, name))
        self._me = peer_id_of(self._key.public_key().public_bytes_raw())
        self.address = f"/ip4/{ip_of(name)}/tcp/{PORT}/p2p/{self._me}"
        self._bootstrap = tuple(bootstrap)
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._numbers = count()
        self._subscribers: dict[int, _Subscriber] = {}
        self.plug(world.links.access(name))

    @property
    def me(self) -> PeerId:
        return self._me

    @property
    def addrs(self) -> tuple[str, ...]:
        """Where others may dial this host: itself, or through the relays at which it has a reservation."""
        relayed = self.circuits.addrs()
        return relayed or (self.address,)

    def plug(self, access: Access) -> None:
        """Be connected in this way from now on."""
        self.access = access
        self.uplink.change(access.up_bytes_per_s)
        self.downlink.change(access.down_bytes_per_s, access.queue_s)

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See ``ports.Network.learn``."""
        if peer != self.me:
            self._known[peer] = tuple(addrs)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See ``ports.Network.serve``."""
        self._handlers[protocol] = handler

    def path(self, peer: PeerId) -> Path | None:
        """See ``ports.Network.path``."""
        link = self.links.get(peer)
        if link is None:
            return None
        route = link.route
        if route.relay is None:
            return Path(True, route.other(self).address, route.rtt_s)
        return Path(False, f"{route.relay.address}/p2p-circuit/p2p/{peer}", route.rtt_s)

    def reachability(self) -> Reachability:
        """See ``ports.Network.reachability``: what somebody who dialled back has told."""
        if self.access.nat is not Nat.PUBLIC and not self.links:
            return Reachability.UNKNOWN
        return Reachability.PUBLIC if dialable(self.access.nat) else Reachability.PRIVATE

    def spawn(self, work: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a task of this host: it ends when the host is killed."""
        number, scope = next(self._numbers), trio.CancelScope()

        async def body() -> None:
            with scope:
                try:
                    await work(*args)
                finally:
                    del self._scopes[number]

        if self.alive:
            self._scopes[number] = scope  # at once: a kill before the task's first step ends it, too
            self.world.nursery.start_soon(body)

    # -- connections

    async def open_stream(self, peer: PeerId, protocol: str, *, timeout_s: float | None = None) -> SimStream:
        """See ``ports.Network.open_stream``."""
        config = self.world.config
        limit = config.dial_timeout_s + config.stream_timeout_s if timeout_s is None else timeout_s
        with trio.move_on_after(limit):
            return await self._open(peer, protocol)
        raise PeerLost(f"{peer} did not answer within {limit:g} s")

    async def _open(self, peer: PeerId, protocol: str) -> SimStream:
        other = await self.dial(peer)
        await self.round_trips(other, 1)
        handler = other._handlers.get(protocol)
        if handler is None:
            raise PeerLost(f"{peer} does not speak {protocol}")
        if peer not in self.links or self.me not in other.links:
            raise PeerLost(f"the connection to {peer} was lost")
        near, far = stream_pair(self, other, self.links[peer].route)
        for one, stream in ((self, near), (other, far)):
            stream.attach(one.links[stream.peer].streams, next(one._numbers))
        self.world.note("open", self.name, other.name, protocol.encode())
        other.spawn(other._handle, protocol, handler, far)
        return near

    async def dial(self, peer: PeerId) -> SimNetwork:
        """Be connected to ``peer``, directly or through a relay."""
        await trio.lowlevel.checkpoint()
        other = self.world.by_peer(peer)
        if not self.alive:
            raise PeerLost("this host is down")
        if other is not None and peer in self.links:
            return other
        known = self._known.get(peer, ())
        if other is None or other is self or not set(known) & {other.address, *other.addrs}:
            raise PeerLost(f"no address of {peer} answers")
        if other.address in known and other.circuits.takes_strangers():
            await self.round_trips(other, 1)  # who is down refuses at once
            await self.round_trips(other, DIAL_ROUND_TRIPS - 1)
            self.connect(other, None)
        else:
            await self.circuits.dial(other, known)
        await self.circuits.reserve(other)
        return other

    def connect(self, other: SimNetwork, relay: SimNetwork | None) -> Route:
        """A connection was set up; both ends know."""
        if other.me in self.links:
            return self.links[other.me].route
        if other.links.get(self.me) is not None:
            other.lose(self, f"{self.name} connected anew")
        route = self.world.connect(self, other, relay)
        for one, two in ((self, other), (other, self)):
            one.links[two.me] = Link(route)
            if not set(one._known.get(two.me, ())) & set(two.addrs):
                one.learn(two.me, two.addrs)  # as identify does
            self.world.dht.changed(one)
            one._tell(PeerEvent(two.me, True))
        return route

    async def round_trips(self, other: SimNetwork, trips: int, *, latency_s: float | None = None) -> None:
        """Wait for answers; who is dead refuses, who is cut off stays silent until the caller's deadline."""
        link = self.links.get(other.me)
        if latency_s is None:
            there, back = self.world.latency(self.name, other.name), self.world.latency(other.name, self.name)
            latency_s = link.route.rtt_s / 2 if link is not None else (there + back) / 2
        await trio.sleep(2 * trips * latency_s)
        await self.world.wait_passable(self.name, other.name)
        if not other.alive:
            raise PeerLost(f"{other.me} refuses connections")

    def _launch(self, piece: Piece) -> None:
        if self.alive:
            pipe = piece.pipe
            if pipe.sender is self:
                pipe.push(piece)
            else:
                pipe.route.leave(piece, self)

    async def _handle(self, protocol: str, handler: StreamHandler, stream: SimStream) -> None:
        await trio.lowlevel.checkpoint()
        try:
            await handler(stream)
        except Exception:  # the port's promise: a handler's exception never takes the node down
            log.warning("%s: a handler of %s failed", self.name, protocol, exc_info=True)
            stream.abort()
        finally:
            stream.finish()

    def connected(self) -> list[SimNetwork]:
        """Hosts that this one is connected to."""
        return [link.route.other(self) for link in self.links.values()]

    async def close_peer(self, peer: PeerId) -> None:
        """See ``ports.Network.close_peer``."""
        other = self.world.by_peer(peer)
        if other is not None and peer in self.links:
            self._hang_up(other, "the connection was closed on this side", f"{self.name} closed the connection")
        await trio.lowlevel.checkpoint()

    def _hang_up(self, other: SimNetwork, mine: str, theirs: str) -> None:
        route = self.links[other.me].route
        self.lose(other, mine)
        route.later(self.name, lambda: other.lose(self, theirs, route))

    def lose(self, other: SimNetwork, reason: str, route: Route | None = None) -> None:
        """The connection to ``other`` is gone, as seen from here; with ``route``, only if it is still that one."""
        link = self.links.get(other.me)
        if link is None or (route is not None and link.route is not route):
            return
        del self.links[other.me]
        for stream in list(link.streams.values()):
            stream.fail(reason)
        self.circuits.lost(other)
        self.world.disconnected(link.route)
        self.world.dht.changed(self)
        self._tell(PeerEvent(other.me, False))

    def die(self) -> None:
        """Stop at once: see ``SimWorld.kill``."""
        self.alive = False
        self.uplink.clear()
        self.world.dht.forget(self)
        for other in self.connected():
            self._hang_up(other, "this host is down", f"{self.name} reset the connection")
        for scope in list(self._scopes.values()):
            scope.cancel()
        self.circuits.close()

    def wake(self, other: SimNetwork) -> None:
        """Let readers and writers look again whether anything passes between us and ``other``."""
        link = self.links.get(other.me)
        for stream in list(link.streams.values()) if link is not None else ():
            stream.wake()

    # -- events

    @asynccontextmanager
    async def peer_events(self) -> AsyncGenerator[EventSource]:
        """See ``ports.Network.peer_events``."""
        send, receive = trio.open_memory_channel[PeerEvent](EVENTS_MAX)
        number = next(self._numbers)
        self._subscribers[number] = (send, receive)
        try:
            yield receive
        finally:
            del self._subscribers[number]
            send.close()
            receive.close()

    def _tell(self, event: PeerEvent) -> None:
        for send, receive in self._subscribers.values():
            try:
                send.send_nowait(event)
            except trio.WouldBlock:
                receive.receive_nowait()
                send.send_nowait(event)

    # -- DHT

    async def bootstrap(self) -> int:
        """See ``ports.Network.bootstrap``."""
        for addr in self._bootstrap:
            peer = PeerId(addr.rpartition("/p2p/")[2])
            self._known.setdefault(peer, (addr,))
        answers = 0

        async def try_one(peer: PeerId) -> None:
            nonlocal answers
            with trio.move_on_after(self.world.config.dial_timeout_s):
                try:
                    await self.dial(peer)
                except PeerLost:
                    return
                answers += 1

        async with trio.open_nursery() as nursery:
            for peer in self._known:
                nursery.start_soon(try_one, peer)
        return answers

    async def put(self, key: str, value: bytes) -> None:
        """See ``ports.Network.put``."""
        await self.world.dht.put(self, key, value)

    async def get(self, key: str) -> bytes | None:
        """See ``ports.Network.get``."""
        return await self.world.dht.get(self, key)

    async def provide(self, key: str) -> None:
        """See ``ports.Network.provide``."""
        await self.world.dht.provide(self, key)

    async def find(self, key: str, limit: int = 32) -> tuple[PeerId, ...]:
        """See ``ports.Network.find``."""
        return await self.world.dht.find(self, key, limit)
