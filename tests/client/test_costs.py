from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from p2pllm.client.costs import UNKNOWN_BLOCK_S, Columns, Costs, Wish
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop, Plan
from p2pllm.config import ClientConfig
from p2pllm.dht.record import Throughput
from p2pllm.types import PeerId, ServerState, Span
from tests.client.test_planner import server

CONFIG = replace(ClientConfig(), unknown_rtt_s=0.1, hop_overhead_s=0.004, full_penalty_s=10.0)
WHOLE = Span(0, 8)


def costs_of(servers, peers=None, paths=()):
    paths = dict(paths)
    return Costs(Columns.of(servers), peers or Peers(CONFIG), CONFIG, 0.0, paths.get)


def graph_of(servers, wish=Wish(WHOLE), holding=(), usable=True, **known):  # noqa: B008 - immutable
    return costs_of(servers, **known).graph(wish, np.full(len(servers), usable), holding)


def test_a_server_that_we_know_nothing_of_costs_what_it_says():
    slow = Throughput(inference=5.0, forward=100.0)
    graph = graph_of([server("a", 0, 4, throughput=slow, queue=2), server("b", 4, 8, throughput=Throughput())])
    assert list(graph.block_s) == pytest.approx([0.05, UNKNOWN_BLOCK_S])
    assert list(graph.enter_s) == pytest.approx([0.05 + 0.004 + 2 * 4 * 0.05, 0.054])
    assert list(graph.leave_s) == pytest.approx([0.05, 0.05])


def test_what_we_measured_beats_what_it_says():
    peers = Peers(CONFIG)
    peers.answered(PeerId("a"), wall_s=0.34, compute_s=0.04, blocks=4, now=0.0)
    peers.pinged(PeerId("b"), 0.02, 0.0)
    peers.answered(PeerId("c"), wall_s=0.1, compute_s=0.0, blocks=4, now=0.0)
    peers.pinged(PeerId("c"), 0.02, 0.0)
    graph = graph_of([server(name, 0, 8, queue=9) for name in "abc"], peers=peers, paths={"b": 9.0})
    assert graph.enter_s[0] + graph.leave_s[0] == pytest.approx(0.3)
    assert graph.block_s[0] == pytest.approx(0.01)
    assert graph.leave_s[1] == pytest.approx(0.01)
    assert (graph.enter_s[2], graph.leave_s[2]) == pytest.approx((0.09, 0.01))


def test_a_connection_knows_its_round_trip():
    assert list(graph_of([server("a", 0, 8)], paths={"a": 0.03}).leave_s) == [0.015]


def test_long_steps_count_by_forward_throughput_where_it_is_announced():
    servers = [server("a", 0, 4, throughput=Throughput(10.0, 100.0)), server("b", 0, 4, throughput=Throughput(10.0))]
    assert list(graph_of(servers, Wish(WHOLE, tokens=50)).block_s) == pytest.approx([50 / 400, 0.025])


def test_full_servers_are_a_last_resort_unless_they_hold_our_cache_already():
    servers = [server("a", 0, 8, cache_tokens_free=10), server("b", 0, 8)]
    wish = Wish(WHOLE, cache_tokens=500)
    a, b = graph_of(servers, wish).enter_s
    assert a == pytest.approx(b + CONFIG.full_penalty_s)
    held = graph_of(servers, wish, [Hop(PeerId("a"), Span(2, 5))])
    assert held.enter_s[0] == pytest.approx(b)
    assert (held.start[0], held.end[0]) == (2, 5)


def test_a_holder_that_no_longer_serves_its_blocks_is_out():
    moved = graph_of([server("a", 4, 8)], holding=[Hop(PeerId("a"), Span(2, 5))])
    assert moved.end[0] <= moved.start[0]
    assert graph_of([server("a", 0, 8)], usable=False).end[0] == 0


def test_links_are_half_of_what_servers_measured_plus_the_targets_overhead():
    stranger = PeerId("stranger")
    servers = [
        server("a", 0, 4, pings=((PeerId("c"), 0.06), (stranger, 0.001), (PeerId("b"), 0.02))),
        server("b", 4, 8, queue=1),
        server("c", 4, 8, pings=((PeerId("a"), 0.08),)),
    ]
    assert len(graph_of(servers).links.seconds) == 0  # nobody asked for pushes
    links = graph_of(servers, Wish(WHOLE, push=True)).links
    assert list(zip(links.source, links.target, strict=True)) == [(2, 0), (0, 1), (0, 2)]
    assert list(links.seconds) == pytest.approx([0.04 + 0.004, 0.01 + 0.004 + 0.05, 0.03 + 0.004])
    assert links.between(0, 1) == pytest.approx(0.064)
    assert links.between(1, 0) == float("inf")


def test_a_part_of_a_pushed_chain_begins_and_ends_at_its_neighbours():
    servers = [
        server("before", 0, 2, pings=((PeerId("a"), 0.02),)),
        server("a", 2, 4, pings=((PeerId("after"), 0.01),)),
        server("b", 2, 4),
        server("after", 4, 8),
    ]
    costs = costs_of(servers)
    wish = Wish(Span(2, 4), push=True, before=PeerId("before"), after=PeerId("after"))
    graph = costs.graph(wish, np.ones(4, dtype=bool))
    ends = costs.ends(wish, graph)
    assert ends is not None
    assert list(ends.first_s[1:3]) == pytest.approx([0.01 + 0.004, 0.05 + 0.054])
    assert list(ends.last_s[1:3]) == pytest.approx([0.005 + 0.004, 0.05 + 0.054])
    for other in (replace(wish, push=False), replace(wish, before=None, after=None), replace(wish, before=PeerId("?"))):
        relayed = costs.ends(other, graph)
        assert relayed is None or other.after is not None


def test_replay_is_paid_for_new_servers_alone():
    costs = costs_of([server("a", 0, 4, throughput=Throughput(1.0, 100.0)), server("b", 4, 8)])
    plan = Plan((Hop(PeerId("a"), Span(0, 4)), Hop(PeerId("b"), Span(4, 8))), 1.0)
    assert costs.replay_s(plan, plan.hops[1:], 200) == pytest.approx(0.3 + 0.004 + 200 / 100)
    assert costs.replay_s(plan, plan.hops, 200) == 0.0


def test_columns_after_a_change_equal_columns_made_anew():
    servers = [server(name, i, i + 4, pings=((PeerId("a"), 0.1 * i),)) for i, name in enumerate("abcd")]
    last = Columns.of(servers)
    variants = [
        [*servers[:2], server("c", 0, 8, queue=3, state=ServerState.DRAINING), servers[3]],
        [*servers[:1], server("b", 1, 5, pings=((PeerId("d"), 0.5), (PeerId("c"), 0.2))), *servers[2:]],
        servers[1:],
        [*servers, server("e", 0, 8, pings=((PeerId("b"), 0.3),))],
        servers[::-1],
        [],
    ]
    for changed in variants:
        renewed, anew = Columns.of(changed, last), Columns.of(changed)
        assert (renewed.peers, renewed.index, renewed.tags) == (anew.peers, anew.index, anew.tags)
        for field in ("start", "end", "block_s", "batch_s", "queued_s", "cache_tokens_free", "online", "exact"):
            assert np.array_equal(getattr(renewed, field), getattr(anew, field)), field
        for field in ("source", "target", "seconds"):
            assert np.array_equal(getattr(renewed.links, field), getattr(anew.links, field)), field
    assert Columns.of(servers, last).peers is last.peers
