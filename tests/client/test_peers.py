from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.client.peers import Peers
from p2pllm.config import ClientConfig
from p2pllm.types import PeerId

A, B = PeerId("a"), PeerId("b")
CONFIG = replace(ClientConfig(), ban_s=5.0, ban_max_s=60.0, ban_heal_s=100.0, peers_max=3)


def test_measurements_are_smoothed_and_split_into_way_and_compute():
    peers = Peers(CONFIG)
    assert peers.hop_s(A) is None
    peers.answered(A, wall_s=0.15, compute_s=0.05, blocks=5, now=0.0)
    assert peers.hop_s(A) == pytest.approx(0.1)
    assert peers.block_s(A) == pytest.approx(0.01)
    peers.answered(A, wall_s=0.65, compute_s=0.05, blocks=5, now=0.0)
    assert peers.hop_s(A) == pytest.approx(0.2)
    peers.answered(A, wall_s=0.0, compute_s=1.0, blocks=5, now=0.0)  # a server that claims more than the wall shows
    assert peers.hop_s(A) == pytest.approx(0.16)


def test_old_measurements_are_not_believed():
    peers = Peers(CONFIG)
    peers.answered(A, wall_s=0.3, compute_s=0.1, blocks=1, now=0.0)
    peers.pinged(A, 0.05, 0.0)
    assert peers.measured(A, 600.0) == (pytest.approx(0.2), 0.1, 0.05)
    assert peers.measured(A, 601.0) == (None, None, 0.05)
    peers.answered(A, wall_s=9.1, compute_s=0.1, blocks=1, now=700.0)
    assert peers.measured(A, 700.0) == (9.0, 0.1, 0.05)  # begun anew, not smoothed with what was
    assert peers.measured(B, 0.0) == (None, None, None)


def test_a_step_that_somebody_else_sent_tells_of_compute_alone():
    peers = Peers(CONFIG)
    peers.computed(A, compute_s=0.5, blocks=5, now=0.0)
    assert peers.measured(A, 0.0) == (None, pytest.approx(0.1), None)


def test_who_is_banned():
    peers = Peers(CONFIG)
    peers.failed(A, 0.0)
    peers.busy(B, 2.0, 0.0)
    assert peers.banned_peers(1.0) == (A, B)
    assert peers.banned_peers(3.0) == (A,)
    assert peers.banned_peers(5.0) == ()


def test_pings_are_smoothed_and_dated():
    peers = Peers(CONFIG)
    assert peers.rtt_s(A) is None
    assert peers.pinged_at(A) == float("-inf")
    peers.pinged(A, 0.1, 5.0)
    peers.pinged(A, 0.2, 6.0)
    assert peers.rtt_s(A) == pytest.approx(0.15)
    assert peers.pinged_at(A) == 6.0
    assert peers.statistics(6.0)[0].rtt_s == peers.rtt_s(A)


def test_a_failure_makes_patient_again():
    peers = Peers(CONFIG)
    assert peers.step_timeout_s(A, 1.0) == CONFIG.step_timeout_s
    for _ in range(5):
        peers.took(A, 1.0, 0.1, 2.0)
    assert peers.step_timeout_s(A, 1.0) == CONFIG.step_timeout_min_s
    assert (peers.answered_at(A), peers.answered_at(B)) == (2.0, float("-inf"))
    peers.failed(A, 0.0)
    assert peers.step_timeout_s(A, 1.0) == CONFIG.step_timeout_s


def test_each_failure_doubles_the_ban_up_to_the_cap():
    peers, now, lengths = Peers(CONFIG), 0.0, []
    for _ in range(6):
        until = peers.failed(A, now)
        lengths.append(until - now)
        assert peers.banned(A, now)
        assert peers.banned(A, until - 1e-6)
        assert not peers.banned(A, until)
        now = until
    assert lengths == [5, 10, 20, 40, 60, 60]
    assert not peers.banned(B, 0.0)


def test_failures_met_during_a_ban_are_one_event():
    peers = Peers(CONFIG)
    until = peers.failed(A, 0.0)
    assert peers.failed(A, 1.0) == until
    assert peers.statistics(1.0)[0].failures == 1


def test_quiet_time_heals():
    peers = Peers(CONFIG)
    for now in (0.0, 5.0, 15.0):
        until = peers.failed(A, now)
    assert until == 35.0
    assert peers.statistics(35.0)[0].failures == 3
    assert peers.statistics(35.0 + 250.0)[0].failures == 1
    assert peers.failed(A, 35.0 + 250.0) == 35.0 + 250.0 + 10.0
    assert peers.failed(A, 5000.0) == 5005.0


def test_busy_is_no_failure():
    peers = Peers(CONFIG)
    peers.busy(A, 2.0, 0.0)
    assert peers.banned(A, 1.9)
    assert not peers.banned(A, 2.0)
    assert peers.statistics(0.0)[0].failures == 0
    assert peers.failed(A, 3.0) == 8.0
    peers.busy(A, 1.0, 4.0)  # never shortens a ban
    assert peers.banned(A, 7.9)


def test_next_release_is_the_first_ban_to_end():
    peers = Peers(CONFIG)
    assert peers.next_release(0.0) is None
    peers.failed(A, 0.0)
    peers.busy(B, 2.0, 0.0)
    assert peers.next_release(0.0) == 2.0
    assert peers.next_release(2.0) == 5.0
    assert peers.next_release(5.0) is None


def test_memory_is_bounded_and_forgets_the_longest_unheard_of():
    peers = Peers(CONFIG)
    for name in "abcabd":
        peers.answered(PeerId(name), wall_s=1.0, compute_s=0.0, blocks=1, now=0.0)
    assert [s.peer for s in peers.statistics(0.0)] == ["a", "b", "d"]


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=40))
def test_every_ban_ends_within_the_cap(events):
    peers, now = Peers(CONFIG), 0.0
    for wait, fails in events:
        now += wait
        if fails:
            assert now < peers.failed(A, now) <= now + CONFIG.ban_max_s
        else:
            peers.busy(A, min(wait, 60.0), now)
        assert not peers.banned(A, now + CONFIG.ban_max_s + 60.0)


def test_who_does_not_answer_pings_is_left_alone_until_it_does():
    peers = Peers(CONFIG)
    assert not peers.doubted(A)
    peers.failed(A, 0.0)
    assert peers.doubted(A)
    peers.unanswered(A, 30.0, 4.0)
    assert peers.banned_peers(33.0) == (A,)  # longer than its failure deserves
    assert peers.next_release(33.0) == 34.0
    assert peers.statistics(33.0)[0].banned_s == 1.0
    peers.pinged(A, 0.1, 33.0)
    assert not peers.banned(A, 33.0)
    assert not peers.doubted(A)
    assert peers.statistics(33.0)[0].failures == 1


def test_a_ping_does_not_excuse_a_failure():
    peers = Peers(CONFIG)
    until = peers.failed(A, 0.0)
    peers.pinged(A, 0.1, 1.0)
    assert peers.banned(A, until - 0.1)
    assert not peers.banned(A, until)


def test_who_failed_gets_more_time_to_connect():
    peers = Peers(CONFIG)
    first = CONFIG.connect_timeout_s
    assert peers.connect_timeout_s(A, 0.0) == first
    until = peers.failed(A, 0.0)
    assert peers.connect_timeout_s(A, until) == 2 * first
    assert peers.connect_timeout_s(A, until + CONFIG.ban_heal_s) == first
