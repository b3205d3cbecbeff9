"""sim.verbs, sim.world: the experimenter's verbs do on both stacks what they say."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from p2pllm.config import NetConfig
from p2pllm.dht.keys import signature_holds
from p2pllm.errors import PeerLost
from sim.libp2p.world import Libp2pWorld
from sim.links import Access
from sim.nat import Nat
from sim.network import SimWorld
from sim.run import run
from sim.stacks import open_world
from sim.world import EPOCH_S, Host, TappedStream, World

ECHO = "/test/echo"

both = pytest.mark.parametrize("world_of", [SimWorld, Libp2pWorld], ids=["ports", "libp2p"])


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def pair(world: World) -> tuple[Host, Host]:
    server, client = await world.start("server"), await world.start("client")
    server.serve(ECHO, echo)
    client.learn(server.me, server.addrs)
    return server, client


async def echoed(stream: Any, data: bytes) -> None:
    await stream.send_all(data)
    assert await stream.receive_some() == data


def test_hosts_are_the_same_on_both_stacks():
    async def main() -> list[tuple[str, str, tuple[str, ...]]]:
        seen = []
        for stack in ("ports", "libp2p"):
            async with open_world(stack, 7, NetConfig()) as world:
                assert world.stack == stack
                host = await world.start("a")
                assert signature_holds(host.me, b"x", host.sign(b"x"))
                seen.append((host.name, host.me, host.addrs))
        return seen

    one, other = run(main)
    assert one == other


@both
async def test_a_killed_host_resets_its_connections_and_comes_back_empty(world_of):
    async with world_of(seed=1, latency_s=0.05) as world:
        server, client = await pair(world)
        ended = trio.Event()

        async def work() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        server.spawn(work)
        stream = await client.open_stream(server.me, ECHO)
        await echoed(stream, b"x")
        assert [host.name for host in client.connected()] == ["server"]
        before = trio.current_time()
        world.kill("server")
        assert not server.alive
        with pytest.raises(PeerLost, match="reset"):
            await stream.receive_some()
        assert trio.current_time() - before == pytest.approx(0.05)
        assert ended.is_set()
        await trio.testing.wait_all_tasks_blocked()
        assert client.connected() == []
        before = trio.current_time()
        with pytest.raises(PeerLost):
            await client.open_stream(server.me, ECHO)
        assert trio.current_time() - before == pytest.approx(0.1), "a refusal takes one round trip"
        with pytest.raises(PeerLost):
            await server.open_stream(client.me, ECHO)
        again = await world.start("server", bootstrap=())
        assert (again.me, again.alive, world.hosts["server"]) == (server.me, True, again)
        with pytest.raises(PeerLost):  # it has forgotten what it served
            await client.open_stream(server.me, ECHO)
        again.serve(ECHO, echo)
        await echoed(await client.open_stream(server.me, ECHO), b"y")
        with pytest.raises(ValueError, match="up already"):
            await world.start("server")


@both
async def test_a_hung_host_is_found_by_heartbeats_and_goes_on_when_it_wakes(world_of):
    config = NetConfig(heartbeat_interval_s=1.0, heartbeat_timeout_s=2.0)
    async with world_of(seed=1, config=config) as world:
        server, client = await pair(world)
        stream = await client.open_stream(server.me, ECHO)
        await echoed(stream, b"x")
        world.hang("server")
        await stream.send_all(b"slow")
        await trio.sleep(0.5)
        world.resume("server")
        assert await stream.receive_some() == b"slow", "a short freeze loses nothing"
        await trio.sleep(5)
        world.hang("server")
        before = trio.current_time()
        with pytest.raises(PeerLost):
            await stream.receive_some()
        assert trio.current_time() - before <= 3.2
        with pytest.raises(PeerLost):
            await client.open_stream(server.me, ECHO, timeout_s=2)
        world.resume("server")
        await echoed(await client.open_stream(server.me, ECHO), b"y")
        world.hang("server")
        world.kill("server")  # whose machine then answers, and refuses
        with pytest.raises(PeerLost), trio.fail_after(1):
            await client.open_stream(server.me, ECHO)


@both
async def test_a_partition_holds_messages_back_until_it_heals(world_of):
    async with world_of(seed=1, latency_s=0.05) as world:
        server, client = await pair(world)
        bystander = await world.start("bystander")
        bystander.learn(server.me, server.addrs)
        stream = await client.open_stream(server.me, ECHO)
        await stream.send_all(b"under way")
        world.partition(["client", "bystander"])
        with trio.move_on_after(1.0) as patience:
            await stream.receive_some()
        assert patience.cancelled_caught
        world.heal()
        assert await stream.receive_some() == b"under way"
        world.partition(["client"], ["server", "bystander"])
        await echoed(await bystander.open_stream(server.me, ECHO), b"y")


@both
async def test_clocks_on_the_wall_may_be_wrong_and_latencies_differ(world_of):
    async with world_of(seed=1, latency_s=0.05) as world:
        server, client = await pair(world)
        world.skew("server", 90)
        assert world.wall_time("server") - world.wall_time("client") == 90
        assert world.wall_time("client") == EPOCH_S + trio.current_time()
        world.set_latency("client", "server", 0.2)
        world.set_access("server", Access(latency_s=0.1))
        assert world.latency("server", "client") == pytest.approx(0.3)
        stream = await client.open_stream(server.me, ECHO)
        before = trio.current_time()
        await echoed(stream, b"x")
        assert trio.current_time() - before == pytest.approx(0.6)
        path = client.path(server.me)
        assert path is not None
        assert path.direct
        done = []
        world.later("client", "server", lambda: done.append(trio.current_time() - before))
        await trio.sleep(1)
        assert done == [pytest.approx(0.9)]


@both
async def test_a_tap_sees_changes_and_breaks_what_is_written(world_of):
    async with world_of(seed=1, latency_s=0.05) as world:
        server, client = await pair(world)
        seen = []

        def tap(stream: TappedStream, data: bytes) -> bytes:
            seen.append((stream.ends, data))
            if data == b"break":
                stream.fail_both("torn")
            return data.upper()

        one, two = [await client.open_stream(server.me, ECHO) for _ in range(2)]
        world.tap = tap
        await one.send_all(b"hello")
        assert await one.receive_some() == b"HELLO"
        assert seen == [(("client", "server"), b"hello"), (("server", "client"), b"HELLO")]
        with pytest.raises(PeerLost, match="torn"):
            await one.send_all(b"break")
        with pytest.raises(PeerLost, match="torn"):
            await one.receive_some()
        world.tap = None
        await echoed(two, b"not the other stream")
        tapped: list[TappedStream] = []
        world.tap = lambda stream, data: tapped.append(stream) or data
        three = await client.open_stream(server.me, ECHO)
        await three.send_all(b"under way")
        tapped[0].fail_both("before it was there")
        with pytest.raises(PeerLost):
            await three.receive_some()
        await trio.sleep(1)
        assert len(tapped) == 1, "the server has read nothing"


@both
async def test_strangers_do_not_get_through_a_nat(world_of):
    async with world_of(seed=1) as world:
        server, client = await pair(world)
        world.set_access("server", Access(nat=Nat.SYMMETRIC))
        with pytest.raises(PeerLost):
            await client.open_stream(server.me, ECHO, timeout_s=3)
        server.learn(client.me, client.addrs)
        client.serve(ECHO, echo)
        await echoed(await server.open_stream(client.me, ECHO), b"x")
        await echoed(await client.open_stream(server.me, ECHO), b"over the connection that it opened")


@both
async def test_generators_follow_from_the_seed_and_the_purpose(world_of):
    async with world_of(seed=1) as world, world_of(seed=2) as other:
        draws = [world.rng("a", "b").random(), world.rng("a").random(), other.rng("a", "b").random()]
        assert len(set(draws)) == 3
        assert world.rng("a", "b").random() == draws[0]


@both
def test_the_trace_tells_what_the_program_sees(world_of):
    async def main(content: bytes) -> str:
        async with world_of(seed=1) as world:
            server, client = await pair(world)
            await echoed(await client.open_stream(server.me, ECHO), content)
            return world.trace_hash()

    one, again, other = [run(partial(main, content)) for content in (b"one", b"one", b"two")]
    assert one == again != other
