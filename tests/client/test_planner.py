from __future__ import annotations

import logging
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio

from p2pllm.client.peers import Peers
from p2pllm.client.planner import Planner, Wish
from p2pllm.client.route import Hop
from p2pllm.config import ClientConfig
from p2pllm.dht.record import Announcement, Throughput
from p2pllm.errors import CoverageError
from p2pllm.types import ModelId, Numerics, Path, PeerId, ServerState, Span

CONFIG = replace(ClientConfig(), ban_s=5.0, gap_grace_s=2.0)
EXACT = Numerics("float32", "none", "torch-2", "avx2", exact=True)
WHOLE = Span(0, 8)


def server(name: str, start: int, end: int, **changes) -> Announcement:
    ann = Announcement(
        ModelId("m"),
        Span(start, end),
        8,
        ServerState.ONLINE,
        replace(EXACT, exact=False),
        Throughput(inference=20.0, forward=1000.0),
        cache_tokens_free=1000,
        peer=PeerId(name),
        addrs=(f"/ip4/10.0.0.1/tcp/1/p2p/{name}",),
    )
    return replace(ann, **changes)


class Net:
    me = PeerId("me")

    def __init__(self, rtts=()):
        self.rtts = dict(rtts)
        self.learned = {}

    def path(self, peer):
        return Path(True, "", self.rtts[peer]) if peer in self.rtts else None

    def learn(self, peer, addrs):
        self.learned[peer] = addrs


class View:
    def __init__(self, servers):
        self.known = servers

    def servers(self):
        return self.known

    def mark_reached(self, peer): ...

    async def refresh(self):
        await trio.lowlevel.checkpoint()


def planner(servers, config=CONFIG, net=None, peers=None, seed=0):
    ports = SimpleNamespace(network=net or Net(), rng=random.Random(seed))
    return Planner(config, ports, peers or Peers(config), View(servers))


def chosen(plan):
    return [(hop.peer_id, hop.span.start, hop.span.end) for hop in plan.hops]


async def test_a_chain_of_online_servers_whose_addresses_are_learned():
    net = Net()
    servers = [
        server("a", 0, 4),
        server("b", 4, 8),
        server("joining", 0, 8, state=ServerState.JOINING),
        server("draining", 0, 8, state=ServerState.DRAINING),
        server("offline", 0, 8, state=ServerState.OFFLINE),
        server("me", 0, 8),
    ]
    plan = planner(servers, net=net).plan(Wish(WHOLE))
    assert chosen(plan) == [("a", 0, 4), ("b", 4, 8)]
    assert net.learned == {"a": servers[0].addrs, "b": servers[1].addrs}


@pytest.mark.parametrize(
    ("better", "net"),
    [
        ({"throughput": Throughput(inference=40.0)}, Net()),
        ({}, Net({"a": 0.01, "b": 0.02})),
        ({}, Net({"a": 0.01})),
        ({"queue": 0}, Net()),
        ({"cache_tokens_free": 5000}, Net()),
    ],
)
async def test_the_better_server_wins(better, net):
    servers = [server("b", 0, 8, queue=1), server("a", 0, 8, **({"queue": 1} | better))]
    for seed in range(8):
        assert chosen(planner(servers, net=net, seed=seed).plan(Wish(WHOLE, cache_tokens=2000))) == [("a", 0, 8)]


async def test_our_own_measurements_beat_announcements():
    peers = Peers(CONFIG)
    servers = [server("a", 0, 8), server("b", 0, 8, throughput=Throughput(inference=1000.0))]
    peers.answered(PeerId("b"), wall_s=3.0, compute_s=2.9, blocks=8, now=0.0)
    peers.answered(PeerId("a"), wall_s=0.5, compute_s=0.4, blocks=8, now=0.0)
    assert chosen(planner(servers, peers=peers).plan(Wish(WHOLE))) == [("a", 0, 8)]


async def test_long_batches_ask_for_forward_throughput():
    servers = [
        server("a", 0, 8, throughput=Throughput(inference=100.0, forward=500.0)),
        server("b", 0, 8, throughput=Throughput(inference=10.0, forward=5000.0)),
    ]
    assert chosen(planner(servers).plan(Wish(WHOLE))) == [("a", 0, 8)]
    assert chosen(planner(servers).plan(Wish(WHOLE, tokens=1024))) == [("b", 0, 8)]


async def test_equal_servers_share_the_load():
    servers = [server("a", 0, 8), server("b", 0, 8)]
    assert {chosen(planner(servers, seed=seed).plan(Wish(WHOLE)))[0][0] for seed in range(10)} == {"a", "b"}


async def test_only_allowed_servers():
    config = replace(CONFIG, allow_servers=("b",))
    servers = [server("a", 0, 8), server("b", 0, 8, queue=9)]
    assert chosen(planner(servers, config).plan(Wish(WHOLE))) == [("b", 0, 8)]
    with pytest.raises(CoverageError, match="nobody serves blocks 0-7 of 8, as far as servers are allowed"):
        planner(servers[:1], config).plan(Wish(WHOLE))


async def test_exact_chains_stay_within_one_numerics_class():
    other = replace(EXACT, isa="neon")
    servers = [
        server("a", 0, 4, numerics=EXACT),
        server("b", 4, 8, numerics=other),
        server("c", 0, 8, throughput=Throughput(inference=900.0)),
    ]
    with pytest.raises(CoverageError, match=r"nobody serves blocks \d-\d of 8 in exact mode"):
        planner(servers).plan(Wish(WHOLE, exact=True))
    servers.append(server("d", 3, 8, numerics=EXACT))
    plan = planner(servers).plan(Wish(WHOLE, exact=True))
    assert chosen(plan) == [("a", 0, 3), ("d", 3, 8)]
    assert plan.numerics == EXACT.tag()
    plan = planner(servers).plan(Wish(WHOLE))
    assert chosen(plan) == [("c", 0, 8)]
    assert plan.numerics == ""


async def test_banned_servers_are_avoided_and_a_gap_that_bans_make_is_told_as_such():
    peers = Peers(CONFIG)
    servers = [server("a", 0, 8, throughput=Throughput(inference=900.0)), server("b", 0, 8)]
    peers.failed(PeerId("a"), trio.current_time())
    assert chosen(planner(servers, peers=peers).plan(Wish(WHOLE))) == [("b", 0, 8)]
    for exact in (False, True):
        alone = [replace(servers[0], numerics=EXACT)]
        with pytest.raises(CoverageError, match="served only by servers that failed, or were full"):
            planner(alone, peers=peers).plan(Wish(WHOLE, exact=exact))
    with pytest.raises(CoverageError, match="nobody serves blocks 4-7 of 8"):
        planner([server("a", 0, 4)], peers=peers).plan(Wish(WHOLE))


async def test_a_gap_that_closes_is_waited_for(caplog):
    servers = [server("a", 0, 4)]

    async def join():
        await trio.sleep(7.0)
        servers.append(server("b", 4, 8))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        with caplog.at_level(logging.WARNING):
            plan = await planner(servers).wait_plan(Wish(WHOLE), trio.current_time() + 60.0)
    assert len(plan.hops) == 2
    assert 7.0 <= trio.current_time() < 7.5
    assert [r.getMessage() for r in caplog.records] == ["nobody serves blocks 4-7 of 8; waiting up to 58 s more"]


async def test_a_gap_that_stays_is_named_after_the_patience():
    began = trio.current_time()
    with pytest.raises(CoverageError, match=r"nobody serves blocks 4-7 of 8 \(waited 10 s\)") as caught:
        await planner([server("a", 0, 4)]).wait_plan(Wish(WHOLE), began + 10.0)
    assert caught.value.missing == (4, 5, 6, 7)
    assert trio.current_time() - began == pytest.approx(10.0)


async def test_a_banned_server_is_used_again_when_its_ban_ends():
    peers = Peers(CONFIG)
    peers.failed(PeerId("a"), trio.current_time())
    plan = await planner([server("a", 0, 8)], peers=peers).wait_plan(Wish(WHOLE), trio.current_time() + 60.0)
    assert chosen(plan) == [("a", 0, 8)]
    assert 5.0 <= trio.current_time() < 5.5


async def test_pushes_follow_the_servers_own_pings():
    servers = [
        server("a", 0, 4, pings=((PeerId("d"), 0.002),)),
        server("b", 0, 4),
        server("c", 4, 8),
        server("d", 4, 8),
    ]
    for seed in range(5):
        plan = planner(servers, seed=seed).plan(Wish(WHOLE, push=True))
        assert chosen(plan) == [("a", 0, 4), ("d", 4, 8)]
        assert plan.pushes == (True,)
        assert planner(servers, seed=seed).plan(Wish(WHOLE)).pushes == ()
        middle = Wish(Span(4, 8), push=True, before=PeerId("a"))
        assert chosen(planner(servers, seed=seed).plan(middle)) == [("d", 4, 8)]


async def test_servers_that_the_chain_has_already_are_avoided():
    servers = [server("a", 0, 8), server("b", 4, 8)]
    wish = Wish(Span(4, 8), avoid=frozenset({PeerId("a")}))
    for seed in range(4):
        assert chosen(planner(servers, seed=seed).plan(wish)) == [("b", 4, 8)]
    with pytest.raises(CoverageError, match="nobody else serves blocks 4-7"):
        planner(servers[:1]).plan(wish)


async def test_a_replacement_stays_within_the_sessions_class():
    other = replace(EXACT, isa="neon")
    servers = [server("a", 0, 8, numerics=EXACT), server("b", 0, 8, numerics=other)]
    for seed in range(4):
        plan = planner(servers, seed=seed).plan(Wish(WHOLE, exact=True, numerics=other.tag()))
        assert chosen(plan) == [("b", 0, 8)]
        assert plan.numerics == other.tag()


async def test_a_plan_is_made_on_the_records_of_its_moment():
    servers = [server("a", 0, 8), server("b", 0, 8, queue=9)]
    some = planner(servers)
    assert chosen(some.plan(Wish(WHOLE))) == [("a", 0, 8)]
    servers[0] = replace(servers[0], state=ServerState.DRAINING)
    assert chosen(some.plan(Wish(WHOLE))) == [("b", 0, 8)]
    servers.append(server("c", 0, 8))
    assert chosen(some.plan(Wish(WHOLE))) == [("c", 0, 8)]
    del servers[1:]
    with pytest.raises(CoverageError):
        some.plan(Wish(WHOLE))


FAST = Throughput(inference=200.0, forward=1e6)


async def test_a_session_moves_to_a_clearly_better_chain_and_stays_there():
    servers = [server("a", 0, 4), server("b", 4, 8, throughput=Throughput(4.0, 1000.0))]
    some = planner(servers)
    current = some.plan(Wish(WHOLE)).hops
    assert some.better(current, Wish(WHOLE), position=100, remaining=1000) is None
    servers.append(server("c", 4, 8, throughput=FAST))
    better = some.better(current, Wish(WHOLE), position=100, remaining=1000)
    assert better is not None
    assert chosen(better) == [("a", 0, 4), ("c", 4, 8)]
    assert some.better(better.hops, Wish(WHOLE), position=100, remaining=1000) is None
    assert some.better(current, Wish(WHOLE), position=100, remaining=2) is None  # nothing left to win
    servers[2] = server("c", 4, 8, throughput=Throughput(5.0, 1000.0))
    assert some.better(current, Wish(WHOLE), position=100, remaining=10**6) is None  # not clearly better


async def test_a_move_gives_no_server_of_the_chain_other_blocks():
    servers = [server("a", 0, 8, throughput=Throughput(inference=10.0)), server("b", 4, 8, queue=9)]
    current = (Hop(PeerId("a"), Span(0, 4)), Hop(PeerId("b"), Span(4, 8)))
    servers += [server("c", 2, 8, throughput=FAST), server("d", 0, 4, queue=5)]
    better = planner(servers).better(current, Wish(WHOLE), position=10, remaining=10**6)
    assert better is not None
    assert chosen(better) == [("a", 0, 4), ("c", 4, 8)]


async def test_a_session_leaves_a_server_that_drains_if_it_can():
    servers = [server("a", 0, 8, state=ServerState.DRAINING)]
    current = (Hop(PeerId("a"), Span(0, 8)),)
    some = planner(servers)
    assert some.better(current, Wish(WHOLE), position=10, remaining=10) is None
    servers.append(server("b", 0, 8, queue=5))
    better = some.better(current, Wish(WHOLE), position=10, remaining=10)
    assert better is not None
    assert chosen(better) == [("b", 0, 8)]


async def test_a_ban_does_not_drive_a_running_session_away():
    peers = Peers(CONFIG)
    servers = [server("a", 0, 8), server("b", 0, 8, queue=5)]
    peers.failed(PeerId("a"), trio.current_time())
    current = (Hop(PeerId("a"), Span(0, 8)),)
    assert planner(servers, peers=peers).better(current, Wish(WHOLE), position=10, remaining=10**6) is None


async def test_the_likely_ones_are_those_of_the_best_chains():
    servers = [
        server("a", 0, 8, queue=2),
        server("b", 0, 4, throughput=FAST),
        server("c", 4, 8, throughput=FAST),
        server("d", 0, 8, queue=9),
        server("e", 0, 2),
    ]
    some = planner(servers)
    assert some.likely(Wish(WHOLE), 1) == ("b", "c")
    assert some.likely(Wish(WHOLE), 2) == ("b", "c", "a")
    assert some.likely(Wish(WHOLE), 9) == ("b", "c", "a", "d")
    assert planner([]).likely(Wish(WHOLE), 2) == ()
