"""A swarm in virtual time: the production server and client over simulated ports, up in a few milliseconds.

What a process would spend on joining is left out, nothing else: views are filled with the signed announcements that
servers publish, weights are there already. Everything that serves and asks is the production code. Whole nodes, which
join, announce and leave, are in ``sim.nodes``.

Invariants: the same seed and spans give the same trace. A server's tasks are its host's, so that ``world.kill`` ends
them. Made by ``open_swarm``; use everything inside it only.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import trio

from p2pllm.client.model import RemoteModel
from p2pllm.client.peers import Peers
from p2pllm.config import Config
from p2pllm.dht.record import Announcement, Throughput, sign_announcement
from p2pllm.dht.service import Directory
from p2pllm.model.config import ModelConfig
from p2pllm.model.ends import Ends
from p2pllm.model.span import SpanModel
from p2pllm.model.tokenizer import TextEnds
from p2pllm.node.using import ClientShare, open_client
from p2pllm.ports import Compute
from p2pllm.server.backend import SpanBackend
from p2pllm.server.infos import Infos
from p2pllm.server.offer import Offer
from p2pllm.server.serving import Serving
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span
from p2pllm.wire import BACKWARD, FORWARD, INFO, PUSH, SESSION
from sim.compute import SimCompute, flat_cost
from sim.network import SimWorld
from sim.ports import sim_ports
from sim.world import Host, World

MODEL = ModelId("70" * 32)
CACHE_TOKENS = 2048
TTL_MS = 3_600_000


class Blocks(Protocol):
    """Where spans and ends come from: ``sim.toy.ToyModel``, or a real checkpoint."""

    numerics: Numerics

    @property
    def config(self) -> ModelConfig: ...

    def span(self, span: Span) -> SpanModel:
        """Blocks without state of their own: replicas may share them."""
        ...

    def ends(self) -> Ends: ...


@dataclass(eq=False)
class SimServer:
    """One server of the swarm."""

    name: str
    span: Span
    network: Host
    serving: Serving
    record: bytes

    @property
    def peer(self) -> PeerId:
        return self.network.me


@dataclass(eq=False)
class SimClient:
    """One client of the swarm, and what it thinks of its peers."""

    model: RemoteModel
    directory: Directory
    network: Host

    @property
    def peers(self) -> Peers:
        return self.model._context.peers  # the proof looks behind the curtain: nothing else tells bans


@dataclass(eq=False)
class SimSwarm:
    """Servers and clients of one model in one world."""

    world: World
    blocks: Blocks
    config: Config
    compute: Callable[[str], Compute]
    servers: dict[str, SimServer] = field(default_factory=dict)
    clients: list[SimClient] = field(default_factory=list)

    async def add(self, name: str, span: Span, config: Config | None = None) -> SimServer:
        """One more server; clients learn of it at once. A name that was killed comes back empty."""
        config = config or self.config
        network = await self.world.start(name)
        for other in self.servers.values():  # as every server's directory tells it
            network.learn(other.peer, other.network.addrs)
            other.network.learn(network.me, network.addrs)
        model = self.blocks.span(span)
        shape, tokens = self.blocks.config, config.server.cache_tokens or CACHE_TOKENS
        backend = SpanBackend(model, model.arena(tokens, config.server.page_tokens))
        offer = Offer(
            MODEL, span, shape.hidden_size, shape.max_positions, self.blocks.numerics, config.server.forward_tokens_max
        )
        serving = Serving(offer, backend, network, self.compute(name), config, "cpu")
        record = self._announcement(network, span, tokens)
        server = self.servers[name] = SimServer(name, span, network, serving, record)
        ready = trio.Event()

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(serving.run)
                ready.set()

        network.spawn(run)
        await ready.wait()
        network.serve(SESSION, serving.handle_session)
        network.serve(PUSH, serving.handle_push)
        network.serve(FORWARD, serving.forwards.handle)
        network.serve(BACKWARD, serving.forwards.handle)
        network.serve(INFO, Infos(lambda model: record if model == MODEL else b"", config).handle)
        for client in self.clients:
            self._tell(client.directory, client.network.name, server)
        return server

    @asynccontextmanager
    async def client(
        self, name: str = "client", config: Config | None = None, *, pings: bool = False
    ) -> AsyncIterator[SimClient]:
        """A client that knows every server.

        Args:
            pings: measure the ways in the background; off, because who counts messages counts those, too.
        """
        config = config or self.config
        if not pings:
            config = replace(config, client=replace(config.client, pings_max=0))
        network = await self.world.start(name)
        ports = sim_ports(self.world, name, network=network, compute=self.compute(name))
        directory = Directory(ports, config, [MODEL])
        for server in self.servers.values():
            self._tell(directory, name, server)
        share = ClientShare(self.blocks.ends(), None, TextEnds(None, ()))
        async with open_client(ports, config, directory, MODEL, share) as model:
            client = SimClient(model, directory, network)
            self.clients.append(client)
            yield client

    def by_peer(self, peer: PeerId) -> SimServer | None:
        """The server of an identity; None: it is nobody's, or a client's."""
        return next((server for server in self.servers.values() if server.peer == peer), None)

    def withdraw(self, server: SimServer) -> None:
        """Let everybody know that a server is no more, as its record's end would in time."""
        record = self._announcement(server.network, server.span, 0, ServerState.OFFLINE)
        for client in self.clients:
            client.directory.view.merge(record, trio.current_time(), self.world.wall_time(client.network.name))

    def _announcement(self, network: Host, span: Span, tokens: int, state: ServerState = ServerState.ONLINE) -> bytes:
        wall_ms = int(1000 * self.world.wall_time(network.name))
        announcement = Announcement(
            MODEL, span, self.blocks.config.num_blocks, state, self.blocks.numerics,
            Throughput(50.0, 5000.0, 1000.0), cache_tokens_free=tokens, peer=network.me, addrs=network.addrs,
            sequence=wall_ms, issued_ms=wall_ms, ttl_ms=TTL_MS,
        )  # fmt: skip
        return sign_announcement(announcement, network.sign)

    def _tell(self, directory: Directory, name: str, server: SimServer) -> None:
        directory.view.merge(server.record, trio.current_time(), self.world.wall_time(name))


@asynccontextmanager
async def open_swarm(
    blocks: Blocks,
    spans: Iterable[tuple[int, int]],
    config: Config,
    *,
    seed: int = 0,
    latency_s: float = 0.02,
    pass_s: float = 0.01,
    compute: Callable[[], Compute] | Callable[[str], Compute] | None = None,
    world: World | None = None,
) -> AsyncGenerator[SimSwarm]:
    """Servers ``s0``, ``s1``, ... of these spans, on hosts of the same names.

    Args:
        compute: makes each host's devices, by its name where it wants to know that; without it every pass takes
            ``pass_s``.
        world: an open world of either stack, which stays open; None: one on ports, with ``seed`` and ``latency_s``.
    """
    async with AsyncExitStack() as stack:
        if world is None:
            world = await stack.enter_async_context(SimWorld(seed, latency_s, config.net))
        swarm = SimSwarm(world, blocks, config, by_name(compute or (lambda: SimCompute(flat_cost(pass_s)))))
        for number, (start, end) in enumerate(spans):
            await swarm.add(f"s{number}", Span(start, end))
        yield swarm


def by_name(compute: Callable[[], Compute] | Callable[[str], Compute]) -> Callable[[str], Compute]:
    """What makes a host's devices, given its name, whether it asks for that or not."""
    asks = bool(inspect.signature(compute).parameters)
    return cast("Callable[[str], Compute]", compute if asks else lambda name: cast("Callable[[], Compute]", compute)())
