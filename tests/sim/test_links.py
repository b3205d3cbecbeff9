"""sim.links: delays follow from the seed and the two names, whatever other pairs do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.draws import LogNormal, Uniform
from sim.links import Access, Links, Pair, losses_in_a_row, retransmission_s, wire_bytes
from sim.matrix import Matrix


def test_latencies_add_up():
    links = Links(latency_s=0.010)
    links.set_access("a", Access(latency_s=0.002))
    links.set_access("b", Access(latency_s=0.003))
    assert links.latency("a", "b") == pytest.approx(0.015)
    links.set_latency("a", "b", 0.1)
    assert links.latency("b", "a") == pytest.approx(0.105)
    links.set_pair("b", "a", Pair(latency_s=0.2))
    assert (links.latency("a", "b"), links.latency("b", "a")) == pytest.approx((0.105, 0.205))


def test_a_matrix_goes_by_region_and_leaves_strangers_to_the_default():
    links = Links(latency_s=0.010)
    links.set_matrix(Matrix(("x", "y"), {("x", "y"): 0.05, ("y", "x"): 0.06, ("x", "x"): 0.001}), lambda name: name[0])
    assert links.latency("x1", "y1") == 0.05
    assert links.latency("y1", "x2") == 0.06
    assert links.latency("x1", "x2") == 0.001
    assert links.latency("x1", "z1") == 0.010


def test_a_distribution_of_latencies_is_drawn_from_once_for_each_pair():
    links, same = Links(3, Uniform(0.01, 0.09)), Links(3, Uniform(0.01, 0.09))
    names = [f"h{number}" for number in range(30)]
    pairs = [(a, b) for a in names for b in names if a < b]
    seen = [links.latency(a, b) for a, b in pairs]
    assert seen == [links.latency(b, a) for a, b in pairs]
    assert seen[::-1] == [same.latency(a, b) for a, b in reversed(pairs)]
    assert len(set(seen)) == len(seen)
    assert sum(seen) / len(seen) == pytest.approx(0.05, rel=0.1)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=40))
def test_draws_of_a_pair_do_not_depend_on_other_pairs(others):
    alone, crowded = (Links(5) for _ in range(2))
    for links in (alone, crowded):
        links.set_default(jitter_s=LogNormal(0.01, 1.0), loss=0.05)
    expected = [alone.delay("x", "y", 9000) for _ in range(20)]
    seen = []
    for step in range(20):
        for other in others[step * 2 : step * 2 + 2]:
            crowded.delay(other, "x", 100)
            crowded.delay("y", "x", 100)
        seen.append(crowded.delay("x", "y", 9000))
    assert seen == expected


def test_jitter_and_loss_add_what_they_say():
    links = Links(latency_s=0.02)
    links.set_default(jitter_s=0.01)
    delays = [links.delay("a", "b", 1000) for _ in range(5000)]
    assert min(delays) >= 0.02
    assert max(delays) < 0.03
    assert sum(delays) / 5000 == pytest.approx(0.025, rel=0.01)
    links.set_default(loss=0.01)
    journeys = [links.journey("a", "b", 1000) for _ in range(20_000)]
    assert sum(losses > 0 for _, losses in journeys) / 20_000 == pytest.approx(0.01, rel=0.2)
    assert {delay for delay, losses in journeys if losses == 1} == {0.06}  # one round trip more
    assert links.loss("a", "b") == pytest.approx(0.01)


@given(st.floats(0, 1, exclude_max=True), st.floats(0.0001, 0.5), st.integers(1, 100))
def test_the_unluckiest_packet_follows_the_law(u, loss, packets):
    losses = losses_in_a_row(loss, packets, u)
    assert (1 - loss ** (losses + 1)) ** packets > u
    assert losses == 0 or (1 - loss**losses) ** packets <= u


def test_each_further_loss_waits_twice_as_long():
    assert [retransmission_s(losses, 0.05) for losses in range(4)] == pytest.approx([0, 0.05, 0.25, 0.65])


def test_accesses_by_a_rule_and_one_by_one():
    links = Links()
    links.set_accesses(lambda name: Access(latency_s=0.001 * len(name)))
    links.set_access("b", Access(latency_s=0.5))
    assert links.access("abc").latency_s == 0.003
    links.set_accesses(lambda name: Access())
    assert (links.access("abc").latency_s, links.access("b").latency_s) == (0.0, 0.5)


def test_headers_count():
    assert wire_bytes(0) == 0
    assert wire_bytes(1) == 67
    assert wire_bytes(1448 * 3) == 1514 * 3
    links = Links()
    assert links.carried(1448) == 1514
    links.packet_headers = False
    assert links.carried(1448) == 1448
