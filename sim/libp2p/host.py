"""One host of the libp2p stack: the product's whole network adapter, over a transport in memory.

Invariants: everything of a host runs below one cancel scope, so that killing it ends exactly its own tasks; its
connections are reset first, so that none of these says goodbye.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import trio

from p2pllm.errors import PeerLost
from p2pllm.net import Identity, Libp2pNetwork, open_network
from p2pllm.net.yamux import YamuxStream
from p2pllm.ports import EventSource, Stream, StreamHandler
from p2pllm.types import Path, PeerId, Reachability
from sim.libp2p.stream import Libp2pStream
from sim.libp2p.transport import Address, MemoryListener, MemoryTransport
from sim.libp2p.wire import Place, Wire
from sim.verbs import PORT, ip_of, key_seed

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from sim.libp2p.world import Libp2pWorld


class Libp2pHost:
    """See ``sim.world.Host``. Made by ``Libp2pWorld.start``."""

    def __init__(self, world: Libp2pWorld, name: str, bootstrap: Sequence[str]) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.ended = trio.Event()
        """After a crash: its last task is gone."""
        self.place = Place(name, ip_of(name), PORT)
        self.listeners: dict[Address, MemoryListener] = {}
        self._identity = Identity.ephemeral(lambda _: key_seed(world.seed, name))
        self._address = f"/ip4/{self.place.ip}/tcp/{PORT}"
        self._bootstrap = tuple(bootstrap)
        self._scope = trio.CancelScope()
        self._network: Libp2pNetwork
        self._nursery: trio.Nursery

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Be up, from ``started`` on, until killed."""
        network = open_network(
            self.world.config,
            identity=self._identity,
            wall_time=lambda: self.world.wall_time(self.name),
            listen=[self._address],
            bootstrap=self._bootstrap,
            transport=MemoryTransport(self),
        )
        try:
            with self._scope:
                async with network as self._network, trio.open_nursery() as self._nursery:
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self.ended.set()

    def die(self) -> None:
        """A crash; the world has reset its connections."""
        self.alive = False
        for listener in list(self.listeners.values()):
            listener.abandon()
        self._scope.cancel()

    def spawn(self, work: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """See ``Host.spawn``."""
        if self.alive:
            self._nursery.start_soon(work, *args)

    def connected(self) -> list[Libp2pHost]:
        """See ``Host.connected``."""
        return [self.world.by_peer(peer) for peer in self._network.connected] if self.alive else []

    async def connect(self, address: Address) -> Wire:
        """See ``transport.Fabric``."""
        return await self.world.connect(self, address)

    # -- the port

    @property
    def me(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addrs(self) -> tuple[str, ...]:
        return (f"{self._address}/p2p/{self.me}",)

    def sign(self, data: bytes) -> bytes:
        """See ``ports.Network.sign``."""
        return self._identity.sign(data)

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """See ``ports.Network.learn``."""
        self._network.learn(peer, addrs)

    async def open_stream(self, peer: PeerId, protocol: str, *, timeout_s: float | None = None) -> Libp2pStream:
        """See ``ports.Network.open_stream``."""
        self._check_alive()
        inner = await self._network.open_stream(peer, protocol, timeout_s=timeout_s)
        stream = self._tapped(inner)
        self.world.note("open", *stream.ends, protocol.encode())
        return stream

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See ``ports.Network.serve``."""

        async def handle(inner: Stream) -> None:
            await handler(self._tapped(inner))

        self._network.serve(protocol, handle)

    def _tapped(self, inner: Stream) -> Libp2pStream:
        assert isinstance(inner, YamuxStream)
        stream = Libp2pStream(self, self.world.by_peer(inner.peer).name, inner)
        self.world.remember(inner, stream)
        return stream

    async def close_peer(self, peer: PeerId) -> None:
        """See ``ports.Network.close_peer``."""
        await self._network.close_peer(peer)

    def path(self, peer: PeerId) -> Path | None:
        """See ``ports.Network.path``."""
        return self._network.path(peer)

    def peer_events(self) -> AbstractAsyncContextManager[EventSource]:
        """See ``ports.Network.peer_events``."""
        return self._network.peer_events()

    def reachability(self) -> Reachability:
        return self._network.reachability()

    async def bootstrap(self) -> int:
        """See ``ports.Network.bootstrap``."""
        return await self._network.bootstrap()

    async def put(self, key: str, value: bytes) -> None:
        """See ``ports.Network.put``."""
        self._check_alive()
        self.world.note("put", self.name, key, value)
        await self._network.put(key, value)

    async def get(self, key: str) -> bytes | None:
        """See ``ports.Network.get``."""
        return await self._network.get(key)

    async def provide(self, key: str) -> None:
        """See ``ports.Network.provide``."""
        self.world.note("provide", self.name, key, b"")
        await self._network.provide(key)

    async def find(self, key: str, limit: int = 32) -> tuple[PeerId, ...]:
        """See ``ports.Network.find``."""
        return await self._network.find(key, limit)

    def _check_alive(self) -> None:
        if not self.alive:
            raise PeerLost("this host is down")
