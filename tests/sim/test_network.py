"""The experimenter's verbs: kill, hang, partition, latency, bandwidth, skew."""

from __future__ import annotations

import pytest
import trio

from p2pllm.errors import PeerLost
from p2pllm.types import PeerEvent, Priority
from sim.links import wire_bytes
from sim.network import EPOCH_S, SimWorld

ECHO = "/test/echo"


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


def pair(world):
    server, client = world.host("server"), world.host("client")
    server.serve(ECHO, echo)
    client.learn(server.me, server.addrs)
    return server, client


async def read_exactly(stream, size):
    data = b""
    while len(data) < size:
        piece = await stream.receive_some()
        assert piece
        data += piece
    return data


async def test_identities_follow_from_the_seed():
    async with SimWorld(1) as one, SimWorld(1) as same, SimWorld(2) as other:
        assert one.host("a").me == same.host("a").me != other.host("a").me
        assert one.host("b").me != one.hosts["a"].me


async def test_an_echo_takes_exactly_one_round_trip():
    async with SimWorld(latency_s=0.050) as world:
        server, client = pair(world)
        stream = await client.open_stream(server.me, ECHO)
        begun = trio.current_time()
        await stream.send_all(b"x" * 1000)
        await read_exactly(stream, 1000)
        assert trio.current_time() - begun == pytest.approx(0.100)
        world.set_latency("server", "client", 0.2)
        begun = trio.current_time()
        await stream.send_all(b"y")
        assert await stream.receive_some() == b"y"
        assert trio.current_time() - begun == pytest.approx(0.4)


async def test_bandwidth_and_steps_before_bulk():
    async with SimWorld(latency_s=0.010) as world:
        server, client = pair(world)
        world.set_bandwidth("client", 1_000_000)
        bulk, step = await client.open_stream(server.me, ECHO), await client.open_stream(server.me, ECHO)
        async with trio.open_nursery() as nursery:
            begun = trio.current_time()
            nursery.start_soon(read_exactly, bulk, 1_000_000)
            nursery.start_soon(bulk.send_all, bytes(1_000_000), Priority.BULK)
            await trio.sleep(0.1)
            await step.send_all(b"x" * 1000, Priority.STEP)
            await read_exactly(step, 1000)
            assert trio.current_time() - begun < 0.1 + 0.02 + 2 * 16384 / 1e6 + 0.002
        assert trio.current_time() - begun == pytest.approx(wire_bytes(1_000_000) / 1e6 + 0.02, abs=0.05)


async def test_a_cancelled_wait_for_the_link_blocks_nobody():
    async with SimWorld() as world:
        server, client = pair(world)
        world.set_bandwidth("client", 10_000)
        one, two, three = [await client.open_stream(server.me, ECHO) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, bytes(10_000))
            await trio.sleep(0.1)
            with trio.move_on_after(0.1):
                await two.send_all(bytes(10_000))
            await three.send_all(b"abc")
            assert await three.receive_some() == b"abc"
        with pytest.raises(PeerLost):
            await two.send_all(b"dead after cancellation")


async def test_kill_resets_connections_ends_tasks_and_allows_a_restart():
    async with SimWorld() as world:
        server, client = pair(world)
        ticks = []

        async def tick():
            while True:
                await trio.sleep(1)
                ticks.append(trio.current_time())

        server.spawn(tick)
        stream = await client.open_stream(server.me, ECHO)
        await trio.sleep(3.5)
        async with client.peer_events() as events:
            world.kill("server")
            with pytest.raises(PeerLost, match="reset"):
                await stream.receive_some()
            assert await anext(events) == PeerEvent(server.me, False)
            with pytest.raises(PeerLost):
                await client.open_stream(server.me, ECHO)
            before = len(ticks)
            await trio.sleep(10)
            assert len(ticks) == before
            again = world.host("server")
            assert again.me == server.me
            again.serve(ECHO, echo)
            stream = await client.open_stream(server.me, ECHO)
            await stream.send_all(b"back")
            assert await stream.receive_some() == b"back"
            assert await anext(events) == PeerEvent(server.me, True)


async def test_hang_is_silence_that_heartbeats_find():
    async with SimWorld() as world:
        server, client = pair(world)
        stream = await client.open_stream(server.me, ECHO)
        world.hang("server")
        begun = trio.current_time()
        await stream.send_all(b"into the void")
        with pytest.raises(PeerLost, match="heartbeat"):
            await stream.receive_some()
        assert trio.current_time() - begun == pytest.approx(8.0)
        with pytest.raises(PeerLost, match="within"):
            await client.open_stream(server.me, ECHO, timeout_s=5)
        world.resume("server")
        stream = await client.open_stream(server.me, ECHO)
        await stream.send_all(b"awake")
        assert await stream.receive_some() == b"awake"


async def test_a_short_partition_only_delays():
    async with SimWorld() as world:
        server, client = pair(world)
        stream = await client.open_stream(server.me, ECHO)
        world.partition(["server"], ["client"])
        await stream.send_all(b"late")
        with trio.move_on_after(4) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        world.heal()
        assert await stream.receive_some() == b"late"
        world.partition(["server"])
        await trio.sleep(20)
        with pytest.raises(PeerLost):
            await stream.send_all(b"x")


async def test_the_dht_is_split_by_a_partition():
    async with SimWorld() as world:
        hosts = [world.host(name) for name in ("boot", "a", "b", "c")]
        for host in hosts[1:]:
            assert await host.bootstrap() == 1
        await hosts[1].provide("/p2pllm/m")
        assert await hosts[2].find("/p2pllm/m") == (hosts[1].me,)
        assert await hosts[1].find("/p2pllm/m") == ()
        world.partition(["c"])
        with pytest.raises(PeerLost):
            await hosts[3].find("/p2pllm/m")
        assert await hosts[2].get("/p2pllm/m/nobody") is None
        world.heal()
        await trio.sleep(10)
        assert await hosts[3].bootstrap() >= 1
        assert await hosts[3].find("/p2pllm/m") == (hosts[1].me,)


async def test_wall_clocks_may_be_wrong():
    async with SimWorld() as world:
        world.skew("a", -300)
        await trio.sleep(5)
        assert world.wall_time("b") == pytest.approx(EPOCH_S + trio.current_time())
        assert world.wall_time("a") == pytest.approx(EPOCH_S + trio.current_time() - 300)


async def test_a_host_is_up_once():
    async with SimWorld() as world:
        world.host("a")
        with pytest.raises(ValueError, match="up already"):
            world.host("a")
