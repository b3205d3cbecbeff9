"""What is seen of a swarm from outside while it runs: samples over virtual time, and bytes on the wire.

Invariants: observing changes nothing that happens: samples are read, messages pass as they are.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from p2pllm.types import ServerState, Span
from sim.nodes import Nodes
from sim.swarm import MODEL
from sim.world import TappedStream


class Meter:
    """Counts what hosts send each other: a world's ``tap``."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()

    def __call__(self, stream: TappedStream, data: bytes) -> bytes:
        here, there = stream.ends
        self.messages[here] += 1
        self.sent_bytes[here] += len(data)
        self.received_bytes[there] += len(data)
        return data


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment.

    Attributes:
        replicas: servers of the block that fewest serve.
        servers: that serve anything.
        running: jobs under way.
        tokens: that came out so far, of all jobs.
        bytes: that were sent so far, by all hosts.
    """

    at_s: float
    replicas: int
    servers: int
    running: int
    tokens: int
    bytes: int


class Observer:
    """Takes samples, and notes how long servers serve and how many passes they compute."""

    def __init__(self, nodes: Nodes, meter: Meter, jobs: Callable[[], tuple[int, int]], origin_s: float) -> None:
        self.samples: list[Sample] = []
        self.served_s: defaultdict[str, float] = defaultdict(float)
        self.passes: dict[tuple[str, int], int] = {}
        self.spans: dict[str, Span] = {}
        self.known: Counter[str] = Counter()
        self._nodes = nodes
        self._meter = meter
        self._jobs = jobs
        self._origin_s = origin_s

    async def run(self, every_s: float) -> None:
        """Look every ``every_s``, for ever."""
        while True:
            self.look(every_s)
            await trio.sleep(every_s)

    def look(self, every_s: float = 0.0) -> None:
        """Look now."""
        serving = 0
        for node in self._nodes.of("server"):
            if node.serves is not None and node.server is not None and node.server.serving is not None:
                serving += 1
                self.spans[node.name] = node.serves
                self.served_s[node.name] += every_s
                self.passes[node.name, node.lives] = node.server.serving.engine.passes
        running, tokens = self._jobs()
        sent = sum(self._meter.sent_bytes.values())
        at_s, replicas = trio.current_time() - self._origin_s, min(self._nodes.coverage())
        self.samples.append(Sample(at_s, replicas, serving, running, tokens, sent))

    def count_known(self) -> None:
        """How many clients list which servers as able to serve now."""
        names = {node.peer: node.name for node in self._nodes.of("server")}
        for client in self._nodes.of("client"):
            for ann in client.directory.view.servers(MODEL) if client.directory is not None else ():
                self.known[names[ann.peer]] += ann.state is ServerState.ONLINE

    def passes_of(self, name: str) -> int:
        """Of all its lives, as far as they were seen."""
        return sum(count for (server, _), count in self.passes.items() if server == name)


def rates(samples: Sequence[Sample], of: Callable[[Sample], float]) -> list[float]:
    """How fast something grew between samples, per second; as many as there are samples."""
    found = [0.0] * min(1, len(samples))
    for before, after in itertools.pairwise(samples):
        took_s = after.at_s - before.at_s
        found.append((of(after) - of(before)) / took_s if took_s > 0 else 0.0)
    return found
