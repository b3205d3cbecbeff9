"""Token buckets: bursts, refill, bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.dht.budget import PEERS_MAX, Budget
from p2pllm.types import PeerId

P, Q = PeerId("p"), PeerId("q")


def test_a_burst_then_the_rate():
    budget = Budget(2.0, 4.0)
    assert [budget.take(P, 1, 0.0) for _ in range(4)] == [0.0] * 4
    assert budget.take(P, 1, 0.0) == pytest.approx(0.5)
    assert budget.take(Q, 1, 0.0) == 0.0
    assert budget.take(P, 1, 0.5) == 0.0
    assert budget.take(P, 1, 0.5) > 0
    assert budget.take(P, 100, 10.0) == 0.0  # more than a burst costs a burst


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 20)), min_size=1))
def test_nobody_gets_more_than_burst_and_rate_allow(requests):
    budget, now, got = Budget(3.0, 10.0), 0.0, 0.0
    for pause, units in requests:
        now += pause
        if budget.take(P, units, now) == 0.0:
            got += min(units, 10.0)
    assert got <= 10.0 + 3.0 * now + 1e-6


def test_memory_is_bounded():
    budget = Budget(1.0, 1.0)
    for number in range(PEERS_MAX + 100):
        budget.take(PeerId(f"p{number}"), 1, 0.0)
    assert len(budget._left) == PEERS_MAX
