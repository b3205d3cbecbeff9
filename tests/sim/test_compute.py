"""Simulated compute: inline work, virtual seconds, shielded passes."""

from __future__ import annotations

import pytest
import trio

from p2pllm.types import Cost, WorkKind
from sim.compute import SimCompute

COST = Cost(WorkKind.STEP, tokens=2)


async def test_a_pass_takes_what_the_model_says():
    compute = SimCompute(lambda cost, device: cost.tokens * (0.5 if device == "slow" else 0.1))
    begun = trio.current_time()
    assert await compute.run(lambda: "result", COST, ("slow",)) == ("result", 1.0)
    assert trio.current_time() - begun == pytest.approx(1.0)


async def test_passes_of_one_device_queue_and_devices_are_independent():
    compute = SimCompute(lambda cost, device: 1.0)
    order = []
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for i, devices in enumerate([("a",), ("b",), ("a", "b"), ("a",)]):
            nursery.start_soon(compute.run, lambda i=i: order.append((i, trio.current_time() - begun)), COST, devices)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [(0, 0.0), (1, 0.0), (2, 1.0), (3, 2.0)]


async def test_a_begun_pass_is_shielded_and_a_waiting_one_is_dropped():
    compute = SimCompute(lambda cost, device: 1.0)
    ran = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(compute.run, lambda: ran.append("first"), COST)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.5) as waiting:
            await compute.run(lambda: ran.append("never"), COST)
        assert waiting.cancelled_caught
    begun = trio.current_time()
    with trio.move_on_after(0.5) as running:
        await compute.run(lambda: ran.append("second"), COST)
    assert running.cancelled_caught
    assert trio.current_time() - begun == pytest.approx(1.0)
    assert ran == ["first", "second"]


async def test_errors_propagate_and_free_the_device():
    compute = SimCompute()

    def fail():
        raise KeyError("work")

    with pytest.raises(KeyError):
        await compute.run(fail, COST)
    assert (await compute.run(lambda: 1, COST))[0] == 1
