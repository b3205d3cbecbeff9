"""sim.draws: quantiles whose means are what they say, and sequences that look uniform."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.draws import Constant, Draws, LogNormal, Normal, Pareto, Uniform, draw_of

ALL = (Constant(3.0), Uniform(1.0, 5.0), Normal(10.0, 2.0), LogNormal(2.0, 0.5), Pareto(1.0, 3.0))


@pytest.mark.parametrize("draw", ALL, ids=repr)
def test_the_mean_of_many_draws_is_the_mean(draw):
    draws = Draws(7)
    values = [draw.at(draws.next()) for _ in range(50_000)]
    assert sum(values) / len(values) == pytest.approx(draw.mean, rel=0.02)


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.sampled_from(ALL))
def test_quantiles_rise(one, two, draw):
    low, high = sorted((one, two))
    assert draw.at(low) <= draw.at(high)


def test_sequences_are_uniform_and_follow_from_their_seed():
    one, same, other = Draws(1), Draws(1), Draws(2)
    values = [one.next() for _ in range(10_000)]
    assert values == [same.next() for _ in range(10_000)]
    assert values[:3] != [other.next() for _ in range(3)]
    assert all(0 <= value < 1 for value in values)
    tenths = [sum(k <= 10 * value < k + 1 for value in values) for k in range(10)]
    assert min(tenths) > 850
    assert max(tenths) < 1150


def test_a_number_stands_for_itself():
    assert draw_of(0.5) == Constant(0.5)
    assert draw_of(Uniform(1, 2)) == Uniform(1, 2)
