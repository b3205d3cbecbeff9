"""Passes: batched across sessions, shielded, and one bad task never fails its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from p2pllm.config import ServerConfig
from p2pllm.errors import ClientFault, ServerFault, SessionGone
from p2pllm.server.engine import Engine, Task
from p2pllm.server.kvcache import KVCache
from p2pllm.server.room import CacheRoom
from p2pllm.server.scheduler import Slice
from p2pllm.types import Cost, PeerId, WorkKind

PASS_S = 1.0


class SlowCompute:
    """Inline work that takes a second of virtual time per pass."""

    async def run(self, work: Callable[[], Any], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[Any, float]:
        with trio.CancelScope(shield=True):
            await trio.sleep(PASS_S)
            result = work()
        await trio.lowlevel.checkpoint_if_cancelled()
        return result, PASS_S


@dataclass
class FakeBackend:
    passes: list[list[tuple[object, int, int]]] = field(default_factory=list)
    poison: object = None
    refuse: object = None

    def run(self, batch: Sequence[Slice]) -> None:
        self.passes.append([(s.job.lane, s.start, s.stop) for s in batch])
        if any(s.job.lane == self.poison for s in batch):
            raise RuntimeError("out of memory")
        for part in batch:
            assert isinstance(part.job, Task)
            if part.job.lane == self.refuse:
                part.job.error = ClientFault("not a tensor")

    def cost(self, batch: Sequence[Slice]) -> Cost:
        return Cost(batch[0].job.kind, sum(s.stop - s.start for s in batch), blocks=4)


def task(lane: object, *counts: int, peer: str = "p", kind: WorkKind = WorkKind.STEP) -> Task:
    return Task(PeerId(peer), lane, kind, counts)


def build(**config: Any) -> tuple[Engine, FakeBackend, CacheRoom]:
    backend = FakeBackend()
    room = CacheRoom(KVCache(8, 16))
    return Engine(backend, SlowCompute(), room, ServerConfig(**config)), backend, room


async def test_an_idle_engine_computes_at_once_in_the_callers_task():
    engine, backend, _ = build()
    one = task("a", 1)
    await engine.run(one)
    assert one.finished
    assert one.error is None
    assert (one.queue_s, one.compute_s) == (0.0, PASS_S)
    assert engine.step_s == PASS_S / 4, "per block"
    assert backend.passes == [[("a", 0, 1)]]
    assert engine.waiting == 0


async def test_what_comes_during_a_pass_shares_the_next_one():
    engine, backend, _ = build()
    tasks = [task(name, 1) for name in "abc"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        async with trio.open_nursery() as clients:
            clients.start_soon(engine.run, tasks[0])
            await trio.testing.wait_all_tasks_blocked()
            clients.start_soon(engine.run, tasks[1])
            clients.start_soon(engine.run, tasks[2])
        nursery.cancel_scope.cancel()
    assert [len(p) for p in backend.passes] == [1, 2]
    assert tasks[2].queue_s == PASS_S


async def test_the_engine_goes_on_with_what_the_caller_left():
    engine, backend, _ = build(prefill_chunk_tokens=64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        long = task("a", 150, kind=WorkKind.PREFILL)
        await engine.run(long)
        assert long.compute_s == 3 * PASS_S
        nursery.cancel_scope.cancel()
    assert backend.passes == [[("a", 0, 64)], [("a", 64, 128)], [("a", 128, 150)]]


async def test_a_cancelled_caller_takes_nobody_along():
    engine, _, _ = build()
    first, second = task("a", 1), task("b", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        with trio.move_on_after(PASS_S / 2):
            await engine.run(first)
        assert first.finished, "its pass had begun"
        await engine.run(second)
        assert second.finished
        assert second.error is None
        nursery.cancel_scope.cancel()


async def test_cancelling_a_waiting_task_removes_it():
    engine, backend, _ = build()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        nursery.start_soon(engine.run, task("a", 1))
        await trio.testing.wait_all_tasks_blocked()
        waiting = task("b", 1)
        with trio.move_on_after(PASS_S / 2):
            await engine.run(waiting)
        assert isinstance(waiting.error, SessionGone)
        assert engine.waiting == 0
        assert engine.bytes_waiting == 0
        nursery.cancel_scope.cancel()
    assert backend.passes == [[("a", 0, 1)]]


async def test_a_poisoned_task_fails_alone():
    engine, backend, _ = build()
    backend.poison = "bad"
    tasks = [task("first", 1), task("bad", 1), task("good", 1)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        async with trio.open_nursery() as clients:
            clients.start_soon(engine.run, tasks[0])
            await trio.testing.wait_all_tasks_blocked()
            for one in tasks[1:]:
                clients.start_soon(engine.run, one)
        nursery.cancel_scope.cancel()
    assert [type(t.error) for t in tasks] == [type(None), ServerFault, type(None)]
    assert sorted(len(p) for p in backend.passes) == [1, 1, 1, 2]


@pytest.mark.parametrize("fault", ["poison", "refuse"])
async def test_a_failure_in_a_chunk_ends_the_task_and_what_follows_it(fault: str):
    engine, backend, _ = build(prefill_chunk_tokens=64)
    setattr(backend, fault, "a")
    long, after = task("a", 150, kind=WorkKind.PREFILL), task("a", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        async with trio.open_nursery() as clients:
            clients.start_soon(engine.run, long)
            await trio.testing.wait_all_tasks_blocked()
            clients.start_soon(engine.run, after)
        nursery.cancel_scope.cancel()
    assert isinstance(long.error, ServerFault if fault == "poison" else ClientFault)
    assert isinstance(after.error, SessionGone)
    assert backend.passes == [[("a", 0, 64)]]
    assert engine.waiting == 0


async def test_one_peer_cannot_fill_the_queue():
    engine, _, _ = build(queue_max=4, queue_per_peer_max=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        for lane in range(2):
            nursery.start_soon(engine.run, task(lane, 1, peer="greedy"))
        await trio.testing.wait_all_tasks_blocked()
        refusal = engine.refuse(task(9, 1, peer="greedy"))
        assert refusal is not None
        assert "yours" in str(refusal)
        assert engine.refuse(task(9, 1, peer="modest")) is None
        await trio.sleep(3 * PASS_S)
        assert engine.refuse(task(9, 1, peer="greedy")) is None
        nursery.cancel_scope.cancel()


async def test_pages_are_pinned_during_the_pass():
    engine, _, room = build()
    one = task("a", 1)
    one.reservation = await room.reserve("a", 1, 16, 1.0)
    assert one.reservation is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, one)
        await trio.testing.wait_all_tasks_blocked()
        assert one.reservation.pins == 1
        room.release("a")
        assert room.cache.tokens_free == 7 * 16
    assert room.cache.tokens_free == 8 * 16
    room.cache.check_integrity()


async def test_chunks_adapt_to_a_slow_device():
    engine, backend, _ = build(prefill_chunk_tokens=256, pass_target_s=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)
        await engine.run(task("a", 512, kind=WorkKind.PREFILL))
        nursery.cancel_scope.cancel()
    sizes = [stop - start for ((_, start, stop),) in backend.passes]
    assert sizes[0] == 256
    assert sizes[1] == 128
    assert sum(sizes) == 512
