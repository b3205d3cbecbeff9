"""A ping measures one round trip of the info protocol, whatever the server does."""

from __future__ import annotations

import pytest
import trio

from p2pllm.dht.ping import ping
from p2pllm.types import ModelId, PeerId
from p2pllm.wire import INFO
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Info
from sim.network import SimWorld

MODEL = ModelId("m")


def answering(*, delay_s: float = 0.0, skip: int = 0, garbage: bool = False):
    """A server that answers after a while, with other nonces first, or with nonsense."""

    async def handle(stream) -> None:
        reader = MessageReader()
        while data := await stream.receive_some():
            for message, _ in reader.feed(data):
                await trio.sleep(delay_s)
                if garbage:
                    await stream.send_all(b"\0" * 100)
                for offset in range(skip, -1, -1):
                    await stream.send_all(encode_message(Info(message.nonce + offset, b"")))

    return handle


async def pinged(handler, timeout_s: float = 5.0) -> tuple[float | None, float]:
    """The ping, and how long finding out took."""
    async with SimWorld(latency_s=0.02) as world:
        server, client = world.host("server"), world.host("client")
        client.learn(server.me, server.addrs)
        if handler is not None:
            server.serve(INFO, handler)
        began = trio.current_time()
        rtt_s = await ping(client, server.me, MODEL, timeout_s)
        return rtt_s, trio.current_time() - began


@pytest.mark.parametrize("skip", [0, 3])
async def test_one_round_trip_and_the_servers_time(skip):
    rtt_s, _ = await pinged(answering(delay_s=0.01, skip=skip))
    assert rtt_s == pytest.approx(0.05)


@pytest.mark.parametrize("handler", [None, answering(delay_s=60.0), answering(garbage=True)])
async def test_no_answer_is_none_within_the_bound(handler):
    rtt_s, took_s = await pinged(handler)
    assert rtt_s is None
    assert took_s <= 5.0


async def test_nobody_there_is_none():
    async with SimWorld() as world:
        client, server = world.host("client"), world.host("server")
        assert await ping(client, PeerId("stranger"), MODEL, 5.0) is None
        client.learn(server.me, server.addrs)
        server.serve(INFO, answering())
        assert await ping(client, server.me, MODEL, 5.0) is not None
        world.kill("server")
        assert await ping(client, server.me, MODEL, 5.0) is None
