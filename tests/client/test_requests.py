"""Forward requests against a server that is scripted message by message."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from p2pllm.client.edge import Packed
from p2pllm.client.link import Links, PeerSilent
from p2pllm.client.requests import Requests
from p2pllm.config import Config, WireLimits
from p2pllm.errors import ClientFault, Overloaded, PeerLost, RemoteProtocolError, ServerFault, SessionGone
from p2pllm.types import ModelId, SessionId, Span
from p2pllm.wire import FORWARD
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Close, Fault, FaultKind, Forward, Forwarded, TensorHeader
from sim.network import SimWorld

SPAN = Span(0, 2)


def packed(value: int, tokens: int = 1) -> Packed:
    payload = bytes([value]) + bytes(tokens * 16 - 1)
    return Packed(TensorHeader("fp32", (tokens, 4), len(payload)), payload)


def answer(asked: Forward, payload: bytes) -> bytes:
    return encode_message(Forwarded(asked.request, asked.tensor), payload)


@asynccontextmanager
async def requests(script, timeout_s: float = 3.0):
    """``script(asked, payload, send)`` is run for every forward."""

    async def handle(stream):
        reader = MessageReader()
        async with trio.open_nursery() as nursery:
            while data := await stream.receive_some():
                for message, payload in reader.feed(data):
                    nursery.start_soon(script, message, bytes(payload), stream)

    async with SimWorld(seed=1, latency_s=0.05) as world:
        server, client = world.host("server"), world.host("client")
        client.learn(server.me, server.addrs)
        server.serve(FORWARD, handle)
        link, _ = await Links(client, Config()).take(server.me, FORWARD)
        made = Requests(link, ModelId("ab"), WireLimits(), timeout_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve)
            yield made
            nursery.cancel_scope.cancel()


async def ask(made: Requests, value: int, tokens: int = 1) -> int:
    got = await made.ask(SPAN, (tokens,), packed(value, tokens), "fp32", (0, 2))
    return got.payload[0]


async def test_answers_are_matched_however_they_come():
    async def slow_first(asked, payload, stream):
        await trio.sleep(1.0 / (1 + asked.request))
        await stream.send_all(answer(asked, payload))

    async with requests(slow_first) as made:
        got = {}

        async def one(value):
            got[value] = await ask(made, value)

        async with trio.open_nursery() as nursery:
            for value in range(4):
                nursery.start_soon(one, value)
        assert got == {value: value for value in range(4)}
        assert list(got) != sorted(got)
        assert made.idle


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FaultKind.CLIENT, ClientFault),
        (FaultKind.BUSY, Overloaded),
        (FaultKind.GONE, SessionGone),
        (FaultKind.INTERNAL, ServerFault),
    ],
)
async def test_a_fault_ends_its_own_request_only(kind, error):
    async def script(asked, payload, stream):
        fault = Fault(kind, "because", step=asked.request, retry_after_s=9999.0)
        await stream.send_all(encode_message(fault) if payload[0] == 1 else answer(asked, payload))

    async with requests(script) as made:
        with pytest.raises(error, match="because") as caught:
            await ask(made, 1)
        if kind is FaultKind.BUSY:
            assert caught.value.retry_after_s <= WireLimits().retry_after_s_max
        assert await ask(made, 2) == 2
        assert made.idle


async def test_the_deadline_is_one_of_progress():
    async def one_by_one(asked, payload, stream):
        await trio.sleep(2.0 * (1 + asked.request))
        await stream.send_all(answer(asked, payload))

    async with requests(one_by_one, timeout_s=3.0) as made:
        async with trio.open_nursery() as nursery:
            for value in range(5):
                nursery.start_soon(ask, made, value)
        assert trio.current_time() > 10.0


async def test_silence_ends_all_of_them():
    async def mute(asked, payload, stream):
        pass

    async with requests(mute) as made:
        errors = []

        async def one(value):
            with pytest.raises(PeerSilent) as caught:
                await ask(made, value)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for value in range(3):
                nursery.start_soon(one, value)
        assert len(errors) == 3
        assert 3.0 < trio.current_time() < 4.0
        with pytest.raises(PeerLost):
            await ask(made, 4)
        assert not made.idle


@pytest.mark.parametrize("lie", range(5))
async def test_lies_are_found(lie):
    async def script(asked, payload, stream):
        right = Forwarded(asked.request, asked.tensor)
        await stream.send_all(
            [
                encode_message(replace(right, request=7), payload),
                encode_message(replace(right, tensor=TensorHeader("fp32", (2, 4), 32)), bytes(32)),
                encode_message(replace(right, tensor=TensorHeader("fp16", (1, 4), 8)), bytes(8)),
                encode_message(Close(SessionId(bytes(16)))),
                answer(asked, payload)[:-1] + b"\0",
            ][lie]
        )

    async with requests(script) as made:
        with pytest.raises(RemoteProtocolError):
            await ask(made, 1)
        assert made.link.dead
