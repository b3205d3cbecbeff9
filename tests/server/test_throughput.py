"""Speed is measured on real passes, kept per block, and a broken file costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from p2pllm.errors import StorageError
from p2pllm.server.backend import SpanBackend
from p2pllm.server.throughput import Speed, measure, remember, remembered
from p2pllm.types import Cost, Span
from sim.compute import SimCompute
from sim.storage import MemoryStorage
from tests.server.support import model


def backend(span: Span) -> SpanBackend:
    return SpanBackend(model(span), model(span).arena(64, 16))


async def test_measures_steps_and_forwards_per_block():
    seen: list[Cost] = []

    def cost_model(cost: Cost, device: str) -> float:
        seen.append(cost)
        return 0.001 * cost.blocks * cost.tokens

    speed = await measure(backend(Span(0, 4)), SimCompute(cost_model), "cpu")
    assert speed.step_s == pytest.approx(0.001)
    assert speed.forward_tokens_per_s == pytest.approx(1000)
    assert max(cost.tokens for cost in seen) == 128, "0.5 s for one row is enough to know"
    assert speed.of(Span(0, 4)).inference == pytest.approx(250)
    assert speed.of(Span(0, 2)).forward == pytest.approx(500)


async def test_a_fast_device_gets_the_long_batch():
    tokens: list[int] = []

    class Fast:
        async def run(self, work: Callable[[], Any], cost: Cost, devices: Sequence[str] = ()) -> tuple[Any, float]:
            tokens.append(cost.tokens)
            return work(), 0.0001

    await measure(backend(Span(0, 1)), Fast(), "cpu")
    assert max(tokens) == 1024


async def test_remembers_by_key():
    storage = MemoryStorage()
    await remember(storage, "speed.json", "a", Speed(0.5, 2.0))
    await remember(storage, "speed.json", "b", Speed(0.25, 4.0))
    assert await remembered(storage, "speed.json", "a") == Speed(0.5, 2.0)
    assert await remembered(storage, "speed.json", "c") is None
    assert await remembered(storage, None, "a") is None
    await remember(storage, None, "a", Speed(1.0, 1.0))


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"a": [0.5]}', b'{"a": [-1.0, 2.0]}', b'{"a": "x"}', b"\xff"])
async def test_a_broken_file_is_no_measurement(content: bytes):
    storage = MemoryStorage({"speed.json": content})
    assert await remembered(storage, "speed.json", "a") is None
    await remember(storage, "speed.json", "a", Speed(0.5, 2.0))
    assert await remembered(storage, "speed.json", "a") == Speed(0.5, 2.0)


async def test_a_disk_that_refuses_is_survived():
    storage = MemoryStorage()

    def refuse(operation: str, path: str) -> None:
        if operation == "write":
            raise StorageError("disk full")

    storage.fail(refuse)
    await remember(storage, "speed.json", "a", Speed(0.5, 2.0))
    assert await remembered(storage, "speed.json", "a") is None
