"""Picking by chance, against plain sets."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.dht.roster import Roster
from p2pllm.types import PeerId

PEERS = [PeerId(f"p{number}") for number in range(120)]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(PEERS))), st.integers(0, 9), st.integers(1, 5))
def test_it_is_a_set_and_picks_different_fine_members(script, count, divisor):
    roster, plain = Roster(), set()
    for adds, peer in script:
        (roster.add if adds else roster.discard)(peer)
        (plain.add if adds else plain.discard)(peer)
    assert set(roster) == plain
    assert len(roster) == len(plain)
    assert all((peer in roster) == (peer in plain) for peer in PEERS)
    fine = {peer for peer in plain if int(peer[1:]) % divisor == 0}
    picked = roster.pick(random.Random(1), count, lambda peer: peer in fine)
    assert len(picked) == len(set(picked)) == min(count, len(fine))
    assert set(picked) <= fine


def test_a_pick_from_many_looks_at_few():
    roster = Roster()
    for number in range(100_000):
        roster.add(PeerId(str(number)))
    looked = []
    picked = roster.pick(random.Random(2), 3, lambda peer: looked.append(peer) or True)
    assert len(picked) == 3
    assert len(looked) < 10


def test_everybody_is_picked_some_time():
    roster, rng = Roster(), random.Random(3)
    for peer in PEERS:
        roster.add(peer)
    assert {roster.pick(rng, 1, lambda _: True)[0] for _ in range(2000)} == set(PEERS)
