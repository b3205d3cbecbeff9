"""The change log against the plain list of everything that happened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.dht.log import ChangeLog
from p2pllm.types import ModelId, PeerId

A, B = ModelId("a"), ModelId("b")
PEERS = [PeerId(name) for name in "pqrst"]

actions = st.lists(
    st.tuples(st.sampled_from(["touch", "touch", "drop"]), st.sampled_from([A, B]), st.sampled_from(PEERS))
)


def read_all(log, model, log_id, cursor, limit):
    peers = []
    for _ in range(100):
        page = log.page(model, log_id, cursor, limit)
        peers += page.peers
        cursor = page.cursor
        if not page.more:
            return peers, cursor
    raise AssertionError("the pages never end")


@given(actions, actions, st.integers(1, 4))
def test_a_reader_hears_of_each_change_since_its_cursor_once_and_in_order(before, after, limit):
    log = ChangeLog(7)
    live = {A: {}, B: {}}

    def play(script):
        for verb, model, peer in script:
            getattr(log, verb)(model, peer)
            live[model].pop(peer, None)
            if verb == "touch":
                live[model][peer] = None

    play(before)
    peers, cursor = read_all(log, A, 7, 0, limit)
    assert peers == list(live[A])
    assert log.page(A, 7, cursor, limit).peers == ()
    for peer in live[A]:
        live[A][peer] = None
    unchanged = dict(live[A])
    play(after)
    fresh, _ = read_all(log, A, 7, cursor, limit)
    touched = [peer for verb, model, peer in after if model == A and verb == "touch"]
    assert fresh == [peer for peer in live[A] if peer in touched]
    assert set(live[A]) - set(fresh) <= set(unchanged)


def test_a_cursor_of_another_log_or_of_the_future_starts_over():
    log = ChangeLog(7)
    for peer in PEERS:
        log.touch(A, peer)
    cursor = log.page(A, 7, 0, 100).cursor
    assert log.page(A, 7, cursor, 100).peers == ()
    assert log.page(A, 8, cursor, 100).peers == tuple(PEERS)
    assert log.page(A, 7, cursor + 1, 100).peers == tuple(PEERS)
    assert log.page(A, 7, -1, 100).peers == tuple(PEERS)
    assert log.page(ModelId("unknown"), 7, 0, 100).peers == ()


def test_the_log_is_no_longer_than_what_lives():
    log = ChangeLog(1)
    for _ in range(1000):
        for peer in PEERS:
            log.touch(A, peer)
    assert len(log._changes[A]) == len(PEERS)
    for peer in PEERS:
        log.drop(A, peer)
    assert log._changes == {}
