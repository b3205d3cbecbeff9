"""The span at work on a real device thread."""

from __future__ import annotations

import pytest
import torch
import trio

from p2pllm.errors import PeerLost
from p2pllm.local.compute import open_compute
from p2pllm.wire.messages import Close, Opened
from sim.network import SimWorld
from tests.server.support import Caller, alone, model, serving, sid, tokens


@pytest.mark.real_clock
async def test_sessions_side_by_side_on_one_device_thread():
    model()
    async with (
        open_compute(("cpu",), setup=lambda device: torch.set_num_threads(1)) as compute,
        SimWorld(latency_s=0.0005) as world,
        serving(world, compute=compute, prefill_chunk_tokens=8) as server,
    ):

        async def generate(number: int) -> None:
            hidden = tokens(30, number)
            caller = await Caller.dial(world.host(f"client{number}"), world.hosts["server"])
            assert isinstance(await caller.open(number), Opened)
            parts = [await caller.output(number, 0, (0,), hidden[:20])]
            for step, one in enumerate(hidden[20:].split(1), 1):
                parts += [await caller.output(number, step, (19 + step,), one)]
            assert torch.equal(torch.cat(parts), alone(hidden))
            await caller.ask(Close(sid(number)))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(generate, number)
        assert server.sessions == 0
        assert server.room.cache.tokens_free == server.room.cache.tokens


async def test_streams_that_come_after_the_end_are_refused():
    async with SimWorld() as world:
        async with serving(world):
            early = await Caller.dial(world.host("client"), world.hosts["server"])
            await early.open()
        late = await Caller.dial(world.hosts["client"], world.hosts["server"])
        for caller in (early, late):
            with pytest.raises(PeerLost):
                await caller.open(2)
