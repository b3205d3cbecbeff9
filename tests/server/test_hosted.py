"""Sessions under random work: outputs always equal the model alone, and hostile orders harm nobody else.

The module under test is ``p2pllm.server.hosted``, with everything around it that makes a server.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.errors import PeerLost
from p2pllm.server.backend import SpanBackend
from p2pllm.types import SessionId
from p2pllm.wire.messages import Attach, Attached, Close, Fault, FaultKind, Open, Opened, Rewire, TensorHeader
from sim.network import SimWorld
from tests.server.support import HIDDEN, MODEL, WHOLE, Caller, a_step, alone, serving, sid, tokens

ROWS = 3
LENGTH = 48


def in_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def generate(caller: Caller, number: int, rng: random.Random, steps: int) -> None:
    """One session of random steps, against what each row's whole history gives alone."""
    assert isinstance(await caller.open(number, rows=ROWS, length=LENGTH), Opened)
    histories = [tokens(0) for _ in range(ROWS)]
    for step in range(steps):
        sources = tuple(rng.randrange(ROWS) for _ in range(ROWS)) if rng.random() < 0.4 else ()
        if sources:
            histories = [histories[source] for source in sources]
        at = tuple(rng.randint(0, len(h)) if rng.random() < 0.2 else len(h) for h in histories)
        counts = [min(rng.choice((0, 1, 1, 9)), LENGTH - position) for position in at]
        new = [tokens(count, rng.randrange(10**6)) for count in counts]
        histories = [torch.cat([h[:position], n]) for h, position, n in zip(histories, at, new, strict=True)]
        tail = rng.choice((-1, 1))
        output = await caller.output(number, step, at, *new, sources=sources, tail=tail, acked=step - 1)
        kept = [count if tail < 0 else min(count, tail) for count in counts]
        expected = [alone(h)[len(h) - keep :] for h, keep in zip(histories, kept, strict=True)]
        assert torch.equal(output, torch.cat(expected))
    await caller.ask(Close(sid(number)))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_random_sessions_side_by_side_equal_each_row_alone(seed: int):
    async def main() -> None:
        async with (
            SimWorld() as world,
            serving(world, cache_tokens=3 * ROWS * LENGTH, pass_s=0.02, prefill_chunk_tokens=8) as server,
            trio.open_nursery() as nursery,
        ):
            for number in range(3):
                caller = await Caller.dial(world.host(f"client{number}"), world.hosts["server"])
                nursery.start_soon(generate, caller, number, random.Random(f"{seed}/{number}"), 6)
        assert server.sessions == 0
        assert server.room.cache.tokens_free == server.room.cache.tokens

    in_virtual_time(main)


def nonsense(rng: random.Random) -> tuple[Any, bytes]:
    """A message that is valid in itself, and most likely not within its session."""
    number, epoch = rng.randrange(3), rng.choice((0, 0, 0, 1, 2))
    kind = rng.randrange(8)
    if kind == 0:
        return Attach(sid(number), epoch), b""
    if kind == 1:
        return Rewire(sid(number), epoch, step=rng.choice((-1, 0, 3))), b""
    if kind == 2:
        return Close(sid(number)), b""
    rows = rng.choice((1, 2, 2, 2, 3))
    new = [tokens(rng.randrange(4), rng.randrange(5)) for _ in range(rows)]
    at = tuple(rng.choice((0, 0, 1, 3, 60)) for _ in range(rows))
    sources = tuple(rng.randrange(rows) for _ in range(rows)) if rng.random() < 0.3 else ()
    step = rng.randrange(4)
    message, payload = a_step(number, step, at, *new, sources=sources, epoch=epoch, tail=rng.choice((-1, 0, 2)))
    if rng.random() < 0.1 and payload:
        payload = b"\xff" * len(payload)
    return message, payload


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_hostile_orders_of_messages_harm_nobody_else(seed: int):
    async def attack(world: SimWorld, rng: random.Random) -> None:
        caller = await Caller.dial(world.hosts["hostile"], world.hosts["server"])

        async def read() -> None:
            while await caller.channel.receive() is not None:
                pass

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for number in range(2):
                    await caller.channel.send(open_of(number, rng))
                for _ in range(30):
                    await caller.channel.send(*nonsense(rng))
                    if rng.random() < 0.2:
                        await trio.sleep(0.01)
                await trio.sleep(0.1)
                caller.channel.abort()
        except* PeerLost:
            pass

    async def main() -> None:
        async with SimWorld() as world, serving(world, cache_tokens=4096, linger_s=5.0) as server:
            world.host("hostile")
            good = await Caller.dial(world.host("good"), world.hosts["server"])
            async with trio.open_nursery() as nursery:
                for part in range(3):
                    nursery.start_soon(attack, world, random.Random(f"{seed}/{part}"))
                await generate(good, 77, random.Random(seed), 6)
            await trio.sleep(10)
            assert server.sessions == 0
            assert server.engine.waiting == 0
            assert server.engine.bytes_waiting == 0
            assert server.room.cache.tokens_free == 4096

    in_virtual_time(main)


def open_of(number: int, rng: random.Random) -> Any:
    return Open(sid(number), rng.randrange(2), MODEL, WHOLE, 2, 32, "fp32")


async def test_a_result_that_cannot_be_told_costs_the_session_not_the_server(monkeypatch: pytest.MonkeyPatch):
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        collect = SpanBackend._collect

        def wrong(self: SpanBackend, part: Any, output: torch.Tensor) -> None:
            collect(self, part, output)
            part.job.answer = TensorHeader("fp32", (99, HIDDEN), 99 * HIDDEN * 4), b""

        monkeypatch.setattr(SpanBackend, "_collect", wrong)
        fault = await caller.step(1, 0, (0,), tokens(2))
        assert isinstance(fault, Fault)
        assert fault.kind is FaultKind.INTERNAL
        assert server.sessions == 0
        monkeypatch.undo()
        await caller.open(2)
        assert torch.equal(await caller.output(2, 0, (0,), tokens(2)), alone(tokens(2)))


async def test_a_message_of_ours_that_is_none_ends_its_stream():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        caller.channel.post(Close(SessionId(b"short")))
        await caller.channel.flush()
        assert caller.channel.dead


async def test_credit_for_answers_is_shared():
    mib = 1024 * 1024
    async with SimWorld() as world, serving(world, answers_total_bytes=64 * mib, answer_bytes_min=mib) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        for number in range(12):
            assert isinstance(await caller.open(number, length=16), Opened)
        assert server._sessions is not None
        granted = [server._sessions.find(sid(number)).credit_bytes for number in range(12)]  # type: ignore[union-attr]
        assert granted[0] == 4 * mib
        assert granted == sorted(granted, reverse=True)
        assert sum(granted) <= 64 * mib


async def test_a_lost_session_is_found_again_where_it_stands():
    async with SimWorld() as world, serving(world, linger_s=60.0):
        client = world.host("client")
        for step in range(4):
            caller = await Caller.dial(client, world.hosts["server"])
            if step == 0:
                await caller.open()
            else:
                assert await caller.ask(Attach(sid(1), 0)) == Attached(sid(1), 0, step - 1, (2 * step,))
            await caller.output(1, step, (2 * step,), tokens(2, step))
            caller.channel.abort()
            await trio.sleep(1)
