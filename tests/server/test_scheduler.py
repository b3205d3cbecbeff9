"""Steps first, nobody starves, everybody gets a fair share, and every token is taken exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.server.scheduler import PATIENCE_PASSES, Job, Scheduler, Slice, chunk_for, kind_of_step, row_parts
from p2pllm.types import PeerId, WorkKind

STEP, PREFILL, FORWARD = WorkKind.STEP, WorkKind.PREFILL, WorkKind.FORWARD


def job(peer: str, lane: object, kind: WorkKind, *counts: int) -> Job:
    return Job(PeerId(peer), lane, kind, counts)


def took(batch: list[Slice]) -> list[tuple[object, int, int]]:
    return [(s.job.lane, s.start, s.stop) for s in batch]


def filled(scheduler: Scheduler, *jobs: Job) -> Scheduler:
    for one in jobs:
        scheduler.add(one)
    return scheduler


def test_steps_of_different_sessions_share_a_pass():
    scheduler = filled(Scheduler(512, 256), job("a", 1, STEP, 1), job("b", 2, STEP, 1, 1), job("a", 3, STEP, 1))
    assert took(scheduler.next_batch()) == [(1, 0, 1), (2, 0, 2), (3, 0, 1)]
    assert scheduler.waiting == 0
    assert scheduler.next_batch() == []


def test_steps_go_before_prefill_and_prefill_before_forward():
    scheduler = filled(
        Scheduler(512, 256),
        job("a", 1, FORWARD, 20),
        job("a", 2, PREFILL, 20),
        job("a", 3, STEP, 1),
        job("b", 4, STEP, 1),
    )
    assert took(scheduler.next_batch()) == [(3, 0, 1), (4, 0, 1)]
    assert took(scheduler.next_batch()) == [(2, 0, 20)]
    assert took(scheduler.next_batch()) == [(1, 0, 20)]


def test_one_lane_runs_in_order_one_job_per_pass():
    scheduler = filled(Scheduler(512, 256), job("a", 1, STEP, 1), job("a", 1, STEP, 2), job("a", 1, PREFILL, 9))
    assert [took(scheduler.next_batch()) for _ in range(3)] == [[(1, 0, 1)], [(1, 0, 2)], [(1, 0, 9)]]


def test_a_long_prefill_is_cut_and_steps_get_in_between():
    scheduler = filled(Scheduler(64, 10), job("a", 1, PREFILL, 25))
    assert took(scheduler.next_batch()) == [(1, 0, 10)]
    scheduler.add(job("b", 2, STEP, 1))
    assert took(scheduler.next_batch()) == [(2, 0, 1)]
    assert took(scheduler.next_batch()) == [(1, 10, 20)]
    assert took(scheduler.next_batch()) == [(1, 20, 25)]


def test_a_forward_is_cut_between_rows_only():
    scheduler = filled(Scheduler(512, 10), job("a", 1, FORWARD, 4, 0, 5, 30, 2))
    assert [took(scheduler.next_batch()) for _ in range(3)] == [[(1, 0, 9)], [(1, 9, 39)], [(1, 39, 41)]]


def test_a_step_wider_than_the_batch_is_cut_when_it_is_alone():
    scheduler = filled(Scheduler(4, 4), job("a", 1, STEP, 1), job("b", 2, STEP, *[1] * 6), job("c", 3, STEP, 1))
    assert took(scheduler.next_batch()) == [(1, 0, 1), (3, 0, 1)], "it does not fit beside others"
    assert took(scheduler.next_batch()) == [(2, 0, 4)]
    assert took(scheduler.next_batch()) == [(2, 4, 6)]


def test_the_peer_that_was_served_less_is_next():
    scheduler = filled(Scheduler(512, 10), *(job("greedy", lane, PREFILL, 10) for lane in range(3)))
    scheduler.add(job("modest", "m", PREFILL, 10))
    order = [took(scheduler.next_batch())[0][0] for _ in range(4)]
    assert order == [0, "m", 1, 2]


def test_a_newcomer_starts_where_the_line_is_and_owes_nothing():
    scheduler = filled(Scheduler(512, 10), job("old", "o", PREFILL, 100))
    for _ in range(5):
        scheduler.next_batch()
    scheduler.add(job("new", "n", PREFILL, 100))
    order = [took(scheduler.next_batch())[0][0] for _ in range(6)]
    assert sorted(order[:4]) == ["n", "n", "o", "o"], "not five chunks to catch up"


@pytest.mark.parametrize("kind", [PREFILL, FORWARD])
def test_who_was_passed_over_rides_along(kind: WorkKind):
    scheduler = filled(Scheduler(512, 10), job("a", "bulk", kind, 10))
    for _ in range(PATIENCE_PASSES[kind]):
        scheduler.add(job("b", "s", STEP, 1))
        assert took(scheduler.next_batch()) == [("s", 0, 1)]
    scheduler.add(job("b", "s", STEP, 1))
    assert took(scheduler.next_batch()) == [("s", 0, 1), ("bulk", 0, 10)]


def test_a_full_batch_of_steps_leaves_room_for_the_starving():
    scheduler = filled(Scheduler(8, 4), job("a", "bulk", PREFILL, 4))
    for _ in range(PATIENCE_PASSES[PREFILL] + 1):
        for lane in range(8):
            scheduler.add(job(f"p{lane}", lane, STEP, 1))
        batch = took(scheduler.next_batch())
    assert ("bulk", 0, 4) in batch
    assert len(batch) == 5


def test_a_discarded_lane_is_gone():
    scheduler = filled(Scheduler(512, 10), job("a", 1, PREFILL, 30), job("a", 1, STEP, 1), job("b", 2, STEP, 1))
    scheduler.next_batch()
    scheduler.next_batch()
    assert [j.taken for j in scheduler.discard(1)] == [10, 0]
    assert scheduler.discard(1) == []
    assert scheduler.waiting == 0


def test_a_job_without_tokens_takes_its_turn():
    scheduler = filled(Scheduler(512, 10), job("a", 1, STEP, 0, 0), job("a", 2, FORWARD, 0))
    first = scheduler.next_batch()
    assert took(first) == [(1, 0, 0)]
    assert first[0].first
    assert first[0].last
    assert took(scheduler.next_batch()) == [(2, 0, 0)]
    assert scheduler.waiting == 0


def test_kinds_and_chunks():
    assert kind_of_step((1, 8)) is STEP
    assert kind_of_step((1, 9)) is PREFILL
    assert chunk_for(0.0, 0.25, 256) == 256
    assert chunk_for(400.0, 0.25, 256) == 100
    assert chunk_for(1.0, 0.25, 256) == 64
    assert chunk_for(1.0, 0.25, 8) == 8
    assert chunk_for(1e6, 0.25, 256) == 256


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_row_parts_cover_the_slice(counts: list[int], data: st.DataObject):
    total = sum(counts)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    flat = [(row, i) for row, count in enumerate(counts) for i in range(count)]
    parts = [(row, first + i) for row, first, count in row_parts(tuple(counts), start, stop) for i in range(count)]
    assert parts == flat[start:stop]


jobs = st.tuples(
    st.sampled_from("abc"),
    st.integers(0, 4),
    st.sampled_from([STEP, PREFILL, FORWARD]),
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
)


@given(st.lists(st.one_of(jobs, st.none()), max_size=40), st.integers(1, 20), st.integers(1, 12))
def test_every_token_is_taken_once_and_lanes_keep_their_order(moves: list, batch_tokens: int, chunk: int):
    scheduler = Scheduler(batch_tokens, chunk)
    added: list[Job] = []
    finished: list[Job] = []
    progress: dict[int, int] = {}

    def one_pass() -> None:
        batch = scheduler.next_batch()
        assert batch or not scheduler.waiting, "work waits, but the pass is empty"
        assert len({s.job.lane for s in batch}) == len(batch), "two jobs of a lane in one pass"
        indivisible = max((c for s in batch if s.job.kind is FORWARD for c in s.job.counts), default=0)
        assert sum(s.stop - s.start for s in batch) <= max(batch_tokens, 1) + indivisible
        for s in batch:
            assert s.start == progress.get(id(s.job), 0)
            progress[id(s.job)] = s.stop
            if s.last:
                finished.append(s.job)

    for move in moves:
        if move is None:
            one_pass()
        else:
            peer, lane, kind, counts = move
            added.append(job(peer, lane if kind is not FORWARD else object(), kind, *counts))
            scheduler.add(added[-1])
    for _ in range(40 * 48 + 1):
        if not scheduler.waiting:
            break
        one_pass()
    assert len(finished) == len(added)
    assert all(progress.get(id(one), 0) == one.tokens for one in added)
    for lane in range(5):
        assert [j for j in finished if j.lane == lane] == [j for j in added if j.lane == lane]
