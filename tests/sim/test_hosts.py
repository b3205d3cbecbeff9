"""Groups of hosts: their names and blocks, and their comings and goings."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio

from p2pllm.config import local
from p2pllm.types import Span
from sim.hosts import Group, span_of
from sim.network import SimWorld
from sim.nodes import Nodes
from sim.toy import ToyModel

CONFIG = replace(local(), server=replace(local().server, cache_tokens=256, exact=True))


@pytest.mark.parametrize(("text", "span"), [("0:4", Span(0, 4)), ("12:13", Span(12, 13)), ("auto", None)])
def test_blocks_as_text(text, span):
    assert span_of(text) == span


@pytest.mark.parametrize("text", ["", "4", "4:4", "5:4", "a:b", "0:", "-1:3", "1:2:3"])
def test_blocks_that_are_none(text):
    with pytest.raises(ValueError, match="such as"):
        Group("s", blocks=(text,))


def test_hosts_of_a_group():
    group = Group("s", count=3, blocks=("0:1", "1:2"), starts_s=5.0, every_s=2.0, cache_tokens=64, throughput=7.0)
    assert group.names == ("s0", "s1", "s2")
    assert Group("boot", "bootstrap").names == ("boot",)
    specs = [group.spec(number, CONFIG) for number in range(3)]
    assert [spec.span for spec in specs] == [Span(0, 1), Span(1, 2), Span(0, 1)]
    assert [group.start_s(number, 10.0) for number in range(3)] == [15.0, 17.0, 19.0]
    assert [Group("s", every_s=2.0).start_s(number, 10.0) for number in range(2)] == [0.0, 2.0]
    assert specs[0].config is not None
    assert (specs[0].config.server.cache_tokens, specs[0].throughput) == (64, 7.0)
    assert Group("c", "client").spec(0, CONFIG).span is None
    assert Group("s", clock_s=3.0).clock(random.Random(0)) == 3.0
    assert 5 <= Group("s", clock_s=(5, 6)).clock(random.Random(0)) <= 6


def test_who_is_away_must_have_left():
    with pytest.raises(ValueError, match="lives_s"):
        Group("s", away_s=3.0)
    with pytest.raises(ValueError, match="names none"):
        Group("s", blocks=())


async def test_hosts_come_leave_in_order_and_are_back():
    async with SimWorld(4, 0.01, CONFIG.net) as world, trio.open_nursery() as lives:
        nodes = Nodes(world, ToyModel(2), CONFIG)
        await lives.start(Group("boot", "bootstrap").live, nodes, 0, 0.0)
        guest = Group("guest", blocks=("0:2",), starts_s=3.0, lives_s=20.0, away_s=10.0, clock_s=120.0)
        lives.start_soon(guest.live, nodes, 0, 5.0)
        await trio.sleep(7.9)
        assert "guest" not in nodes.by_name
        await trio.sleep(3.0)
        node = nodes.by_name["guest"]
        assert node.serves == Span(0, 2)
        assert world.wall_time("guest") - world.wall_time("boot") == 120.0
        seen = set()
        while node.lives < 3:
            seen.add((node.up, node.process.error))
            await trio.sleep(1.0)
        assert seen == {(True, None), (False, None)}, "it left in order, and was away"
        lives.cancel_scope.cancel()
