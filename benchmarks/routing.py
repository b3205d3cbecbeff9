"""How long a plan takes: the production planner against plain Dijkstra over (server, block), on the same swarms.

    python -m benchmarks.routing --servers 1000 --blocks 126

Swarms are random: spans of several lengths, speeds over a decade, round trips from 10 to 300 ms, and for every server
the pings to a dozen servers that could come next, as servers announce them. "relayed" chains pass the client at every
hop, "pushed" ones use the servers' own links. Three times per swarm and mode: with new records (everything is built
anew), with the records of last time, and the bare dynamic program. The baseline relaxes edges one by one in Python, as
a textbook has it; both must find chains of equal cost, or the benchmark fails.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import trio

from benchmarks.common import arguments, save, show, spread
from p2pllm.client.costs import Columns, Costs, Wish
from p2pllm.client.peers import Peers
from p2pllm.client.planner import Planner
from p2pllm.client.route import Graph, shortest_chain
from p2pllm.config import ClientConfig
from p2pllm.dht.record import Announcement, Throughput
from p2pllm.ports import Ports
from p2pllm.types import ModelId, Numerics, Path, PeerId, ServerState, Span

NEXT_HOPS = 12
CONFIG = ClientConfig()


def random_swarm(servers: int, blocks: int, rng: random.Random) -> list[Announcement]:
    """Announcements of a swarm that covers every block."""
    base = Announcement(
        ModelId("m"), Span(0, 1), blocks, ServerState.ONLINE, Numerics("float32", "none", "", "", exact=False)
    )
    length = max(2, blocks // 8)
    spans = [Span(a, min(blocks, a + length)) for a in range(0, blocks, length)]
    while len(spans) < servers:
        start = rng.randrange(blocks)
        spans.append(Span(start, min(blocks, start + rng.randint(2, 2 * length))))
    places = {i: (rng.random(), rng.random()) for i in range(servers)}
    found = []
    for i, span in enumerate(spans):
        following = [j for j, other in enumerate(spans) if span.end in other and j != i]
        near = rng.sample(following, min(NEXT_HOPS, len(following)))
        pings = tuple((PeerId(f"s{j}"), 0.01 + 0.2 * math.dist(places[i], places[j])) for j in near)
        speed = Throughput(10 ** rng.uniform(0, 1.5), 10 ** rng.uniform(2, 3.5))
        room, queue, addr = rng.choice([0, 8192, 65536]), rng.randrange(4), f"/ip4/10.0.0.1/tcp/1/p2p/s{i}"
        server = replace(base, span=span, throughput=speed, pings=pings, cache_tokens_free=room, queue=queue)
        found.append(replace(server, peer=PeerId(f"s{i}"), addrs=(addr,)))
    return found


class _Network:
    """As much of the network as planning touches."""

    me = PeerId("me")

    def __init__(self, rtts: dict[PeerId, float]) -> None:
        self._rtts = rtts

    def path(self, peer: PeerId) -> Path | None:
        rtt_s = self._rtts.get(peer)
        return None if rtt_s is None else Path(True, "", rtt_s)

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        del peer, addrs


class _View:
    def __init__(self, servers: list[Announcement]) -> None:
        self.known = servers

    def servers(self) -> list[Announcement]:
        return self.known


def dijkstra(graph: Graph, whole: Span) -> float:
    """The cost of the shortest walk over (server, block), edge by edge; a server may be visited twice."""
    serving: dict[int, list[int]] = {b: [] for b in whole}
    for s in range(len(graph.peers)):
        for b in range(max(int(graph.start[s]), whole.start), min(int(graph.end[s]), whole.end)):
            serving[b].append(s)
    direct: dict[int, list[tuple[int, float]]] = {}
    for s, t, seconds in zip(graph.links.source, graph.links.target, graph.links.seconds, strict=True):
        direct.setdefault(int(s), []).append((int(t), float(seconds)))
    enter, leave, block = graph.enter_s.tolist(), graph.leave_s.tolist(), graph.block_s.tolist()
    start, end = graph.start.tolist(), graph.end.tolist()
    best: dict[tuple[int, int], float] = {}
    heap: list[tuple[float, int, int]] = [(enter[s] + block[s], s, whole.start) for s in serving[whole.start]]
    client: dict[int, float] = {}
    heapq.heapify(heap)
    while heap:
        cost, s, b = heapq.heappop(heap)
        if s < 0:  # the client holds the output of block b - 1
            if b == whole.end:
                return cost
            if cost > client[b]:
                continue
            ways = [(t, cost + enter[t]) for t in serving[b]]
        else:
            if best.get((s, b), math.inf) <= cost:
                continue
            best[s, b] = cost
            back = cost + leave[s]
            if back < client.get(b + 1, math.inf):
                client[b + 1] = back
                heapq.heappush(heap, (back, -1, b + 1))
            ways = [(t, cost + seconds) for t, seconds in direct.get(s, ()) if start[t] <= b + 1 < end[t]]
            if b + 1 < min(end[s], whole.end):
                ways.append((s, cost))
            b += 1
        for t, at in ways:
            if b < whole.end and at + block[t] < best.get((t, b), math.inf):
                heapq.heappush(heap, (at + block[t], t, b))
    return math.inf


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of one core per call, so that other programs do not count."""
    took = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        took.append(1000 * (time.process_time() - began))
    return spread(took)


async def measure(servers: int, blocks: int, push: bool, seed: int, repeats: int) -> dict[str, Any]:
    """One swarm, one mode."""
    rng = random.Random(seed)
    swarm = random_swarm(servers, blocks, rng)
    rtts = {server.peer: rng.uniform(0.01, 0.3) for server in swarm}
    peers, view = Peers(CONFIG), _View(swarm)
    for server in swarm[::4]:
        peers.pinged(server.peer, rtts[server.peer], 0.0)
    ports = cast("Ports", type("P", (), {"network": _Network(dict(list(rtts.items())[::3])), "rng": rng}))
    planner = Planner(CONFIG, ports, peers, cast("Any", view))
    wish = Wish(Span(0, blocks), cache_tokens=2048, push=push)

    def renewed() -> None:
        i = rng.randrange(servers)
        view.known = [*swarm[:i], replace(swarm[i], queue=rng.randrange(9)), *swarm[i + 1 :]]
        planner.plan(wish)

    def again() -> None:
        planner.plan(wish)

    fresh, same = timed(renewed, repeats), timed(again, repeats)
    costs = Costs(Columns.of(view.known), peers, CONFIG, 0.0, lambda peer: None)
    graph = costs.graph(wish, np.ones(servers, dtype=np.bool_))
    plan, bare = shortest_chain(graph, wish.span), timed(lambda: shortest_chain(graph, wish.span), repeats)
    baseline = timed(lambda: dijkstra(graph, wish.span), max(1, repeats // 8))
    walk_s = dijkstra(graph, wish.span)
    if plan.cost_s < walk_s - 1e-9 or (plan.cost_s > walk_s + 1e-9 and len(plan.hops) == 1):
        raise SystemExit(f"seed {seed}: a chain of {plan.cost_s} s where Dijkstra found {walk_s} s")
    return {
        "servers": servers,
        "blocks": blocks,
        "mode": "pushed" if push else "relayed",
        "links": len(graph.links.source),
        "new records ms": fresh["p50"],
        "p95": fresh["p95"],
        "same records ms": same["p50"],
        "bare ms": bare["p50"],
        "dijkstra ms": baseline["p50"],
        "speed-up": baseline["p50"] / bare["p50"],
        "hops": len(plan.hops),
        "equal": abs(plan.cost_s - walk_s) < 1e-9,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--servers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 126])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = [
        trio.run(measure, servers, blocks, push, args.seed, args.repeats)
        for servers in args.servers
        for blocks in args.blocks
        for push in (False, True)
    ]
    note = "goal: below 10 ms per plan at 1,000 servers x 126 blocks; p95 is that of plans on new records"
    show("Planning a chain", rows, note)
    save(args.out, {"benchmark": "routing", "rows": rows})


if __name__ == "__main__":
    main()
