"""Messages over a stream: in order, bounded, and dead after the first error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from p2pllm.config import WireLimits
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Stream
from p2pllm.server.channel import BACKLOG_MAX, Channel
from p2pllm.types import ModelId, Priority
from p2pllm.wire.frame import encode_message
from p2pllm.wire.messages import Closed, InfoRequest
from sim.network import SimWorld
from tests.server.support import a_step, sid, tokens

LIMITS = WireLimits()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, Channel, Stream]]:
    """A client's channel, the server's, and the client's stream."""
    async with SimWorld() as world:
        server, client = world.host("server"), world.host("client")
        arrived, close = trio.open_memory_channel[Channel](1)
        done = trio.Event()

        async def handle(stream: Stream) -> None:
            await arrived.send(Channel(stream, LIMITS))
            await done.wait()

        server.serve("/x", handle)
        client.learn(server.me, server.addrs)
        stream = await client.open_stream(server.me, "/x")
        yield Channel(stream, LIMITS), await close.receive(), stream
        done.set()


async def test_messages_arrive_in_order_and_the_end_is_clean():
    async with pair() as (client, server, _):
        for number in range(5):
            client.post(InfoRequest(number, ModelId("m")))
        client.post(*a_step(1, 0, (0,), tokens(2000)), Priority.BULK)
        client.post(Closed(sid(1)))
        await client.flush()
        await client.aclose()
        got = [await server.receive() for _ in range(7)]
        assert [type(item[0]).__name__ for item in got if item] == ["InfoRequest"] * 5 + ["Step", "Closed"]
        assert await server.receive() is None
        assert not await server.peek()


async def test_peeking_leaves_the_message_there():
    async with pair() as (client, server, _):
        await client.send(InfoRequest(1, ModelId("m")))
        assert await server.peek()
        assert await server.receive() == (InfoRequest(1, ModelId("m")), b"")


async def test_deadlines_move_while_waiting():
    async with pair() as (_, server, _stream):
        begun = trio.current_time()
        server.expect_by(begun + 100)
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await trio.sleep(1)
                server.expect_by(begun + 5)

            nursery.start_soon(hurry)
            with pytest.raises(PeerLost, match="no whole message"):
                await server.receive()
        assert trio.current_time() == begun + 5
        with pytest.raises(PeerLost):
            await server.receive()
        server.post(Closed(sid(1)))
        await server.flush()


async def test_a_cut_message_and_a_bad_byte_are_the_peers_fault():
    data = encode_message(InfoRequest(1, ModelId("m")))
    for bad in (data[:-1], data[:10] + b"\xff" + data[11:]):
        async with pair() as (client, server, stream):
            await stream.send_all(bad)
            await client.aclose()
            with pytest.raises(RemoteProtocolError):
                await server.receive()
            assert server.dead


async def test_a_peer_that_does_not_read_costs_a_bounded_backlog():
    async with pair() as (client, server, _):
        big = a_step(1, 0, (0,), tokens(3000))
        server.post(*big, Priority.BULK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.flush)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(BACKLOG_MAX):
                await server.send(Closed(sid(1)))
            with trio.move_on_after(1) as patience:
                await server.send(Closed(sid(2)))
            assert patience.cancelled_caught, "the next one waits until the peer reads"
            while (got := await client.receive()) is not None and got[0] != Closed(sid(2)):
                pass
        client.abort()


async def test_cancelling_a_send_kills_the_channel():
    async with pair() as (_, server, _stream):
        with trio.move_on_after(1):
            await server.send(*a_step(1, 0, (0,), tokens(3000)), Priority.BULK)
        assert server.dead
