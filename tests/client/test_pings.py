"""The client knows the way to those whom it is likely to ask, and lets nobody down for a lost ping."""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.client.peers import Peers
from p2pllm.client.pings import STRANGERS, Pings, due
from p2pllm.client.planner import Planner, Wish
from p2pllm.config import Config
from p2pllm.dht.record import Announcement
from p2pllm.server.infos import Infos
from p2pllm.types import PeerId, Span
from p2pllm.wire import INFO
from sim.compute import SimCompute, flat_cost
from sim.network import SimWorld
from sim.ports import sim_ports
from tests.client.test_planner import server

NEVER = -math.inf
CONFIG = replace(Config().client, pings_max=4, ping_interval_s=30.0, ban_s=5.0)


@pytest.mark.parametrize(
    ("ages", "known", "strangers"),
    [
        ({}, ["a", "b"], 0),  # likely ones first
        ({"a": 50.0}, ["b"], 0),
        ({"a": 50.0, "b": 50.0}, [], STRANGERS),
        ({"a": 10.0, "b": 50.0}, ["a"], STRANGERS),
        ({"a": 50.0, "b": 50.0, "x": 1.0, "y": 1.0, "z": 1.0}, [], 0),  # no strangers any more
    ],
)
def test_due(ages, known, strangers):
    def pinged_at(peer):
        return ages.get(peer, NEVER)

    found = due(["a", "b"], ["x", "y", "z"], pinged_at, 20.0, random.Random(1))
    assert found[0] == known
    assert len(found[1]) == strangers


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True), st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 99))
)
def test_everybody_gets_a_turn_and_nobody_too_often(likely, ages):
    others = [peer for peer in "abcdefgh" if peer not in likely]
    known, strangers = due(likely, others, lambda peer: ages.get(peer, NEVER), 50.0, random.Random(1))
    assert all(ages.get(peer, NEVER) <= 50.0 for peer in known)
    assert all(peer not in ages for peer in strangers)
    assert known or strangers or all(ages.get(peer, NEVER) > 50.0 for peer in likely)


class View:
    def __init__(self) -> None:
        self.known: list[Announcement] = []
        self.reached: list[PeerId] = []

    def servers(self):
        return self.known

    def mark_reached(self, peer):
        self.reached.append(peer)

    async def refresh(self):
        await trio.lowlevel.checkpoint()


class Swarm:
    def __init__(self, world: SimWorld, config=CONFIG) -> None:
        self.world, self.view = world, View()
        self.network = world.host("client")
        ports = sim_ports(world, "client", network=self.network, compute=SimCompute(flat_cost(0.001)))
        self.peers = Peers(config)
        self.planner = Planner(config, ports, self.peers, self.view)
        announcement = server("x", 0, 8)
        self.pings = Pings(config, ports, self.peers, self.planner, self.view, announcement.model, Span(0, 8))

    def add(self, name: str, start: int, end: int, latency_s: float) -> PeerId:
        host = self.world.host(name)
        host.serve(INFO, Infos(lambda model: b"record", Config()).handle)
        self.world.set_latency("client", name, latency_s)
        self.view.known.append(replace(server("x", start, end), peer=host.me, addrs=host.addrs))
        return host.me

    async def until(self, peer: PeerId) -> None:
        with trio.fail_after(60):
            while self.chosen() != [peer]:  # noqa: ASYNC110 - what ends a ban is the clock
                await trio.sleep(1)

    def chosen(self) -> list[PeerId]:
        return [hop.peer_id for hop in self.planner.plan(Wish(Span(0, 8))).hops]


@asynccontextmanager
async def swarm(config=CONFIG):
    async with SimWorld(seed=3) as world:
        some = Swarm(world, config)
        world.nursery.start_soon(some.pings.run)
        yield some


async def test_the_nearest_servers_are_found_among_equals():
    async with swarm() as some:
        for i in range(6):
            some.add(f"far{i}", 0, 8, 0.15)
        near = some.add("near", 0, 8, 0.005)
        await trio.sleep(60)
        assert some.peers.rtt_s(near) == pytest.approx(0.01)
        assert some.chosen() == [near]
        assert near in some.view.reached


async def test_no_more_are_pinged_than_needed():
    """Likely ones again and again, strangers once; strangers of no use do not stay connected."""
    async with swarm() as some:
        for i in range(40):
            some.add(f"s{i}", 0, 8, 0.01 + 0.001 * i)
        await trio.sleep(120)
        known = [s.peer for s in some.view.known if some.peers.rtt_s(s.peer) is not None]
        assert 4 <= len(known) <= 25
        assert sum(some.network.path(s.peer) is not None for s in some.view.known) <= 12
        fresh = [peer for peer in known if some.peers.pinged_at(peer) > trio.current_time() - 50]
        assert set(some.planner.likely(Wish(Span(0, 8)), 3)) <= set(fresh)


async def test_a_server_that_does_not_answer_is_avoided_and_used_again_when_it_does():
    async with swarm() as some:
        best, other = some.add("best", 0, 8, 0.005), some.add("other", 0, 8, 0.1)
        await trio.sleep(20)
        assert some.chosen() == [best]
        some.world.hang("best")
        await some.until(other)
        assert all(s.failures == 0 for s in some.peers.statistics(trio.current_time()))
        some.world.resume("best")
        await some.until(best)


async def test_when_nobody_answers_the_fault_is_ours():
    async with swarm() as some:
        both = [some.add("a", 0, 8, 0.01), some.add("b", 0, 8, 0.01)]
        await trio.sleep(20)
        some.world.partition(["client"])
        await trio.sleep(100)
        assert not any(some.peers.banned(peer, trio.current_time()) for peer in both)


async def test_no_pings_where_none_are_wanted():
    async with swarm(replace(CONFIG, pings_max=0)) as some:
        peer = some.add("a", 0, 8, 0.01)
        await trio.sleep(100)
        assert some.peers.rtt_s(peer) is None
