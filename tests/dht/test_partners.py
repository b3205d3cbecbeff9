"""Whom to ask: steady partners, rest for those that fail, nobody left out for ever."""

from __future__ import annotations

import random

from p2pllm.config import RecordConfig
from p2pllm.dht.partners import LIE_PAUSE_S, MET_MAX, PARTNERS, TRIES_MAX, Partners
from p2pllm.dht.view import SwarmView
from p2pllm.types import PeerId
from sim.network import EPOCH_S
from tests.dht.swarm import MODEL, peer, record

ME = peer("me")


def world(*names, reached=True):
    view = SwarmView(RecordConfig(), (MODEL,), me=ME)
    for name in names:
        view.merge(record(name), 0.0, EPOCH_S)
        if reached:
            view.mark_reached(peer(name))
    return view, Partners(ME, random.Random(1))


def test_partners_are_few_and_steady():
    view, partners = world(*"abcdefgh")
    asked = []
    for _ in range(9):
        first = partners.next_round(view, 0.0)[0]
        asked.append(first)
        partners.answered(first)
    assert len(set(asked)) == PARTNERS
    for _ in range(200):
        first = partners.next_round(view, 0.0)[0]
        asked.append(first)
        partners.answered(first)
    assert len(set(asked)) > PARTNERS


def test_who_fails_rests_longer_and_longer():
    view, partners = world("a")
    now, pauses = 0.0, []
    for _ in range(6):
        partners.failed(peer("a"), now)
        rest = next(
            t for t in range(1000) if partners.stranger(view, now) is None and partners._fine(peer("a"), now + t)
        )
        pauses.append(rest)
        now += rest
    assert pauses == sorted(pauses)
    assert pauses[0] <= 5
    assert pauses[-1] <= 300
    partners.answered(peer("a"))
    assert partners._fine(peer("a"), now)


def test_a_liar_rests_longest_and_is_not_forgiven_for_our_own_outage():
    view, partners = world("a", "b")
    partners.lied(peer("a"), 0.0)
    partners.failed(peer("b"), 0.0)
    partners.forgive()
    partners.met(peer("a"))
    assert partners.next_round(view, 1.0) == [peer("b")]
    assert peer("a") in partners.next_round(view, LIE_PAUSE_S + 1)


def test_when_everybody_rests_some_are_disturbed_but_no_liar():
    view, partners = world("a", "b", "c")
    for name in "abc":
        partners.failed(peer(name), 0.0)
    partners.lied(peer("c"), 0.0)
    assert set(partners.next_round(view, 1.0)) == {peer("a"), peer("b")}


def test_never_ourselves_and_never_too_many():
    view, partners = world("me", *[f"s{i}" for i in range(20)])
    for count in (1, 4, 100):
        chosen = partners.choose(view, count, 0.0)
        assert ME not in chosen
        assert len(chosen) == len(set(chosen)) <= count
    assert ME not in partners.next_round(view, 0.0)
    assert len(partners.next_round(view, 0.0)) == TRIES_MAX


def test_news_always_reach_a_member_that_is_no_server():
    view, partners = world(*[f"s{i}" for i in range(20)])
    partners.met(peer("bootstrap"))
    for _ in range(10):
        assert peer("bootstrap") in partners.choose(view, 3, 0.0)


def test_strangers_are_those_that_nobody_reached():
    view, partners = world("a", "b", reached=False)
    view.mark_reached(peer("a"))
    assert partners.stranger(view, 0.0) == peer("b")
    view.mark_reached(peer("b"))
    assert partners.stranger(view, 0.0) is None


def test_remembered_members_are_tried_and_memory_is_bounded():
    view, _ = world()
    partners = Partners(ME, random.Random(1), [(peer("old"), ["/ip4/1.2.3.4/tcp/1"]), (ME, [])])
    assert partners.remembered() == ((peer("old"), ("/ip4/1.2.3.4/tcp/1",)),)
    assert partners.next_round(view, 0.0) == [peer("old")]
    for number in range(1000):
        partners.met(PeerId(f"p{number}"))
    assert len(partners._met) == MET_MAX
