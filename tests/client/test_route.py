from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.client import route
from p2pllm.client.route import Ends, Graph, Hop, Links, Plan, changes, name_blocks, price, worth_moving
from p2pllm.errors import CoverageError
from p2pllm.types import PeerId, Span


@dataclass
class Candidate:
    peer: PeerId
    span: Span
    enter_s: float
    block_s: float
    leave_s: float = 0.0
    undivided: bool = False


def candidate(name: str, start: int, end: int, enter_s=0.1, block_s=0.01, leave_s=0.0) -> Candidate:
    return Candidate(PeerId(name), Span(start, end), enter_s, block_s, leave_s)


def graph_of(candidates, links=()) -> Graph:
    """``links``: (source, target, seconds), by index."""
    ways = Links(
        np.array([a for a, _, _ in links], dtype=np.int64),
        np.array([b for _, b, _ in links], dtype=np.int64),
        np.array([s for _, _, s in links], dtype=np.float64),
    )
    return Graph(
        [c.peer for c in candidates],
        np.array([c.span.start for c in candidates], dtype=np.int64),
        np.array([c.span.end for c in candidates], dtype=np.int64),
        np.array([c.enter_s for c in candidates], dtype=np.float64),
        np.array([c.block_s for c in candidates], dtype=np.float64),
        np.array([c.leave_s for c in candidates], dtype=np.float64),
        ways,
        [i for i, c in enumerate(candidates) if c.undivided],
    )


def shortest_chain(candidates, whole: Span, links=(), ends=None) -> Plan:
    return route.shortest_chain(graph_of(candidates, links), whole, ends)


def way(candidates, links, s: int | None, t: int) -> float:
    """From one server (None: the client) into another."""
    if s is None:
        return candidates[t].enter_s
    direct = min((seconds for a, b, seconds in links if (a, b) == (s, t)), default=math.inf)
    return min(direct, candidates[s].leave_s + candidates[t].enter_s)


def brute_force(candidates, whole: Span, links=()) -> float:
    """The cheapest chain that visits nobody twice, by trying all of them."""

    def walk(border: int, last: int | None, used: frozenset[int]) -> float:
        if border == whole.end:
            assert last is not None
            return candidates[last].leave_s
        best = float("inf")
        for i, c in enumerate(candidates):
            if i in used or border not in c.span:
                continue
            if c.undivided and (border != c.span.start or c.span.end > whole.end):
                continue
            for leave in range(c.span.end if c.undivided else border + 1, min(c.span.end, whole.end) + 1):
                here = way(candidates, links, last, i) + c.block_s * (leave - border)
                best = min(best, here + walk(leave, i, used | {i}))
        return best

    return walk(whole.start, None, frozenset())


def cost_of(plan, candidates, links=()) -> float:
    index = {c.peer: i for i, c in enumerate(candidates)}
    path = [None, *(index[h.peer_id] for h in plan.hops)]
    blocks = sum(candidates[index[h.peer_id]].block_s * len(h.span) for h in plan.hops)
    return blocks + sum(way(candidates, links, s, t) for s, t in pairwise(path)) + candidates[path[-1]].leave_s


def check_valid(plan, candidates, whole: Span, links=()) -> None:
    assert plan.borders[0] == whole.start
    assert plan.borders[-1] == whole.end
    assert all(a.span.end == b.span.start for a, b in pairwise(plan.hops))
    spans = {c.peer: c.span for c in candidates}
    assert all(spans[h.peer_id].covers(h.span) for h in plan.hops)
    assert len({h.peer_id for h in plan.hops}) == len(plan.hops)
    assert plan.cost_s == pytest.approx(cost_of(plan, candidates, links))
    assert len(plan.pushes) == len(plan.hops) - 1


costs = st.floats(0.001, 1.0)
servers = st.builds(
    lambda a, n, enter, block, leave: (a, a + n, enter, block, leave),
    st.integers(0, 6), st.integers(1, 7), costs, costs, st.floats(0, 1.0),
)  # fmt: skip
ways = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.0, 1.0)), max_size=20)


@settings(deadline=None, max_examples=400)
@given(st.lists(servers, min_size=1, max_size=5), ways, st.integers(0, 2), st.integers(3, 7))
def test_equals_brute_force(listed, ways, start, end):
    whole = Span(start, end)
    candidates = [candidate(f"s{i}", *s) for i, s in enumerate(listed)]
    links = [(a, b, s) for a, b, s in ways if a < len(listed) and b < len(listed)]
    missing = tuple(b for b in whole if not any(b in c.span for c in candidates))
    if missing:
        with pytest.raises(CoverageError) as caught:
            shortest_chain(candidates, whole, links)
        assert caught.value.missing == missing
        return
    plan = shortest_chain(candidates, whole, links)
    check_valid(plan, candidates, whole, links)
    assert plan.cost_s == pytest.approx(brute_force(candidates, whole, links))
    assert price(graph_of(candidates, links), plan.hops) == pytest.approx(plan.cost_s)


@settings(deadline=None, max_examples=200)
@given(st.lists(servers, min_size=2, max_size=5), ways, st.integers(1, 7), st.integers(1, 2))
def test_equals_brute_force_where_some_must_not_be_divided(listed, ways, end, undivided):
    candidates = [candidate(f"s{i}", *s) for i, s in enumerate(listed)]
    for c in candidates[:undivided]:
        c.span = Span(min(c.span.start, end - 1), min(c.span.end, end))
        c.undivided = True
    links = [(a, b, s) for a, b, s in ways if a < len(listed) and b < len(listed)]
    expected = brute_force(candidates, Span(0, end), links)
    if math.isinf(expected):
        with pytest.raises(CoverageError):
            shortest_chain(candidates, Span(0, end), links)
        return
    plan = shortest_chain(candidates, Span(0, end), links)
    check_valid(plan, candidates, Span(0, end), links)
    assert plan.cost_s == pytest.approx(expected)
    spans = {c.peer: c.span for c in candidates if c.undivided}
    assert all(spans.get(hop.peer_id, hop.span) == hop.span for hop in plan.hops)


def test_equals_brute_force_where_servers_tempt_to_be_entered_twice():
    rng = random.Random(5)
    for round_ in range(150):
        wide = [candidate(f"w{i}", 0, 7, rng.uniform(0.001, 0.02), rng.uniform(0.2, 0.4)) for i in range(2)]
        narrow = []
        for i in range(4):
            a = rng.randrange(7)
            narrow.append(candidate(f"n{i}", a, min(7, a + rng.randint(1, 3)), 0.001, rng.uniform(0.01, 0.4)))
        both = wide + narrow
        links = [(rng.randrange(6), rng.randrange(6), rng.uniform(0, 0.01)) for _ in range(10 * (round_ % 2))]
        plan = shortest_chain(both, Span(0, 7), links)
        check_valid(plan, both, Span(0, 7), links)
        assert plan.cost_s == pytest.approx(brute_force(both, Span(0, 7), links))


def test_servers_that_are_near_each_other_beat_those_near_us_when_outputs_go_straight():
    near = [candidate("a", 0, 4, 0.03, leave_s=0.02), candidate("b", 4, 8, 0.03, leave_s=0.02)]
    far = [candidate("c", 0, 4, 0.045, leave_s=0.04), candidate("d", 4, 8, 0.045, leave_s=0.04)]
    relayed = shortest_chain(near + far, Span(0, 8))
    assert [hop.peer_id for hop in relayed.hops] == ["a", "b"]
    links = [(2, 3, 0.001), (0, 1, 0.06)]
    straight = shortest_chain(near + far, Span(0, 8), links)
    assert [hop.peer_id for hop in straight.hops] == ["c", "d"]
    assert straight.cost_s == pytest.approx(0.045 + 0.001 + 0.04 + 8 * 0.01)
    assert straight.pushes == (True,)


def test_a_straight_way_that_is_known_to_be_longer_is_not_pushed():
    candidates = [candidate("a", 0, 4, 0.03, leave_s=0.02), candidate("b", 4, 8, 0.03, leave_s=0.02)]
    assert shortest_chain(candidates, Span(0, 8), [(0, 1, 0.06)]).pushes == (False,)
    assert shortest_chain(candidates, Span(0, 8), [(0, 1, 0.04)]).pushes == (True,)
    assert shortest_chain(candidates, Span(0, 8)).pushes == (True,)  # not known: worth a try
    assert shortest_chain(candidates, Span(0, 4)).pushes == ()


def test_a_part_of_a_chain_is_planned_between_its_neighbours():
    candidates = [candidate("a", 0, 4), candidate("b", 0, 4)]
    ends = Ends(np.array([0.2, 0.1]), np.array([0.1, 0.3]))
    plan = shortest_chain(candidates, Span(1, 3), ends=ends)
    assert plan.hops == (Hop(PeerId("a"), Span(1, 3)),)
    assert plan.cost_s == pytest.approx(0.3 + 2 * 0.01)


def test_one_wide_server_beats_two_narrow_ones_when_hops_are_dear():
    candidates = [candidate("a", 0, 4), candidate("b", 4, 8), candidate("c", 0, 8)]
    assert shortest_chain(candidates, Span(0, 8)).hops == (Hop(PeerId("c"), Span(0, 8)),)


def test_a_slow_server_is_left_in_mid_span_and_a_fast_one_entered_in_its_own():
    candidates = [candidate("slow", 0, 6, 0.001, 1.0), candidate("fast", 2, 8, 0.001, 0.1)]
    assert shortest_chain(candidates, Span(0, 8)).hops == (
        Hop(PeerId("slow"), Span(0, 2)),
        Hop(PeerId("fast"), Span(2, 8)),
    )


def test_a_tie_goes_to_the_one_listed_first():
    candidates = [candidate("a", 0, 4), candidate("b", 0, 4)]
    assert shortest_chain(candidates, Span(0, 4)).hops[0].peer_id == "a"
    assert shortest_chain(candidates[::-1], Span(0, 4)).hops[0].peer_id == "b"


def test_part_of_the_model_can_be_planned_alone():
    candidates = [candidate("a", 0, 4), candidate("b", 2, 8)]
    assert shortest_chain(candidates, Span(3, 6)).hops == (Hop(PeerId("b"), Span(3, 6)),)


def test_gaps_are_named():
    candidates = [candidate("a", 0, 2), candidate("b", 3, 5)]
    with pytest.raises(CoverageError, match=r"nobody serves blocks 2 and 5-7 of 8") as caught:
        shortest_chain(candidates, Span(0, 8))
    assert caught.value.missing == (2, 5, 6, 7)
    with pytest.raises(CoverageError, match="nobody serves blocks 0-7 of 8"):
        shortest_chain([], Span(0, 8))


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([3], "block 3"),
        ([3, 4], "blocks 3-4"),
        ([0, 2], "blocks 0 and 2"),
        ([0, 1, 4, 7, 8], "blocks 0-1, 4 and 7-8"),
    ],
)
def test_name_blocks(blocks, text):
    assert name_blocks(blocks) == text


def test_a_chain_whose_server_left_or_moved_has_no_price():
    candidates = [candidate("a", 0, 4), candidate("b", 4, 8)]
    graph = graph_of(candidates)
    hops = (Hop(PeerId("a"), Span(0, 3)), Hop(PeerId("b"), Span(4, 8)))
    assert price(graph, hops) < math.inf
    assert price(graph, (Hop(PeerId("a"), Span(0, 5)), hops[1])) == math.inf
    assert price(graph, (hops[0], Hop(PeerId("c"), Span(4, 8)))) == math.inf


@pytest.mark.parametrize(
    ("now_s", "then_s", "remaining", "replay_s", "worth"),
    [
        (1.0, 0.5, 100, 1.0, True),
        (1.0, 0.5, 4, 1.0, True),  # wins back exactly twice the replay
        (1.0, 0.5, 3, 1.0, False),
        (1.0, 0.81, 10_000, 1.0, False),  # too little to be sure of
        (1.0, 0.79, 10_000, 1.0, True),
        (1.0, 1.0, 10_000, 0.0, False),
        (1.0, 2.0, 10_000, 0.0, False),
        (0.0, 0.0, 10_000, 0.0, False),
        (math.inf, 1.0, 1, 60.0, True),  # the chain is about to end anyway
        (math.inf, 1.0, 0, 60.0, False),
        (math.inf, math.inf, 100, 1.0, False),
    ],
)
def test_worth_moving(now_s, then_s, remaining, replay_s, worth):
    assert worth_moving(Plan((), now_s), Plan((), then_s), remaining, replay_s) is worth


@given(st.floats(0.001, 10), st.floats(0.001, 10), st.integers(0, 1000), st.floats(0, 100))
def test_a_session_that_moved_does_not_move_back(a, b, remaining, replay_s):
    if worth_moving(Plan((), a), Plan((), b), remaining, replay_s):
        assert not worth_moving(Plan((), b), Plan((), a), 10**9, 0.0)


def hops(*parts: tuple[str, int]) -> tuple[Hop, ...]:
    """(peer, end) one after the other from block 0."""
    ends = [0, *(end for _, end in parts)]
    return tuple(Hop(PeerId(name), Span(a, b)) for (name, _), (a, b) in zip(parts, pairwise(ends), strict=True))


@pytest.mark.parametrize(
    ("now", "then", "expected"),
    [
        (hops(("a", 4), ("b", 8)), hops(("a", 4), ("b", 8)), []),
        (hops(("a", 4), ("b", 8)), hops(("a", 4), ("c", 8)), [(1, 2, 1)]),
        (hops(("a", 4), ("b", 8)), hops(("c", 8)), [(0, 2, 1)]),
        (hops(("a", 8)), hops(("b", 2), ("c", 5), ("d", 8)), [(0, 1, 3)]),
        (hops(("a", 3), ("b", 6), ("c", 8)), hops(("d", 4), ("e", 6), ("f", 8)), [(0, 2, 2), (2, 3, 1)]),
        (hops(("a", 3), ("b", 6), ("c", 8)), hops(("d", 3), ("b", 6), ("f", 8)), [(0, 1, 1), (2, 3, 1)]),
    ],
)
def test_changes_between_chains(now, then, expected):
    found = changes(now, then)
    assert [(first, stop, len(new)) for first, stop, new in found] == expected
    result = list(now)
    for first, stop, new in reversed(found):
        result[first:stop] = new
    assert tuple(result) == then


def test_a_large_swarm_is_planned_in_milliseconds():
    rng = random.Random(1)
    candidates = []
    for i in range(1000):
        start = rng.randrange(126)
        end = min(126, start + rng.randint(2, 30))
        rtt_s = rng.uniform(0.01, 0.3)
        candidates.append(candidate(f"s{i}", start, end, rtt_s / 2, rng.uniform(0.001, 0.02), rtt_s / 2))
    candidates += [candidate("first", 0, 4), candidate("last", 120, 126)]
    links = [(s, rng.randrange(1002), rng.uniform(0.001, 0.1)) for s in range(1000) for _ in range(12)]
    graph = graph_of(candidates, links)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        plan = route.shortest_chain(graph, Span(0, 126))
        took.append(time.perf_counter() - began)
    check_valid(plan, candidates, Span(0, 126), links)
    print(f"1,002 servers x 126 blocks: {min(took) * 1e3:.2f} ms")
    assert min(took) < 0.05, "the goal is 10 ms; five times that still passes on a machine with much else to do"
