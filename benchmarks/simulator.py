"""How much wall time the simulator needs for a virtual minute of 20 nodes that pass 2,000 hop messages of 8 KB.

``streams``: hosts on a ring hand on bytes over plain streams. ``sessions``: a client generates through 19 servers that
push to each other, with the production code on every node and hidden states of BLOOM-7.1B's width in 16 bits. Both
over 100 Mbit/s and 20 ms one way. ``idle``: what 1,000 hosts with 10,000 connections cost in a virtual hour.

    python -m benchmarks.simulator --stack libp2p
"""

from __future__ import annotations

import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import trio

from benchmarks.common import arguments, save, show
from p2pllm.config import Config, NetConfig
from p2pllm.ports import Stream
from sim.links import Access
from sim.run import run
from sim.shapes import BLOOM_7B, ShapeModel
from sim.stacks import open_world
from sim.swarm import open_swarm
from sim.world import World

NODES = 20
MESSAGES = 2000
MESSAGE_BYTES = 8192
MINUTE_S = 60.0
ACCESS = Access(up_bytes_per_s=12.5e6, down_bytes_per_s=12.5e6)
LATENCY_S = 0.020
LIMIT_S = {"ports": 3.0, "libp2p": 10.0}
IDLE_HOSTS = 1000
IDLE_EACH = 10
HOP = "/bench/hop"
CONTENT = bytes(range(256)) * (MESSAGE_BYTES // 256)


def prepare(world: World, names: list[str]) -> None:
    """The network of the benchmark."""
    for name in names:
        world.set_access(name, ACCESS)
    world.links.set_default(latency_s=LATENCY_S)


class Ring:
    """Nodes that read messages and hand each on to the next one, until all are through."""

    def __init__(self) -> None:
        self.passed = 0
        self.done = trio.Event()
        self.streams: dict[int, Stream] = {}

    def handler(self, number: int) -> Callable[[Stream], Awaitable[None]]:
        """What node ``number`` does with what it gets."""

        async def handle(stream: Stream) -> None:
            buffer = bytearray()
            while data := await stream.receive_some():
                buffer += data
                while len(buffer) >= MESSAGE_BYTES:
                    message = bytes(buffer[:MESSAGE_BYTES])
                    del buffer[:MESSAGE_BYTES]
                    self.passed += 1
                    if self.passed >= MESSAGES:
                        self.done.set()
                        return
                    await self.streams[number].send_all(message)

        return handle


async def streams(stack: str) -> dict[str, float]:
    """Hop messages over plain streams."""
    names = [f"n{number}" for number in range(NODES)]
    async with open_world(stack, 1, NetConfig()) as world:
        prepare(world, names)
        ring = Ring()
        hosts = [await world.start(name) for name in names]
        for number, host in enumerate(hosts):
            host.serve(HOP, ring.handler(number))
        for number, host in enumerate(hosts):
            after = hosts[(number + 1) % NODES]
            host.learn(after.me, after.addrs)
            ring.streams[number] = await host.open_stream(after.me, HOP)
        began, begun_s = time.process_time(), trio.current_time()
        await ring.streams[0].send_all(CONTENT)
        await ring.done.wait()
        await trio.sleep(max(0.0, MINUTE_S - (trio.current_time() - begun_s)))
        return {
            "messages": ring.passed, "virtual_s": trio.current_time() - begun_s, "took_s": time.process_time() - began
        }  # fmt: skip


async def sessions(stack: str) -> dict[str, float]:
    """Hop messages of a generation, by the production nodes."""
    servers = NODES - 1
    cuts = [BLOOM_7B.config.num_blocks * number // servers for number in range(servers + 1)]
    spans = list(pairwise(cuts))
    base = Config()
    client = replace(base.client, activations="fp16", push="on", patience_s=600.0)
    config = replace(base, server=replace(base.server, cache_tokens=256), client=client)
    async with open_world(stack, 1, config.net) as world:
        prepare(world, [f"s{number}" for number in range(servers)] + ["client"])
        swarm = open_swarm(ShapeModel(BLOOM_7B, "float16"), spans, config, seed=1, pass_s=0.008, world=world)
        async with swarm as opened, opened.client() as user:
            began, begun_s, steps = time.process_time(), trio.current_time(), 0
            async for piece in user.model.stream([[1, 2, 3, 4]], max_new_tokens=MESSAGES // NODES + 1):
                steps += len(piece.ids)
            took_s = time.process_time() - began
            return {"messages": steps * NODES, "virtual_s": trio.current_time() - begun_s, "took_s": took_s}


async def idle(stack: str) -> dict[str, float]:
    """Hosts that know each other and have nothing to say, for an hour."""
    async with open_world(stack, 1, NetConfig()) as world:
        hosts = [await world.start(f"n{number}") for number in range(IDLE_HOSTS)]
        for number, host in enumerate(hosts):
            host.serve(HOP, wait_for_ever)
            for step in range(1, IDLE_EACH + 1):
                other = hosts[(number + step * step) % IDLE_HOSTS]
                host.learn(other.me, other.addrs)
        for number, host in enumerate(hosts):
            for step in range(1, IDLE_EACH + 1):
                await host.open_stream(hosts[(number + step * step) % IDLE_HOSTS].me, HOP)
        began = time.process_time()
        await trio.sleep(3600)
        return {"messages": 0, "virtual_s": 3600.0, "took_s": time.process_time() - began}


async def wait_for_ever(stream: Stream) -> None:
    """A handler whose peer never says anything."""
    await stream.receive_some()


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--stack", choices=tuple(LIMIT_S), default="ports")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads of a pool that waits would count
    rows: list[dict[str, Any]] = []
    for name, play in (("streams", streams), ("sessions", sessions), ("idle", idle)):
        if name == "idle" and args.stack != "ports":
            continue  # tens of nodes is what that stack is for
        results = [run(lambda: play(args.stack), 1) for _ in range(args.runs)]  # noqa: B023
        best = min(results, key=lambda result: result["took_s"])
        limit_s = LIMIT_S[args.stack] if name != "idle" else 0.1
        rows.append({"what": name, **best, "limit_s": limit_s, "x real time": best["virtual_s"] / best["took_s"]})
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show(f"A virtual minute of {NODES} nodes, stack {args.stack}", rows, f"processor seconds; {memory_mib:.0f} MiB")
    save(args.out, {"stack": args.stack, "rows": rows, "memory_mib": memory_mib})


if __name__ == "__main__":
    main()
