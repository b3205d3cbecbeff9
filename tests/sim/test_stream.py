"""sim.stream: windows, cancellation, misuse; the promises themselves are in tests/net/conformance.py."""

from __future__ import annotations

import pytest
import trio

from p2pllm.errors import LocalProtocolError, PeerLost
from p2pllm.types import Priority
from sim.credit import WINDOW_BYTES
from sim.network import SimWorld
from sim.stream import RECORD_BYTES


async def pair(world):
    server, client = world.host("server"), world.host("client")
    got = []

    async def hold(stream):
        got.append(stream)
        await trio.sleep_forever()

    server.serve("/hold", hold)
    client.learn(server.me, server.addrs)
    near = await client.open_stream(server.me, "/hold")
    await trio.testing.wait_all_tasks_blocked()
    return near, got[0]


async def test_a_sender_waits_at_a_full_window_and_gives_up_after_the_deadline():
    async with SimWorld() as world:
        near, far = await pair(world)
        with trio.move_on_after(1) as scope:
            await near.send_all(bytes(WINDOW_BYTES))
        assert not scope.cancelled_caught
        begun = trio.current_time()
        with pytest.raises(PeerLost, match="took no data"):
            await near.send_all(b"x")
        assert trio.current_time() - begun == pytest.approx(world.config.send_timeout_s)
        records = -(-WINDOW_BYTES // RECORD_BYTES[Priority.STEP])
        assert sum([len(await far.receive_some()) for _ in range(records)]) == WINDOW_BYTES
        with pytest.raises(PeerLost):
            await far.receive_some()


async def test_two_tasks_in_one_direction_are_a_bug_that_is_told():
    async with SimWorld() as world:
        near, _ = await pair(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(LocalProtocolError, match="two tasks"):
                await near.receive_some()
            nursery.cancel_scope.cancel()


async def test_streams_that_ended_are_forgotten():
    async with SimWorld() as world:
        server, client = world.host("server"), world.host("client")

        async def short(stream):
            await stream.receive_some()

        server.serve("/short", short)
        client.learn(server.me, server.addrs)
        for _ in range(50):
            stream = await client.open_stream(server.me, "/short")
            await stream.send_all(b"x")
            await stream.receive_some()
            await stream.aclose()
        assert [len(link.streams) for host in (server, client) for link in host.links.values()] == [0, 0]
