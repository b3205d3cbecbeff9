"""A large swarm and the crowd that uses it: how much of records, lookups and routing falls on each, as the swarm grows.

Servers are the production directory, announcements and next-hop pings, without blocks to compute; clients the
production directory and planner: each joins through the bootstrap node, fills its view, plans a chain, pings the chain
and leaves. Records are real and signed; the DHT's verbs are the delayed shared store of the ``ports`` stack.

Invariants: what is counted is virtual or counted, and the same for the same seed, but for ``plan_cpu_s``, the
processor's time, which is measured and no part of the trace.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import trio

from p2pllm.client.model import DirectoryView
from p2pllm.client.peers import Peers
from p2pllm.client.planner import Planner, Wish
from p2pllm.config import Config
from p2pllm.dht.ping import ping
from p2pllm.dht.record import Announcement, Throughput
from p2pllm.dht.service import Directory
from p2pllm.errors import CoverageError, PeerLost
from p2pllm.ports import Ports
from p2pllm.server.infos import Infos
from p2pllm.server.pings import NextHopPings
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span
from p2pllm.wire import INFO
from sim.host import SimNetwork
from sim.network import SimWorld
from sim.ports import sim_ports
from sim.run import run
from sim.world import TappedStream

MODEL = ModelId("c0" * 32)
BLOCKS = 80
NUMERICS = Numerics("float32", "none", "crowd", "any", exact=False)
LOOKUP_S = 60.0
"""A client that knows no whole chain by then gives up."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many, and for how long.

    Attributes:
        fill_s: the servers join during this time; then it is quiet for as long, and measured for ``quiet_s``.
        clients: in all; they come evenly over ``crowd_s``, and stay for ``stay_s`` each, at most ``at_once``.
    """

    servers: int
    clients: int
    at_once: int
    fill_s: float
    quiet_s: float
    crowd_s: float
    stay_s: float
    latency_s: float
    seed: int


@dataclass(slots=True)
class Load:
    """What was counted.

    Attributes:
        known: servers in the views of the servers, fewest and mean.
        record_bytes_per_min, messages_per_min: per server, of everything that servers say to each other in quiet.
        lookups: verbs of the DHT, in quiet per server and minute, and per client.
        client_bytes: per client, both ways.
        ready_s: virtual seconds from a client's start until it knows a whole chain, all of them.
        plan_cpu_s: processor seconds of each plan; measured.
    """

    known_min: int = 0
    known_mean: float = 0.0
    record_bytes_per_min: float = 0.0
    messages_per_min: float = 0.0
    lookups_per_min: float = 0.0
    lookups_per_client: float = 0.0
    client_bytes: float = 0.0
    client_bytes_per_server_min: float = 0.0
    most_at_once: int = 0
    failed: int = 0
    hops: float = 0.0
    ready_s: list[float] = field(default_factory=list)
    plan_cpu_s: list[float] = field(default_factory=list)
    trace: str = ""


class _Counted:
    """Counts what passes in a world, by who talks."""

    def __init__(self, world: SimWorld) -> None:
        self.bytes: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.lookups: Counter[str] = Counter()
        world.tap = self._tap

    def _tap(self, stream: TappedStream, data: bytes) -> bytes:
        ends = "".join(sorted(name[0] for name in stream.ends))
        self.bytes[ends] += len(data)
        self.messages[ends] += 1
        return data

    def watch(self, network: SimNetwork) -> None:
        """Count the lookups of one host."""
        find, put, get, provide = network.find, network.put, network.get, network.provide
        who, lookups = network.name[0], self.lookups

        async def counted_find(key: str, limit: int = 32) -> tuple[PeerId, ...]:
            lookups[who] += 1
            return await find(key, limit)

        async def counted_put(key: str, value: bytes) -> None:
            lookups[who] += 1
            await put(key, value)

        async def counted_get(key: str) -> bytes | None:
            lookups[who] += 1
            return await get(key)

        async def counted_provide(key: str) -> None:
            lookups[who] += 1
            await provide(key)

        replaced = {"find": counted_find, "put": counted_put, "get": counted_get, "provide": counted_provide}
        for name, verb in replaced.items():
            setattr(network, name, verb)


class _Play:
    def __init__(self, crowd: Crowd, world: SimWorld) -> None:
        self.crowd = crowd
        self.world = world
        self.config = Config()
        self.rng = Random(f"{crowd.seed}/crowd")
        self.load = Load()
        self.counted = _Counted(world)
        self.directories: list[Directory] = []
        self.present = 0
        self.hops: list[int] = []

    async def run(self) -> Load:
        crowd, load = self.crowd, self.load
        bootstrap, network = self._host("b0")
        network.spawn(Directory(bootstrap, self.config, None).run)
        for number in range(crowd.servers):
            self._server(number)
            await trio.sleep(crowd.fill_s / crowd.servers)
        await trio.sleep(crowd.fill_s)
        await self._quiet()
        before = self._spent()
        async with trio.open_nursery() as nursery:
            for number in range(crowd.clients):
                nursery.start_soon(self._client, number)
                await trio.sleep(crowd.crowd_s / crowd.clients)
        spent = self._spent() - before
        load.client_bytes = spent / max(1, crowd.clients)
        load.client_bytes_per_server_min = spent / crowd.servers / (crowd.crowd_s / 60)
        load.lookups_per_client = self.counted.lookups["c"] / max(1, crowd.clients)
        load.hops = sum(self.hops) / max(1, len(self.hops))
        load.trace = self.world.trace_hash()
        return load

    def _spent(self) -> int:
        """Bytes between clients and anybody."""
        return sum(size for ends, size in self.counted.bytes.items() if "c" in ends)

    def _host(self, name: str) -> tuple[Ports, SimNetwork]:
        network = self.world.host(name)
        self.counted.watch(network)
        return sim_ports(self.world, name, network=network), network

    def _server(self, number: int) -> None:
        """Directory, announcement, answers to pings, pings of next hops: all that an idle server does."""
        ports, network = self._host(f"s{number}")
        directory = Directory(ports, self.config, [MODEL])
        length = self.rng.randrange(4, 17)
        # The first ones tile the model, so that there is a chain; the others lie anywhere.
        start = 8 * number if number < BLOCKS // 8 else self.rng.randrange(BLOCKS - length + 1)
        span = Span(start, min(BLOCKS, start + (8 if number < BLOCKS // 8 else length)))
        speed = Throughput(self.rng.lognormvariate(3, 0.5), 1000.0, 0.0)
        network.serve(INFO, Infos(directory.record, self.config).handle)
        directory.announce(Announcement(MODEL, span, BLOCKS, ServerState.ONLINE, NUMERICS, speed))
        pings = NextHopPings(self.config.server, ports, lambda: directory.view.servers(MODEL), MODEL, span)
        network.spawn(directory.run)
        network.spawn(pings.run)
        self.directories.append(directory)

    async def _quiet(self) -> None:
        """The swarm by itself."""
        crowd, load, counted = self.crowd, self.load, self.counted
        before = counted.bytes["ss"], counted.messages["ss"], counted.lookups["s"]
        await trio.sleep(crowd.quiet_s)
        per = crowd.servers * crowd.quiet_s / 60
        load.record_bytes_per_min = (counted.bytes["ss"] - before[0]) / per
        load.messages_per_min = (counted.messages["ss"] - before[1]) / per
        load.lookups_per_min = (counted.lookups["s"] - before[2]) / per
        known = [len(directory.view.servers(MODEL)) for directory in self.directories]
        load.known_min, load.known_mean = min(known), sum(known) / len(known)

    async def _client(self, number: int) -> None:
        """Join, look up, plan, ping the chain, stay for a while, leave."""
        crowd, load = self.crowd, self.load
        if self.present >= crowd.at_once:
            load.failed += 1
            return
        self.present += 1
        load.most_at_once = max(load.most_at_once, self.present)
        name = f"c{number}"
        ports, network = self._host(name)
        directory = Directory(ports, self.config, [MODEL])
        began = trio.current_time()
        network.spawn(directory.run)
        view = DirectoryView(directory, MODEL)
        planner = Planner(self.config.client, ports, Peers(self.config.client), view)
        try:
            with trio.fail_after(LOOKUP_S):
                plan = await planner.wait_plan(Wish(Span(0, BLOCKS)), began + LOOKUP_S)
            load.ready_s.append(trio.current_time() - began)
            clock = time.thread_time()
            planner.plan(Wish(Span(0, BLOCKS)))
            load.plan_cpu_s.append(time.thread_time() - clock)
            self.hops.append(len(plan.hops))
            for hop in plan.hops[:2]:
                await ping(network, hop.peer_id, MODEL, self.config.client.ping_timeout_s)
        except (CoverageError, PeerLost, trio.TooSlowError):
            load.failed += 1
        await trio.sleep(max(0.0, began + crowd.stay_s - trio.current_time()))
        self.world.kill(name)
        self.present -= 1


def play(crowd: Crowd) -> Load:
    """Play it in virtual time."""

    async def main() -> Load:
        async with SimWorld(crowd.seed, crowd.latency_s) as world:
            return await _Play(crowd, world).run()

    return run(main, crowd.seed)
