"""Swarm time: the median of clocks, one vote each, acquaintances before strangers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.dht.swarmtime import PEERS_MAX, SwarmTime
from p2pllm.types import PeerId


def peer(number) -> PeerId:
    return PeerId(f"peer{number}")


def test_alone_our_own_clock_is_right():
    assert SwarmTime().offset_s() == 0.0


def test_a_majority_decides_and_repeating_oneself_does_not_help():
    time = SwarmTime()
    for number, offset in enumerate([100.0, 101.0, 99.0]):
        time.note(peer(number), offset, False)
    for _ in range(50):
        time.note(peer(9), -5000.0, False)
    assert 0.0 <= time.offset_s() <= 100.0


def test_strangers_do_not_outvote_those_we_met():
    time = SwarmTime()
    for number in range(3):
        time.note(peer(number), 2.0, False)
        time.mark_reached(peer(number))
    for number in range(100, 1000):
        time.note(peer(number), 9999.0, False)
    assert time.offset_s() == 2.0
    assert len(time._strangers) == PEERS_MAX


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20), st.lists(st.floats(-1e9, 1e9), max_size=2))
def test_a_minority_of_wrong_clocks_cannot_leave_the_range_of_the_right_ones(right, wrong):
    time = SwarmTime()
    for number, offset in enumerate([*right, *wrong]):
        time.note(peer(number), offset, True)
    assert min([0.0, *right]) <= time.offset_s() <= max([0.0, *right])
