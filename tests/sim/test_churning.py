"""The events of servers that come, move and die, by hand-made swarms and by what must hold in any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.churning import Play, Setting, play, population

SMALL = Setting(servers=30, blocks=20, size_max=8, seconds=900.0, life_s=600.0)


def test_a_population_is_as_large_and_as_mixed_as_it_says():
    people = population(Setting(), 1)
    assert sum(one.born_s == 0 for one in people) == 200
    assert 300 < len(people) - 200 < 500  # 200 servers of half an hour, for an hour
    assert {one.size for one in people} >= set(range(2, 25))
    lives = [one.dies_s - one.born_s for one in people]
    assert 1500 < sum(lives) / len(lives) < 2100


@given(seed=st.integers(0, 50), policy=st.sampled_from(["none", "joiners", "full", "bound"]))
@settings(max_examples=15, deadline=None)
def test_whatever_the_policy_servers_keep_their_size_and_stay_inside(seed, policy):
    one = Play(SMALL, policy, seed)
    played = one.run()
    assert all(weakest >= 0 for weakest in played.weakest)
    assert played.times_s == sorted(played.times_s)
    for server in one._alive.values():
        assert server.span is not None
        assert (server.span.end <= 20, len(server.span)) == (True, server.size)


def test_the_same_seed_gives_the_same_play():
    assert play(SMALL, "full", 3) == play(SMALL, "full", 3)
    assert play(SMALL, "full", 3) != play(SMALL, "full", 4)


def test_nobody_moves_but_where_moving_is_allowed():
    for policy in ("none", "joiners", "bound"):
        assert play(SMALL, policy, 0).moves == 0
    eager = replace(SMALL, quality=1.0)
    moved = play(eager, "full", 0)
    assert moved.moves > 0
    assert moved.read_blocks > 0


def test_balancing_beats_chance():
    none, joiners, bound = (play(SMALL, policy, 0).mean(900.0) for policy in ("none", "joiners", "bound"))
    assert none < 0.7 * joiners
    assert joiners < bound


def test_only_moves_mend_a_hole_that_no_newcomer_fills():
    """All holders of a block crash, and nobody new comes: the others have to."""
    setting = replace(SMALL, replaced=0.0, life_s=1e9, strike_s=300.0)
    assert play(setting, "joiners", 0).healed_s is None
    healed = play(setting, "full", 0).healed_s
    assert healed is not None
    # The dead are believed for up to 75 s, a round takes 10, and up to 8 blocks of 3 s are loaded.
    assert healed < 75 + 10 + 5 + 8 * 3 + 10


@pytest.mark.parametrize(("weakest", "mean", "served"), [([0.0, 4.0], 2.0, 0.5), ([3.0, 1.0], 2.0, 1.0)])
def test_means_are_over_time(weakest, mean, served):
    played = play(replace(SMALL, seconds=60.0), "none", 0)
    played.times_s, played.weakest = [0.0, 50.0], weakest
    assert (played.mean(100.0), played.served(100.0)) == (mean, served)
