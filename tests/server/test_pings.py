"""A server knows the ways to those who could go on where it ends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio

from p2pllm.config import Config
from p2pllm.dht.record import Announcement, Throughput
from p2pllm.server.infos import Infos
from p2pllm.server.pings import NextHopPings, choose, next_hops
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span
from p2pllm.wire import INFO
from sim.network import SimWorld
from sim.ports import sim_ports

MODEL = ModelId("m")
SETTINGS = replace(Config().server, next_hop_pings_max=4, ping_interval_s=60.0)


def server(name: str, start: int, end: int, speed: float = 10.0, state=ServerState.ONLINE) -> Announcement:
    numerics = Numerics("float32", "none", "", "", exact=False)
    return Announcement(MODEL, Span(start, end), 8, state, numerics, Throughput(speed), peer=PeerId(name))


def test_next_hops_hold_the_block_after_ours():
    servers = [
        server("me", 0, 8),
        server("before", 0, 4),
        server("after", 5, 8),
        server("through", 2, 8, speed=99.0),
        server("slow", 4, 8, speed=1.0),
        server("fast", 4, 6, speed=20.0),
        server("leaving", 4, 8, state=ServerState.DRAINING),
    ]
    assert [s.peer for s in next_hops(servers, Span(0, 4), PeerId("me"))] == ["fast", "slow", "through"]
    assert next_hops(servers, Span(4, 8), PeerId("other")) == []


@pytest.mark.parametrize(
    ("known", "first", "size"),
    [
        ({}, ["a", "b", "c", "d"], 4),
        ({"a": 0.2, "b": 0.1, "c": 0.3}, ["b", "a", "d", "e"], 4),  # the two nearest, then whoever is new
        ({peer: 0.1 * i for i, peer in enumerate("abcdef")}, ["a", "b"], 4),
    ],
)
def test_choose(known, first, size):
    found = choose("abcdef", known, 4, random.Random(1))
    assert list(found)[: len(first)] == first
    assert len(found) == len(set(found)) == size


def test_in_time_everybody_is_measured():
    able = [f"s{i}" for i in range(40)]
    known: dict[str, float] = {}
    rng = random.Random(2)
    for _ in range(30):
        known |= {peer: rng.random() for peer in choose(able, known, 4, rng)}
    assert set(known) == set(able)


async def test_the_nearest_are_announced_and_the_dead_are_dropped():
    async with SimWorld(seed=4) as world:
        me, servers = world.host("me"), []
        for i in range(6):
            host = world.host(f"s{i}")
            host.serve(INFO, Infos(lambda model: b"", Config()).handle)
            world.set_latency("me", f"s{i}", 0.06 - 0.01 * i)
            servers.append(replace(server("", 4, 8), peer=host.me, addrs=host.addrs))
        pings = NextHopPings(SETTINGS, sim_ports(world, "me", network=me), lambda: servers, MODEL, Span(0, 4))
        assert pings.pings == ()
        world.nursery.start_soon(pings.run)
        await trio.sleep(600)
        assert [peer for peer, _ in pings.pings] == [servers[i].peer for i in (5, 4, 3, 2)]
        assert [rtt_s for _, rtt_s in pings.pings] == pytest.approx([0.02, 0.04, 0.06, 0.08])
        world.kill("s5")
        await trio.sleep(200)
        assert servers[5].peer not in dict(pings.pings)
        del servers[4]
        await trio.sleep(200)
        assert len(pings.pings) == 4
        assert world.hosts["s4"].me not in dict(pings.pings)


async def test_the_last_server_of_a_chain_measures_nothing():
    async with SimWorld() as world:
        pings = NextHopPings(
            SETTINGS, sim_ports(world, "me"), lambda: [server("a", 0, 8)], MODEL, Span(4, 8)
        )  # fmt: skip
        await pings.round()
        assert pings.pings == ()
