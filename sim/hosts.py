"""Groups of hosts, as a scenario describes them, and their lives: when they come, go and come back.

Invariants: pure but for ``Group.live``, which starts and ends nodes at their moments and nothing else.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from p2pllm.config import Config
from p2pllm.types import Span
from sim.models import Passes
from sim.nodes import Nodes, NodeSpec, Role
from sim.spec import AccessSpec

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

AUTO = "auto"
DEFAULT_PASSES = Passes()


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts that are alike; a table of a scenario.

    Attributes:
        name: the hosts are called so, with a number behind it where there are several.
        blocks: of servers, such as "0:4"; the hosts take them in turn. "auto": those that the swarm needs most.
        clock_s: how wrong their clocks on the wall are; two numbers: anything between them.
    """

    name: str
    role: Role = "server"
    count: int = field(default=1, metadata={"min": 1, "max": 10_000})
    blocks: tuple[str, ...] = (AUTO,)
    num_blocks: int | None = field(default=None, metadata={"min": 1, "about": "of servers that choose for themselves"})
    throughput: float | None = field(default=None, metadata={"min": 0.001, "about": "tokens/s to announce; measured"})
    cache_tokens: int | None = field(default=None, metadata={"min": 16, "about": "a server's attention cache"})
    compute: Passes = DEFAULT_PASSES
    access: AccessSpec | None = field(default=None, metadata={"about": "instead of the network's"})
    region: str = field(default="", metadata={"about": "of the network's matrix, and of correlated faults"})
    starts_s: float | None = field(
        default=None, metadata={"min": 0.0, "about": "when the first one starts; nothing: before all times, to warm up"}
    )
    every_s: float = field(default=0.0, metadata={"min": 0.0, "about": "the next one starts so much later"})
    lives_s: float | None = field(default=None, metadata={"min": 0.1, "about": "mean time after which it leaves"})
    away_s: float | None = field(default=None, metadata={"min": 0.1, "about": "mean time after which it is back"})
    clock_s: float | tuple[float, float] = 0.0

    def __post_init__(self) -> None:
        for text in self.blocks:
            span_of(text)
        if not self.blocks:
            raise ValueError(f'{self.name}: blocks names none; "{AUTO}" lets servers choose')
        if self.away_s is not None and self.lives_s is None:
            raise ValueError(f"{self.name}: away_s needs lives_s: only who leaves can be away")

    @property
    def names(self) -> tuple[str, ...]:
        """Of its hosts."""
        return (self.name,) if self.count == 1 else tuple(f"{self.name}{number}" for number in range(self.count))

    def spec(self, number: int, config: Config) -> NodeSpec:
        """What its host of that number is to be."""
        server = config.server
        if self.cache_tokens is not None:
            server = replace(server, cache_tokens=self.cache_tokens)
        span = span_of(self.blocks[number % len(self.blocks)]) if self.role == "server" else None
        return NodeSpec(self.role, span, self.num_blocks, self.throughput, replace(config, server=server))

    def clock(self, rng: random.Random) -> float:
        """How wrong a host's clock is."""
        return rng.uniform(*self.clock_s) if isinstance(self.clock_s, tuple) else self.clock_s

    def start_s(self, number: int, origin_s: float) -> float:
        """When a host starts, in virtual time; a scenario's times count from ``origin_s``."""
        return (0.0 if self.starts_s is None else origin_s + self.starts_s) + number * self.every_s

    async def live(
        self, nodes: Nodes, number: int, origin_s: float, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """A host's comings and goings, for ever; started when its first process is."""
        name, world = self.names[number], nodes.world
        rng = world.rng("life", name)
        world.skew(name, self.clock(rng))
        await trio.sleep_until(self.start_s(number, origin_s))
        spec = self.spec(number, nodes.config)
        node = await nodes.start(name, spec)
        task_status.started()
        while self.lives_s is not None:
            await trio.sleep(rng.expovariate(1 / self.lives_s))
            node.leave()
            await node.process.ended.wait()
            await trio.sleep(rng.expovariate(1 / self.away_s) if self.away_s is not None else math.inf)
            if not node.alive:  # a fault's end may have started it meanwhile
                node = await nodes.start(name, spec)


def span_of(text: str) -> Span | None:
    """Blocks from their text; None: to be chosen.

    Raises:
        ValueError: it is none.
    """
    if text == AUTO:
        return None
    start, colon, end = text.partition(":")
    if not (colon and start.isdigit() and end.isdigit()) or int(start) >= int(end):
        raise ValueError(f'blocks {text!r}: such as "0:4" for blocks 0 to 3, or "{AUTO}"')
    return Span(int(start), int(end))
