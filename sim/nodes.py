"""Whole nodes in virtual time: bootstrap nodes, servers and clients as they run in production, on simulated hosts.

Each joins through the DHT, exchanges records, chooses blocks, measures itself, drains and says goodbye: all of it is
the production code of ``p2pllm.node`` over the ports of a world, of either stack.

Invariants: a node's tasks are its host's, so that ``world.kill`` ends exactly them, in mid-sentence; its disk outlives
it. A node that is started again has the same identity, the same disk, and an empty memory.

    nodes = Nodes(world, ToyModel(4), config)
    await nodes.start("boot", NodeSpec("bootstrap"))
    await nodes.start("s0", NodeSpec("server", span=Span(0, 4)))
    client = await nodes.start("c", NodeSpec("client"))
    await client.wait_up()
    await client.model.generate([[1, 2, 3]])
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.config import Config
from p2pllm.dht.service import Directory
from p2pllm.errors import P2PLLMError, PeerLost
from p2pllm.model.config import ModelConfig
from p2pllm.model.span import SpanModel
from p2pllm.model.tokenizer import TextEnds
from p2pllm.node.members import MembersFile
from p2pllm.node.serving import open_directory, open_server
from p2pllm.node.using import ClientShare, open_client
from p2pllm.ports import Compute, Ports
from p2pllm.server.service import Plan, Server
from p2pllm.server.weights import Progress
from p2pllm.types import Numerics, PeerId, Span
from sim.compute import SimCompute
from sim.storage import MemoryStorage, Mount
from sim.swarm import MODEL, Blocks
from sim.world import Host, World

log = logging.getLogger(__name__)

Role = Literal["bootstrap", "server", "client"]
ComputeOf = Callable[[str], Compute]
"""The devices of a host, by its name."""

MEMBERS, SEQUENCE, SPEED = "members.json", "sequence", "throughput.json"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a node is to be.

    Attributes:
        span: the blocks of a server; None: those that the swarm needs most, ``num_blocks`` of them.
        num_blocks: None: all.
        throughput: tokens per second to announce; None: measured.
        config: its settings; None: everybody's.
    """

    role: Role
    span: Span | None = None
    num_blocks: int | None = None
    throughput: float | None = None
    config: Config | None = None


@dataclass(eq=False)
class Process:
    """One life of a node: from its start to its end, by itself or by a kill.

    Attributes:
        directory, server, model: what it has of these, once it has joined.
        error: why it ended by itself, if it did not end well.
        up: it serves, or may be used.
        begun: it is up, or never was.
        ended: it is over.
    """

    host: Host
    directory: Directory | None = None
    server: Server | None = None
    model: RemoteModel | None = None
    error: P2PLLMError | None = None
    up: bool = False
    begun: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    leaving: trio.Event = field(default_factory=trio.Event)

    async def serve(self) -> None:
        """Say that it is up; returns when it shall leave."""
        self.up = True
        self.begun.set()
        await self.leaving.wait()


@dataclass(eq=False)
class SimNode:
    """A machine: its disk, its devices, and the process that runs on it, or ran last.

    Attributes:
        disk: what survives a process.
        lives: how many processes there were.
        wrong: its blocks compute something else than they should, on purpose.
    """

    name: str
    spec: NodeSpec
    compute: Compute
    process: Process
    disk: MemoryStorage = field(default_factory=MemoryStorage)
    lives: int = 1
    wrong: bool = False

    @property
    def host(self) -> Host:
        return self.process.host

    @property
    def peer(self) -> PeerId:
        return self.host.me

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self.host.alive and not self.process.ended.is_set()

    @property
    def up(self) -> bool:
        """Whether it serves, or may be used."""
        return self.alive and self.process.up

    @property
    def directory(self) -> Directory | None:
        return self.process.directory if self.alive else None

    @property
    def server(self) -> Server | None:
        return self.process.server if self.alive else None

    @property
    def model(self) -> RemoteModel | None:
        """What a client generates with."""
        return self.process.model if self.alive else None

    @property
    def serves(self) -> Span | None:
        """The blocks that it serves now."""
        return self.server.span if self.up and self.server is not None else None

    async def wait_up(self) -> None:
        """Wait until it is up.

        Raises:
            P2PLLMError: it ended before, for this reason.
            PeerLost: it was killed before.
        """
        process = self.process
        await process.begun.wait()
        if process.error is not None:
            raise process.error
        if not process.up:
            raise PeerLost(f"{self.name} was killed before it was up")

    def leave(self) -> None:
        """Begin to leave in order, as on SIGTERM."""
        self.process.leaving.set()


class Nodes:
    """All nodes of one model in one world."""

    def __init__(self, world: World, blocks: Blocks, config: Config, compute: ComputeOf | None = None) -> None:
        self.world = world
        self.blocks = blocks
        self.config = config
        self.by_name: dict[str, SimNode] = {}
        self._compute: ComputeOf = compute or (lambda name: SimCompute())

    def of(self, role: Role) -> list[SimNode]:
        """All nodes of a role, in the order of their first start."""
        return [node for node in self.by_name.values() if node.spec.role == role]

    def by_peer(self, peer: PeerId) -> SimNode | None:
        """The node of an identity."""
        return next((node for node in self.by_name.values() if node.peer == peer), None)

    def coverage(self) -> list[int]:
        """Per block, how many servers serve it now: the truth, whatever anybody knows of it."""
        counts = [0] * self.blocks.config.num_blocks
        for node in self.of("server"):
            for block in node.serves or ():
                counts[block] += 1
        return counts

    # -- lives

    async def start(self, name: str, spec: NodeSpec) -> SimNode:
        """A node's first process, or its next one; it has only just begun when this returns, see ``wait_up``."""
        node = self.by_name.get(name)
        if node is not None and node.alive:
            raise ValueError(f"node {name} runs already")
        process = Process(await self.world.start(name, bootstrap=self._bootstrap()))
        if node is None:
            node = self.by_name[name] = SimNode(name, spec, self._compute(name), process)
        else:
            node.spec, node.process, node.lives = spec, process, node.lives + 1
        process.host.spawn(self._live, node, process)
        return node

    async def restart(self, name: str) -> SimNode:
        """Start a node again that has ended; if it still runs, kill it first."""
        node = self.by_name[name]
        if node.alive:
            self.kill(name)
        return await self.start(name, node.spec)

    def kill(self, name: str) -> None:
        """The node's process ends in mid-sentence."""
        self.world.kill(name)

    async def _live(self, node: SimNode, process: Process) -> None:
        """A process, from its start to its end."""
        mount = Mount(node.disk, lambda: process.host.alive)
        members = MembersFile(mount, MEMBERS)
        run = {"bootstrap": self._meet, "server": self._serve, "client": self._use}[node.spec.role]
        try:
            await members.load()
            await run(node, process, self._ports(node, process, mount), members)
        except* P2PLLMError as group:
            process.error = _first(group)
            log.info("%s ended: %s", node.name, process.error)
        finally:
            mount.release()
            process.begun.set()
            process.ended.set()
        if process.host.alive:
            self.world.kill(node.name)  # a process that ends takes its connections with it

    async def _meet(self, node: SimNode, process: Process, ports: Ports, members: MembersFile) -> None:
        async with open_directory(ports, self._config(node), None, members=members) as process.directory:
            await process.serve()

    async def _serve(self, node: SimNode, process: Process, ports: Ports, members: MembersFile) -> None:
        config, spec = self._config(node), node.spec
        plan = Plan(
            MODEL, span=spec.span, num_blocks=spec.num_blocks, throughput=spec.throughput, throughput_path=SPEED,
            name=node.name,
        )  # fmt: skip
        weights = NodeWeights(node, self.blocks)
        async with (
            open_directory(ports, config, [MODEL], members=members, state_path=SEQUENCE) as process.directory,
            open_server(ports, config, process.directory, weights, plan) as process.server,
        ):
            await process.serve()

    async def _use(self, node: SimNode, process: Process, ports: Ports, members: MembersFile) -> None:
        config = self._config(node)
        share = ClientShare(self.blocks.ends(), None, TextEnds(None, ()))
        async with (
            open_directory(ports, config, [MODEL], members=members) as process.directory,
            open_client(ports, config, process.directory, MODEL, share) as process.model,
        ):
            await process.serve()

    def _config(self, node: SimNode) -> Config:
        return node.spec.config or self.config

    def _ports(self, node: SimNode, process: Process, mount: Mount) -> Ports:
        world, life = self.world, str(node.lives)
        return Ports(
            network=process.host,
            compute=node.compute,
            storage=mount,
            wall_time=lambda: world.wall_time(node.name),
            rng=world.rng(node.name, "rng", life),
            token_bytes=world.rng(node.name, "tokens", life).randbytes,  # never the same session id in two lives
        )

    def _bootstrap(self) -> tuple[str, ...] | None:
        """Everybody's way in: the bootstrap nodes, or the first host where there is none."""
        return tuple(addr for node in self.of("bootstrap") for addr in node.host.addrs) or None


class NodeWeights:
    """A model's blocks as a server loads them; see ``p2pllm.server.weights.Weights``."""

    def __init__(self, node: SimNode, blocks: Blocks) -> None:
        self._node = node
        self._blocks = blocks

    @property
    def config(self) -> ModelConfig:
        return self._blocks.config

    def load_span(self, span: Span, dtype: torch.dtype, device: str, progress: Progress) -> SpanModel:
        """See ``Weights.load_span``: shared with all who hold these blocks, for they have no state."""
        progress(1, 1)
        return cast("SpanModel", NodeSpan(self._node, self._blocks.span(span)))

    def settle(self, model: SpanModel, exact: bool, device: str) -> Numerics:
        """See ``Weights.settle``."""
        return self._blocks.numerics


class NodeSpan:
    """A span as one node computes it: right, unless it is wrong on purpose."""

    def __init__(self, node: SimNode, model: SpanModel) -> None:
        self._node = node
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See ``SpanModel.run``."""
        out = self._model.run(*args, **kwargs)
        return out.flip(-1) if self._node.wrong else out


def _first(group: BaseExceptionGroup[P2PLLMError]) -> P2PLLMError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, P2PLLMError)
    return error
