"""The compute threads: order, cancellation, errors, several devices, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest
import trio

from p2pllm.local.compute import open_compute
from p2pllm.types import Cost, WorkKind

COST = Cost(WorkKind.STEP, tokens=1)

pytestmark = pytest.mark.real_clock


def compute_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("p2pllm-")]


async def test_returns_result_and_device_seconds_off_the_loop():
    async with open_compute() as compute:
        where, seconds = await compute.run(lambda: (time.sleep(0.02), threading.current_thread().name)[1], COST)
    assert where == "p2pllm-cpu"
    assert 0.02 <= seconds < 2
    assert compute_threads() == []


async def test_one_pass_at_a_time_in_order_of_arrival():
    order: list[int] = []
    inside = threading.Lock()

    def work(i: int) -> None:
        assert inside.acquire(blocking=False), "two passes at once on one device"
        time.sleep(0.002)
        order.append(i)
        inside.release()

    async with open_compute() as compute, trio.open_nursery() as nursery:
        for i in range(10):
            nursery.start_soon(compute.run, lambda i=i: work(i), COST)
            await trio.testing.wait_all_tasks_blocked()
    assert order == list(range(10))


async def test_the_loop_runs_while_a_pass_does():
    gate = threading.Event()
    async with open_compute() as compute, trio.open_nursery() as nursery:
        nursery.start_soon(compute.run, lambda: gate.wait(10), COST)
        for _ in range(10):
            await trio.sleep(0.001)
        gate.set()


async def test_errors_of_the_work_reach_the_caller_and_the_thread_lives_on():
    def fail() -> None:
        raise KeyError("of the work")

    async with open_compute() as compute:
        with pytest.raises(KeyError, match="of the work"):
            await compute.run(fail, COST)
        assert (await compute.run(lambda: 7, COST))[0] == 7


async def test_cancelling_a_running_pass_waits_for_its_end():
    begun, gate = threading.Event(), threading.Event()
    ended: list[float] = []

    def work() -> None:
        begun.set()
        gate.wait(10)
        ended.append(time.perf_counter())

    async with open_compute() as compute:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def call() -> None:
                with scope:
                    await compute.run(work, COST)
                assert ended, "cancellation was delivered before the pass had ended"

            nursery.start_soon(call)
            await trio.to_thread.run_sync(begun.wait, 10)
            scope.cancel()
            await trio.sleep(0.01)
            assert not ended
            gate.set()
        assert scope.cancelled_caught


async def test_cancelling_a_waiting_pass_drops_it():
    gate = threading.Event()
    ran: list[str] = []
    async with open_compute() as compute, trio.open_nursery() as nursery:
        nursery.start_soon(compute.run, lambda: gate.wait(10), COST)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as scope:
            await compute.run(lambda: ran.append("never"), COST)
        assert scope.cancelled_caught
        gate.set()
        await compute.run(lambda: ran.append("next"), COST)
    assert ran == ["next"]


async def test_setup_runs_first_in_every_thread_and_its_error_is_raised():
    seen: dict[str, str] = {}
    async with open_compute(("a", "b"), lambda device: seen.update({device: threading.current_thread().name})):
        assert seen == {"a": "p2pllm-a", "b": "p2pllm-b"}

    def broken(device: str) -> None:
        raise OSError(f"no {device}")

    with pytest.raises(OSError, match="no a"):
        async with open_compute(("a",), broken):
            pass
    assert compute_threads() == []


async def test_a_pass_over_two_devices_has_both_to_itself():
    busy = {"a": threading.Lock(), "b": threading.Lock()}
    done: list[str] = []

    def on(*devices: str) -> None:
        for device in devices:
            assert busy[device].acquire(blocking=False)
        time.sleep(0.001)
        for device in devices:
            busy[device].release()
        done.append("".join(devices))

    async with open_compute(("a", "b")) as compute, trio.open_nursery() as nursery:
        for devices in [("a",), ("a", "b"), ("b",), ("b", "a"), ("a",), ("b", "a"), ("a", "b")] * 5:
            nursery.start_soon(compute.run, lambda d=devices: on(*d), COST, devices)
    assert len(done) == 35


async def test_a_dropped_pass_over_two_devices_frees_both():
    gate = threading.Event()
    async with open_compute(("a", "b")) as compute, trio.open_nursery() as nursery:
        nursery.start_soon(compute.run, lambda: gate.wait(10), COST, ("a",))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01):
            await compute.run(lambda: None, COST, ("a", "b"))
        assert (await compute.run(lambda: "b is free", COST, ("b",)))[0] == "b is free"
        gate.set()
        assert (await compute.run(lambda: "both", COST, ("b", "a")))[0] == "both"


async def test_misuse_is_told():
    async with open_compute() as compute:
        with pytest.raises(ValueError, match="no such compute device"):
            await compute.run(lambda: None, COST, ("cuda:7",))
    with pytest.raises(RuntimeError, match="closed"):
        await compute.run(lambda: None, COST)
    with pytest.raises(ValueError, match="distinct"):
        async with open_compute(()):
            pass
