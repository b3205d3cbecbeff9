"""Connections in memory, under virtual time: latency, a bounded buffer, pieces of any size, and a plug to pull.

Two users: yamux connections without noise (``yamux_pair``), and whole libp2p hosts (``networks``). Simpler than the
simulator's own links (``sim.libp2p.wire``), and rougher: a test may cut what it likes into any pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.net import Identity, Libp2pNetwork, open_network
from p2pllm.net.link import Link
from p2pllm.net.yamux import YamuxConnection
from sim.libp2p.transport import Address, MemoryListener, MemoryTransport

WALL = 1_700_000_000.0


@dataclass
class Wire:
    """How one connection behaves; shared by its two directions, changeable while it is up."""

    latency_s: float = 0.0
    capacity: int = 1 << 20
    piece: int = 1 << 20
    silent: bool = False
    """Nothing arrives any more, and nobody is told."""
    bytes_per_s: float = float("inf")


@dataclass
class Pipe:
    """One direction."""

    wire: Wire
    parts: deque[tuple[float, bytes]] = field(default_factory=deque)
    buffered: int = 0
    free_at: float = 0.0
    ended: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def put(self, data: bytes | memoryview) -> int:
        taken = bytes(data[: max(0, self.wire.capacity - self.buffered)])
        if taken:
            start = max(self.free_at, trio.current_time())
            self.free_at = start + len(taken) / self.wire.bytes_per_s
            self.parts.append((self.free_at + self.wire.latency_s, taken))
            self.buffered += len(taken)
            self.tell()
        return len(taken)

    async def take(self) -> bytes:
        while True:
            if self.wire.silent:
                await self.changed.wait()
            elif self.parts:
                due, data = self.parts[0]
                await trio.sleep_until(due)
                if self.wire.silent or not self.parts:
                    continue
                piece, rest = data[: self.wire.piece], data[self.wire.piece :]
                self.parts.popleft()
                if rest:
                    self.parts.appendleft((due, rest))
                self.buffered -= len(piece)
                self.tell()
                return piece
            elif self.ended:
                return b""
            else:
                await self.changed.wait()


class MemoryLink(Link):
    """One end of a connection."""

    def __init__(self, out: Pipe, into: Pipe, remote: tuple[str, int]) -> None:
        super().__init__()
        self.out, self.into, self.remote = out, into, remote
        self.tells_queue = False

    async def receive(self) -> bytes:
        return await self.into.take()

    def try_send(self, data: bytes | memoryview) -> int:
        if self.out.ended:
            raise BrokenPipeError("closed")
        return self.out.put(data)

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while True:
            view = view[self.try_send(view) :]
            if not view:
                return
            await self.out.changed.wait()

    def queued(self) -> int | None:
        return self.out.buffered if self.tells_queue else None

    async def close(self) -> None:
        self.out.ended = self.into.ended = True
        self.out.tell()
        self.into.tell()
        self.closed.set()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.remote


def link_pair(wire: Wire, there: str = "10.0.0.2", here: str = "10.0.0.1") -> tuple[MemoryLink, MemoryLink]:
    one, other = Pipe(wire), Pipe(wire)
    return MemoryLink(one, other, (there, 4001)), MemoryLink(other, one, (here, 40000))


class PlainSession:
    """What yamux needs of a noise session, without noise."""

    def __init__(self, link: Link, is_initiator: bool) -> None:
        self.link, self.is_initiator = link, is_initiator

    def seal(self, data: bytes) -> bytes:
        return bytes(data)

    def open(self, data: bytes) -> list[bytes]:
        return [data]

    def read_ahead(self) -> bytes:
        return self.link.established()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


PEER = ID.from_base58("12D3KooWGk9bNNNiuogQ4Xh6iXJXymgG9QdofAY555qLKwpdvuBM")


@asynccontextmanager
async def yamux_pair(
    wire: Wire | None = None, config: NetConfig | None = None
) -> AsyncIterator[tuple[YamuxConnection, YamuxConnection]]:
    """Two yamux connections that speak to each other."""
    one, other = link_pair(wire or Wire())
    config = config or NetConfig()
    conns = tuple(
        YamuxConnection(PlainSession(link, first), PEER, config)  # type: ignore[arg-type]
        for link, first in ((one, True), (other, False))
    )
    async with trio.open_nursery() as nursery:
        for conn in conns:
            nursery.start_soon(conn.start)
        for conn in conns:
            await conn.event_started.wait()
        try:
            yield conns  # type: ignore[misc]
        finally:
            nursery.cancel_scope.cancel()


class MemoryNet:
    """Who listens where, and how the connections between them behave."""

    def __init__(self, **wire: Any) -> None:
        self.listeners: dict[Address, MemoryListener] = {}
        self.wire = wire
        self.wires: list[Wire] = []
        self.dialled: list[Address] = []
        self.silent_addresses: set[str] = set()

    def transport(self) -> MemoryTransport:
        return MemoryTransport(self)

    async def connect(self, address: Address) -> Link:
        self.dialled.append(address)
        wire = Wire(**self.wire)
        if address[0] in self.silent_addresses:
            await trio.sleep_forever()
        await trio.sleep(2 * wire.latency_s)
        listener = self.listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens at {address}")
        self.wires.append(wire)
        here, there = link_pair(wire, address[0])
        listener.accept(there)
        return here


def identity(number: int) -> Identity:
    return Identity.ephemeral(lambda size: number.to_bytes(size, "big"))


def address(number: int) -> str:
    return f"/ip4/10.0.0.{number}/tcp/4001"


@asynccontextmanager
async def networks(
    net: MemoryNet, count: int, config: NetConfig | None = None, **more: Any
) -> AsyncIterator[list[Libp2pNetwork]]:
    """``count`` nodes; all but the first know the first as their bootstrap member."""
    async with AsyncExitStack() as stack:
        nodes: list[Libp2pNetwork] = []
        for number in range(1, count + 1):
            nodes.append(
                await stack.enter_async_context(
                    open_network(
                        config or NetConfig(),
                        identity=identity(number),
                        wall_time=lambda: WALL + trio.current_time(),
                        listen=[address(number)],
                        bootstrap=nodes[0].addrs if nodes else (),
                        transport=net.transport(),
                        **more,
                    )
                )
            )
        yield nodes
