"""Observers count what is sent and sample what is true, and change nothing."""

from __future__ import annotations

import pytest
import trio

from p2pllm.types import Span
from sim.observe import Meter, Observer, Sample, rates
from tests.sim.test_nodes import HALVES, client, opened, tokens


async def test_samples_and_bytes():
    async with opened(*HALVES) as nodes:
        meter = nodes.world.tap = Meter()
        observer = Observer(nodes, meter, lambda: (0, 0), origin_s=0.0)
        user = await client(nodes)
        with trio.move_on_after(20.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(observer.run, 1.0)
                await trio.sleep(5.0)
                await tokens(user)
                await trio.sleep(1.5)
                nodes.kill("s1")
                await trio.sleep(5.0)
                await nodes.restart("s1")
                await trio.sleep_forever()
        observer.count_known()
        assert meter.sent_bytes["client"] > 0
        assert sum(meter.sent_bytes.values()) == sum(meter.received_bytes.values())
        assert {sample.replicas for sample in observer.samples} == {0, 1}
        assert observer.served_s["s0"] == 20.0
        assert 12.0 <= observer.served_s["s1"] <= 16.0
        assert observer.passes_of("s1") == nodes.by_name["s0"].server.serving.engine.passes  # type: ignore[union-attr]
        assert observer.spans == {"s0": Span(0, 2), "s1": Span(2, 4)}
        assert observer.known == {"s0": 1, "s1": 1}


def test_rates():
    samples = [Sample(at_s, 0, 0, 0, count, 0) for at_s, count in ((0.0, 5), (2.0, 9), (3.0, 9))]
    assert rates(samples, lambda sample: sample.tokens) == pytest.approx([0.0, 2.0, 0.0])
    assert rates([], lambda sample: 1.0) == []
