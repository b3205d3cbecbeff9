"""The view: newest wins, expiry, wrong times, floods; all in plain synchronous time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.config import RecordConfig
from p2pllm.dht.record import unpack_entry
from p2pllm.dht.view import MODELS_MAX, Outcome, SwarmView
from p2pllm.errors import RemoteProtocolError
from p2pllm.types import ModelId, ServerState, Span
from sim.network import EPOCH_S
from tests.dht.swarm import MODEL, peer, record

CONFIG = RecordConfig()


def view(**changes) -> SwarmView:
    return SwarmView(replace(CONFIG, **changes), (MODEL,))


def merge(target, data, now=0.0, **options):
    return target.merge(data, now, EPOCH_S + now, **options)


def test_the_newest_record_of_a_server_wins_whatever_the_order():
    first, second = record("a", at=0, queue=1), record("a", at=5, queue=2)
    one, other = view(), view()
    assert [merge(one, r) for r in (first, second)] == [Outcome.NEWS, Outcome.RENEWED]
    assert [merge(other, r) for r in (second, first, second)] == [Outcome.NEWS, Outcome.KNOWN, Outcome.KNOWN]
    assert one.get(MODEL, peer("a")) == other.get(MODEL, peer("a"))
    assert one.servers(MODEL)[0].queue == 2


def test_coverage_and_gaps_count_who_is_online():
    v = view()
    merge(v, record("a", span=Span(0, 3)))
    merge(v, record("b", span=Span(2, 5)))
    merge(v, record("c", span=Span(5, 8), state=ServerState.JOINING))
    merge(v, record("d", span=Span(5, 8), state=ServerState.OFFLINE))
    merge(v, record("e", span=Span(0, 9), num_blocks=9))
    assert v.coverage(MODEL, 8) == [1, 1, 2, 1, 1, 0, 0, 0]
    assert v.gaps(MODEL, 8) == (5, 6, 7)
    assert {ann.peer for ann in v.servers(MODEL)} == {peer(name) for name in "abce"}
    assert v.coverage(ModelId("unknown"), 2) == [0, 0]


def test_a_record_lives_from_when_it_was_first_seen():
    v = view()
    merge(v, record("a", ttl_s=100), now=50.0)
    v.expire(149.9)
    assert v.servers(MODEL)
    before = v.version
    v.expire(150.0)
    assert not v.servers(MODEL)
    assert v.version > before
    assert v.models() == (MODEL,)


def test_the_age_that_we_were_told_counts_and_is_told_on():
    v = view()
    assert merge(v, record("a", ttl_s=100), now=60.0, age_s=60.0) is Outcome.NEWS
    _, age = unpack_entry(v.entry(MODEL, peer("a"), 70.0))
    assert age == pytest.approx(70.0)
    v.expire(100.0)
    assert not v.servers(MODEL)
    assert merge(view(), record("a", ttl_s=100), now=60.0, age_s=100.0) is Outcome.STALE
    assert v.entry(MODEL, peer("a"), 101.0) is None


def test_what_has_run_out_cannot_come_back_but_its_server_can():
    v = view()
    old = record("a", ttl_s=100)
    merge(v, old)
    v.expire(100.0)
    for now in (101.0, 300.0, 599.0):
        assert merge(v, old, now=now) is Outcome.KNOWN
    assert merge(v, record("a", at=300), now=301.0) is Outcome.NEWS


@pytest.mark.parametrize(("at", "outcome"), [(-601, "STALE"), (-599, "NEWS"), (599, "NEWS"), (601, "STALE")])
def test_records_of_another_time_are_refused(at, outcome):
    v = view()
    for name in ("x", "y", "z"):
        merge(v, record(name))
    assert merge(v, record("a", at=at)) is Outcome[outcome]


def test_our_own_wrong_clock_empties_nothing():
    v = view()
    wrong = EPOCH_S - 3600
    outcomes = [v.merge(record(name), 0.0, wrong) for name in "abcdef"]
    assert outcomes[-3:] == [Outcome.NEWS] * 3
    later = [v.merge(record(name, at=1), 1.0, wrong + 1) for name in "abcdef"]
    assert later[-3:] == [Outcome.RENEWED] * 3
    assert Outcome.STALE not in later


def test_other_models_are_foreign_unless_everything_is_kept():
    assert merge(view(), record("a", model=ModelId("other"))) is Outcome.FOREIGN
    everything = SwarmView(CONFIG, None)
    for number in range(MODELS_MAX):
        assert merge(everything, record("a", model=ModelId(f"m{number}"))) is Outcome.NEWS
    assert merge(everything, record("a", model=ModelId("one-too-many"))) is Outcome.FOREIGN
    assert len(everything.models()) == MODELS_MAX
    everything.expire(1000.0)
    assert merge(everything, record("a", at=1000, model=ModelId("now")), now=1000.0) is Outcome.NEWS


def test_forged_records_are_errors():
    data = record("a")
    for bad in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"", bytes(9000)):
        with pytest.raises(RemoteProtocolError):
            merge(view(), bad)


def test_a_flood_pushes_out_only_its_own():
    v = view(peers_per_model_max=20)
    for name in ("known1", "known2"):
        merge(v, record(name), source=peer("friend"))
        v.mark_reached(peer(name))
    for name in ("new1", "new2", "new3"):
        merge(v, record(name), source=peer("friend"))
    for number in range(100):
        merge(v, record(f"fake{number}"), source=peer("flooder"))
    names = {ann.peer for ann in v.servers(MODEL)}
    assert len(names) == 20
    assert {peer(name) for name in ("known1", "known2", "new1", "new2", "new3")} <= names
    assert merge(v, record("honest"), source=peer("friend")) is Outcome.NEWS
    assert merge(v, record("known1", at=1, queue=7), now=1.0, source=peer("flooder")) is Outcome.RENEWED
    assert v.get(MODEL, peer("known1")).queue == 7


def test_reached_servers_are_never_pushed_out():
    v = view(peers_per_model_max=5)
    for number in range(5):
        merge(v, record(f"s{number}"))
        v.mark_reached(peer(f"s{number}"))
    assert merge(v, record("late")) is Outcome.FULL
    assert len(v.servers(MODEL)) == 5


def test_pages_hand_on_live_records_with_a_cursor():
    v = SwarmView(CONFIG, (MODEL,), log_id=42)
    for name in "abcde":
        merge(v, record(name))
    page, entries = v.page(MODEL, 0, 0, 3, 1.0)
    assert page.more
    assert [unpack_entry(entry)[0] for entry in entries] == [record(name) for name in "abc"]
    page, entries = v.page(MODEL, 42, page.cursor, 3, 1.0)
    assert not page.more
    assert len(entries) == 2
    merge(v, record("b", at=2), now=2.0)
    page, entries = v.page(MODEL, 42, page.cursor, 3, 2.0)
    assert [unpack_entry(entry)[0] for entry in entries] == [record("b", at=2)]


names = st.sampled_from([f"n{i}" for i in range(6)])
events = st.lists(
    st.one_of(
        st.tuples(st.just("merge"), names, st.integers(-3, 3)),
        st.tuples(st.just("reach"), names, st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(0, 60)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(events)
def test_invariants_hold_under_any_history(script):
    v = view(peers_per_model_max=4)
    now, newest = 0.0, {}
    for verb, name, number in script:
        if verb == "merge":
            before = v.get(MODEL, peer(name))
            outcome = merge(v, record(name, at=now + number, ttl_s=100), now=now)
            after = v.get(MODEL, peer(name))
            if before is not None:
                assert after.sequence >= before.sequence
            if outcome is Outcome.NEWS:
                assert after.sequence > newest.get(name, 0) or before is None
                newest[name] = after.sequence
        elif verb == "reach":
            v.mark_reached(peer(name))
        else:
            now += number
            v.expire(now)
        assert len(v.servers(MODEL)) <= 4
        for ann in v.servers(MODEL):
            assert v.entry(MODEL, ann.peer, now) is not None
        page, _ = v.page(MODEL, 0, 0, 100, now)
        assert set(page.peers) == {ann.peer for ann in v.announcements(MODEL)}
