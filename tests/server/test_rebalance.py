"""Moving servers: one at a time, never to anybody's loss, and not for ever."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.server.placement import block_throughputs
from p2pllm.server.rebalance import UNITS, Move, Placed, balance, next_move, settle, should_move
from p2pllm.types import PeerId, Span

BLOCKS = 12


def placed(name: str, start: int, end: int, throughput: float = 1.0, online: bool = True) -> Placed:
    return Placed(PeerId(name), Span(start, end), throughput, online)


def strengths(servers, num_blocks=BLOCKS):
    """As the policy counts: a server that was never measured is worth next to nothing, not nothing."""
    least = (max((server.throughput for server in servers), default=0.0) or 1.0) / UNITS
    return block_throughputs([(server.span, max(server.throughput, least)) for server in servers], num_blocks)


def served(servers, num_blocks=BLOCKS):
    return {block for server in servers if server.online for block in server.span if block < num_blocks}


def moved(servers, move):
    return [replace(server, span=move.span) if server.peer == move.peer else server for server in servers]


@st.composite
def swarms(draw, num_blocks=BLOCKS):
    servers = []
    for number in range(draw(st.integers(1, 14))):
        length = draw(st.integers(1, num_blocks))
        start = draw(st.integers(0, num_blocks - length))
        speed = draw(st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.7, 4.0]))
        servers.append(placed(f"s{number:02d}", start, start + length, speed, draw(st.integers(0, 4)) > 0))
    return draw(st.permutations(servers))


@given(swarms(), st.floats(0.5, 1.0))
def test_no_move_opens_a_gap_or_lowers_the_minimum_even_while_it_loads(servers, quality):
    move = next_move(servers, BLOCKS, quality)
    if move is None:
        return
    mover = next(server for server in servers if server.peer == move.peer)
    assert mover.online
    assert len(move.span) == len(mover.span)
    assert move.span.end <= BLOCKS
    before, after = strengths(servers), strengths(moved(servers, move))
    assert sorted(after) > sorted(before)
    assert min(after) >= min(before)
    kept = Span(max(mover.span.start, move.span.start), min(mover.span.end, move.span.end)) if any(
        block in move.span for block in mover.span
    ) else None  # fmt: skip
    others = [server for server in servers if server is not mover]
    loading = [*others, *([replace(mover, span=kept)] if kept else [])]
    assert served(loading) == served(servers)
    assert min(strengths(loading)) >= min(before) - 1e-6


@given(swarms(), st.floats(0.5, 1.0), st.randoms(use_true_random=False))
def test_of_all_that_see_the_same_swarm_at_most_one_moves(servers, quality, rng):
    movers = []
    for server in servers:
        rng.shuffle(servers := list(servers))
        span = should_move(server.peer, servers, BLOCKS, quality)
        if span is not None:
            movers.append(Move(server.peer, span))
    assert len(movers) <= 1
    assert movers == ([move] if (move := next_move(servers, BLOCKS, quality)) else [])


@given(swarms())
@settings(max_examples=50)
def test_moving_ends_and_ends_where_nobody_gains_much(servers):
    seen = set()
    for _ in range(500):
        move = next_move(servers, BLOCKS, 0.99)
        if move is None:
            break
        servers = moved(servers, move)
        state = tuple(sorted((server.peer, server.span) for server in servers))
        assert state not in seen
        seen.add(state)
    else:
        raise AssertionError("they move for ever")


@given(swarms())
@settings(max_examples=50)
def test_settling_never_lowers_the_minimum_and_is_settled(servers):
    spans = settle(servers, BLOCKS)
    after = [replace(server, span=span) for server, span in zip(servers, spans, strict=True)]
    assert sorted(map(len, spans)) == sorted(len(server.span) for server in servers)
    assert sorted(strengths(after)) >= sorted(strengths(servers)) or min(strengths(after)) == 0
    assert settle(after, BLOCKS) == spans
    state = balance(servers, BLOCKS)
    assert state.weakest <= state.settled <= state.even + 1e-9


def test_a_gap_is_closed_by_the_one_who_can_be_spared():
    servers = [placed("a", 0, 6), placed("b", 0, 6), placed("c", 3, 9)]
    move = next_move(servers, BLOCKS, 0.9)
    assert move is not None
    assert move.span == Span(6, 12)
    assert min(strengths(moved(servers, move))) == 1
    assert next_move(moved(servers, move), BLOCKS, 0.6) is None


def test_the_only_holder_stays_and_who_loads_holds_nothing():
    assert next_move([placed("a", 0, 6)], BLOCKS, 0.9) is None
    assert next_move([placed("a", 0, 6), placed("b", 0, 6, online=False)], BLOCKS, 0.9) is None
    assert next_move([placed("a", 0, 6), placed("b", 0, 6)], BLOCKS, 0.9) is not None


def test_a_small_gain_is_not_worth_a_move():
    servers = [placed(f"s{i}", 0, 6, 1.0) for i in range(10)] + [placed(f"t{i}", 6, 12, 0.95) for i in range(10)]
    assert next_move(servers, BLOCKS, 0.75) is None


@pytest.mark.parametrize("servers", [[], [placed("a", 20, 30)], [placed("a", 0, 3, 0.0), placed("b", 5, 30, 0.0)]])
def test_odd_swarms_do_no_harm(servers):
    next_move(servers, BLOCKS, 0.9)
    assert len(settle(servers, BLOCKS)) == len(servers)
    assert should_move(PeerId("nobody"), servers, BLOCKS, 0.9) is None


def test_two_hundred_servers_settle_within_milliseconds():
    rng = random.Random(7)
    servers = []
    for number in range(200):
        length = min(24, round(2 * 12 ** rng.random()))
        start = rng.randrange(81 - length)
        servers.append(placed(f"{number:03d}", start, start + length, rng.lognormvariate(0, 0.75)))
    began = time.process_time()
    state = balance(servers, 80)
    took_s = time.process_time() - began
    assert state.settled > 0.97 * state.even
    assert state.weakest < 0.5 * state.even
    assert took_s < 0.5, "about 20 ms on an idle core"
