"""Forwards: whole sequences, side by side, refused one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trio

from p2pllm.errors import PeerLost
from p2pllm.types import Span
from p2pllm.wire import FORWARD
from p2pllm.wire.messages import Close, Fault, FaultKind, Forward, Forwarded
from sim.network import SimWorld
from tests.server.support import MODEL, WHOLE, Caller, alone, packed, serving, sid, tokens, unpacked


def a_forward(request: int, *rows: torch.Tensor, codec: str = "fp32", **more: Any) -> tuple[Forward, bytes]:
    header, payload = packed(torch.cat(rows), codec)
    fields: dict[str, Any] = {"model": MODEL, "span": WHOLE, "activations": codec}
    return Forward(request, counts=tuple(len(row) for row in rows), tensor=header, **(fields | more)), payload


async def test_ragged_sequences_equal_the_model_alone():
    async with SimWorld() as world, serving(world, prefill_chunk_tokens=16):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], FORWARD)
        rows = [tokens(count, count) for count in (7, 1, 30, 12)]
        await caller.channel.send(*a_forward(5, *rows))
        answer, out = await caller.next()
        assert isinstance(answer, Forwarded)
        assert answer.request == 5
        assert torch.equal(unpacked(answer.tensor, out), torch.cat([alone(row) for row in rows]))


async def test_requests_are_pipelined_and_part_of_the_span_will_do():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], FORWARD)
        sent = {number: tokens(5 + number, number) for number in range(9)}
        got = {}

        async def send() -> None:
            for number, row in sent.items():
                await caller.channel.send(*a_forward(number, row, span=Span(0, 2)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in sent:
                answer, out = await caller.next()
                assert isinstance(answer, Forwarded)
                got[answer.request] = unpacked(answer.tensor, out)
        assert sorted(got) == sorted(sent)
        for number, output in got.items():
            await caller.channel.send(*a_forward(100 + number, output, span=Span(2, 4)))
            answer, out = await caller.next()
            assert torch.equal(unpacked(answer.tensor, out), alone(sent[number]))


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"model": "other"}, FaultKind.GONE),
        ({"span": Span(0, 5)}, FaultKind.GONE),
        ({"adapter": "mine"}, FaultKind.CLIENT),
    ],
)
async def test_refusals_are_per_request(more: dict[str, Any], kind: FaultKind):
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], FORWARD)
        refused = await caller.ask(*a_forward(3, tokens(2), **more))
        assert isinstance(refused, Fault)
        assert (refused.kind, refused.step) == (kind, 3)
        assert isinstance(await caller.ask(*a_forward(4, tokens(2))), Forwarded)


async def test_sequences_beyond_the_context_or_of_another_width_are_the_clients_fault():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], FORWARD)
        for bad in (a_forward(1, tokens(513)), a_forward(2, tokens(4)[:, :16])):
            refused = await caller.ask(*bad)
            assert isinstance(refused, Fault)
            assert refused.kind is FaultKind.CLIENT
        message, payload = a_forward(3, tokens(2))
        refused = await caller.ask(message, b"\xff" * len(payload))
        assert isinstance(refused, Fault)
        assert refused.kind is FaultKind.CLIENT


async def test_what_is_no_forward_ends_the_stream_only():
    async with SimWorld() as world, serving(world):
        client = world.host("client")
        caller = await Caller.dial(client, world.hosts["server"], FORWARD)
        await caller.channel.send(Close(sid(1)))
        with pytest.raises(PeerLost):
            await caller.next()
        again = await Caller.dial(client, world.hosts["server"], FORWARD)
        assert isinstance(await again.ask(*a_forward(1, tokens(2))), Forwarded)


async def test_draining_finishes_what_is_under_way():
    async with SimWorld() as world, serving(world, pass_s=1.0) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"], FORWARD)
        await caller.channel.send(*a_forward(1, tokens(2)))
        await trio.sleep(0.1)
        await server.drain(5.0)
        assert isinstance((await caller.next())[0], Forwarded)
        refused = await caller.ask(*a_forward(2, tokens(2)))
        assert isinstance(refused, Fault)
        assert refused.kind is FaultKind.GONE


async def test_a_lost_stream_takes_its_work_along():
    async with SimWorld() as world, serving(world, pass_s=1.0) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"], FORWARD)
        for number in range(3):
            await caller.channel.send(*a_forward(number, tokens(400)))
        await trio.sleep(0.1)
        caller.channel.abort()
        await trio.sleep(1.5)
        assert server.engine.waiting == 0
        assert server.engine.bytes_waiting == 0
