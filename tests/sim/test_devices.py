"""Cost models follow their data sheets, and servers of one physical device share it."""

from __future__ import annotations

import pytest
import trio

from p2pllm.types import Cost, WorkKind
from sim.devices import ARITHMETIC_EFFICIENCY, DEVICES, READ_EFFICIENCY, attach, client_model, cost_model
from sim.run import run
from sim.shapes import BLOOM_176B, LLAMA_2_70B

A100 = DEVICES["a100-80gb"]


def step(tokens=1, context=0, blocks=1):
    return Cost(WorkKind.STEP, tokens, context, blocks)


def test_a_step_reads_the_weights_and_the_caches_once():
    model = cost_model(A100, BLOOM_176B, "int8")
    bandwidth = READ_EFFICIENCY * 2039e9
    assert model(step(), "cpu") == pytest.approx(1e-4 + BLOOM_176B.block_bytes("int8") / bandwidth)
    grown = model(step(context=2000), "cpu") - model(step(context=1000), "cpu")
    assert grown == pytest.approx(1000 * BLOOM_176B.cache_bytes / bandwidth)
    assert model(step(tokens=8), "cpu") == model(step(), "cpu")  # sharing the weights is free, as far as they bind


def test_fewer_bits_are_faster_steps_and_equal_batches():
    half, four = cost_model(A100, LLAMA_2_70B, "float16"), cost_model(A100, LLAMA_2_70B, "nf4")
    assert half(step(), "cpu") > 2.5 * four(step(), "cpu")
    batch = Cost(WorkKind.FORWARD, 8192, 0, 80)
    assert half(batch, "cpu") == four(batch, "cpu")


def test_batches_are_bound_by_arithmetic_as_in_the_offloading_rows():
    """8,192 tokens of BLOOM-176B on one A100 take the 42.6 s that the efficiency was taken from."""
    batch = Cost(WorkKind.FORWARD, 8192, 0, 70)
    assert cost_model(A100, BLOOM_176B)(batch, "cpu") == pytest.approx(42.6, rel=0.03)
    back = Cost(WorkKind.BACKWARD, 8192, 0, 70)
    assert cost_model(A100, BLOOM_176B)(back, "cpu") == 2 * cost_model(A100, BLOOM_176B)(batch, "cpu")
    assert 0 < ARITHMETIC_EFFICIENCY < READ_EFFICIENCY < 1


def test_every_device_is_slower_than_the_a100_and_says_where_its_figures_are_from():
    for device in DEVICES.values():
        assert device.source
        if device is not A100:
            assert cost_model(device, BLOOM_176B)(step(), "cpu") > cost_model(A100, BLOOM_176B)(step(), "cpu")


def test_a_client_reads_its_head_for_every_step():
    cost = Cost(WorkKind.CLIENT, tokens=1)
    cpu = DEVICES["cpu-8"]
    assert client_model(cpu, BLOOM_176B)(cost, "cpu") == pytest.approx(2 * 250880 * 14336 / (0.8 * 51.2e9))
    assert client_model(cpu, BLOOM_176B)(step(), "cpu") == 0.0
    assert cost_model(cpu, BLOOM_176B)(cost, "cpu") == 0.0


def test_servers_of_one_device_take_turns_and_their_software_does_not():
    """Two servers on one device and one on another, a second per pass, half a second of software each."""
    compute = attach({"a": 0, "b": 0, "c": 1}, dict.fromkeys((0, 1), lambda cost, device: 1.0), overhead_s=0.5)
    ended = {}

    async def one(name):
        await compute(name).run(lambda: None, step())
        ended[name] = trio.current_time()

    async def main():
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c", "client"):
                nursery.start_soon(one, name)
        return {name: round(at - began, 6) for name, at in ended.items()}

    ends = run(main)
    assert sorted((ends["a"], ends["b"])) == [1.5, 2.5]
    assert (ends["c"], ends["client"]) == (1.5, 0.0)
