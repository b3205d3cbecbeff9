"""A chain of servers and one client of a real checkpoint in virtual time: the twin of ``sim.real.swarm``.

Whole production nodes (joining, announcing, routing) on simulated hosts of either stack. What computing takes is not
found out here, it is told: see ``Machine``.

Invariants: everything follows from the arguments; equal arguments give equal traces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from p2pllm.client.model import RemoteModel
from p2pllm.config import Config
from p2pllm.types import Span
from sim.compute import CostModel, SimCompute
from sim.links import Access
from sim.nodes import Nodes, NodeSpec
from sim.spec import BYTES_PER_MBIT
from sim.stacks import open_world
from sim.swarm import Blocks
from sim.world import World

BOOT, CLIENT = "boot", "client"


@dataclass(frozen=True, slots=True)
class VirtualSpec:
    """What to build.

    Attributes:
        servers: the blocks of each, by host name.
        latency_ms: one way, between any two hosts.
        mbit: up and down, of each host; None: no limit.
        message_ms: what both ends of a message need to send and receive it, as if it were longer on its way.
        costs: what passes take.
        push: ``on`` or ``off``.
    """

    stack: str
    servers: Mapping[str, tuple[int, int]]
    costs: CostModel
    latency_ms: float = 0.0
    mbit: float | None = None
    message_ms: float = 0.0
    push: str = "auto"
    seed: int = 0


@dataclass(eq=False)
class VirtualSwarm:
    """A running swarm."""

    world: World
    model: RemoteModel


@asynccontextmanager
async def open_virtual(blocks: Blocks, spec: VirtualSpec, config: Config | None = None) -> AsyncIterator[VirtualSwarm]:
    """A swarm whose servers all serve, and a client's model, when the body begins; run it under ``sim.run.run``."""
    config = config or Config()
    config = replace(config, client=replace(config.client, push=spec.push))
    rate = None if spec.mbit is None else spec.mbit * BYTES_PER_MBIT
    half_s = (spec.latency_ms + spec.message_ms) / 2000
    async with open_world(spec.stack, spec.seed, config.net) as world:
        world.links.set_default(latency_s=0.0)
        for name in (BOOT, *spec.servers, CLIENT):
            world.set_access(name, Access(rate, rate, half_s))
        nodes = Nodes(world, blocks, config, lambda name: SimCompute(spec.costs))
        boot = await nodes.start(BOOT, NodeSpec("bootstrap"))
        await boot.wait_up()
        for name, (start, end) in spec.servers.items():
            await nodes.start(name, NodeSpec("server", span=Span(start, end)))
        for name in spec.servers:
            await nodes.by_name[name].wait_up()
        client = await nodes.start(CLIENT, NodeSpec("client"))
        await client.wait_up()
        assert client.model is not None
        yield VirtualSwarm(world, client.model)
