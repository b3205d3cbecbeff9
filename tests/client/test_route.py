from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.client.route import Candidate, Hop, name_blocks, shortest_chain, uncovered
from p2pllm.errors import CoverageError
from p2pllm.types import PeerId, Span


def candidate(name: str, start: int, end: int, enter_s: float = 0.1, block_s: float = 0.01) -> Candidate:
    return Candidate(PeerId(name), Span(start, end), enter_s, block_s)


def brute_force(candidates, whole: Span) -> float:
    """The cheapest chain that visits nobody twice, by trying all of them."""

    def walk(border: int, used: frozenset[int]) -> float:
        if border == whole.end:
            return 0.0
        best = float("inf")
        for i, c in enumerate(candidates):
            if i in used or border not in c.span:
                continue
            for leave in range(border + 1, min(c.span.end, whole.end) + 1):
                here = c.enter_s + c.block_s * (leave - border)
                best = min(best, here + walk(leave, used | {i}))
        return best

    return walk(whole.start, frozenset())


def cost_of(plan, candidates) -> float:
    by_peer = {c.peer: c for c in candidates}
    return sum(by_peer[h.peer_id].enter_s + by_peer[h.peer_id].block_s * len(h.span) for h in plan.hops)


def check_valid(plan, candidates, whole: Span) -> None:
    assert plan.borders[0] == whole.start
    assert plan.borders[-1] == whole.end
    assert all(a.span.end == b.span.start for a, b in pairwise(plan.hops))
    spans = {c.peer: c.span for c in candidates}
    assert all(spans[h.peer_id].covers(h.span) for h in plan.hops)
    assert len({h.peer_id for h in plan.hops}) == len(plan.hops)
    assert plan.cost_s == pytest.approx(cost_of(plan, candidates))


costs = st.floats(0.001, 1.0)
servers = st.builds(
    lambda a, n, enter, block: (a, a + n, enter, block), st.integers(0, 6), st.integers(1, 7), costs, costs
)


@settings(deadline=None, max_examples=300)
@given(st.lists(servers, min_size=1, max_size=5), st.integers(0, 2), st.integers(3, 7))
def test_equals_brute_force(listed, start, end):
    whole = Span(start, end)
    candidates = [candidate(f"s{i}", *s) for i, s in enumerate(listed)]
    missing = uncovered((c.span for c in candidates), whole)
    if missing:
        with pytest.raises(CoverageError) as caught:
            shortest_chain(candidates, whole)
        assert caught.value.missing == missing
        return
    plan = shortest_chain(candidates, whole)
    check_valid(plan, candidates, whole)
    assert plan.cost_s == pytest.approx(brute_force(candidates, whole))


def test_equals_brute_force_where_servers_tempt_to_be_entered_twice():
    rng = random.Random(5)
    for _ in range(150):
        wide = [candidate(f"w{i}", 0, 7, rng.uniform(0.001, 0.02), rng.uniform(0.2, 0.4)) for i in range(2)]
        narrow = []
        for i in range(4):
            a = rng.randrange(7)
            narrow.append(candidate(f"n{i}", a, min(7, a + rng.randint(1, 3)), 0.001, rng.uniform(0.01, 0.4)))
        plan = shortest_chain(wide + narrow, Span(0, 7))
        check_valid(plan, wide + narrow, Span(0, 7))
        assert plan.cost_s == pytest.approx(brute_force(wide + narrow, Span(0, 7)))


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


def test_a_large_swarm_is_planned_in_milliseconds():
    rng = random.Random(1)
    candidates = []
    for i in range(1000):
        start = rng.randrange(126)
        end = min(126, start + rng.randint(2, 30))
        candidates.append(candidate(f"s{i}", start, end, rng.uniform(0.01, 0.3), rng.uniform(0.001, 0.02)))
    candidates += [candidate("first", 0, 4), candidate("last", 120, 126)]
    took = []
    for _ in range(5):
        began = time.perf_counter()
        plan = shortest_chain(candidates, Span(0, 126))
        took.append(time.perf_counter() - began)
    check_valid(plan, candidates, Span(0, 126))
    print(f"1,002 servers x 126 blocks: {min(took) * 1e3:.2f} ms")
    assert min(took) < 0.05, "the goal is 10 ms; five times that still passes on a machine with much else to do"
