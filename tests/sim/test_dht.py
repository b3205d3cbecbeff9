"""sim.dht: copies at the nearest members, who may die with them."""

from __future__ import annotations

import pytest
import trio

from p2pllm.dht.record import record_key
from p2pllm.errors import LocalProtocolError, PeerLost
from sim.dht import COPIES, LOOKUP_ROUND_TRIPS
from sim.network import SimWorld
from tests.dht.swarm import MODEL, Node, peer, record


async def swarm(world, count):
    hosts = [world.host(f"h{number}") for number in range(count)]
    for host in hosts[1:]:
        await host.bootstrap()
    return hosts


async def test_a_value_survives_its_author_and_some_holders():
    async with SimWorld() as world:
        hosts = await swarm(world, 40)
        node = Node(world, "author").serve()
        await trio.sleep(2)
        key = record_key(MODEL, node.me)
        holders = [name for name, values in world.dht._values.items() if key in values]
        assert len(holders) == COPIES + 1
        world.kill("author")
        for name in holders[1:15]:
            if name not in ("h0", "author"):
                world.kill(name)
        assert await hosts[0].get(key) is not None


async def test_a_lookup_takes_its_round_trips():
    async with SimWorld(latency_s=0.1) as world:
        hosts = await swarm(world, 3)
        begun = trio.current_time()
        assert await hosts[1].get("/p2pllm/m/x") is None
        assert trio.current_time() - begun == pytest.approx(0.2 * LOOKUP_ROUND_TRIPS)


async def test_what_the_validator_refuses_does_not_get_in():
    async with SimWorld() as world:
        hosts = await swarm(world, 3)
        key = record_key(MODEL, peer("a"))
        await hosts[1].put(key, record("a", at=10))
        with pytest.raises(LocalProtocolError):
            await hosts[2].put(key, record("a", at=5))
        with pytest.raises(LocalProtocolError):
            await hosts[2].put(key, record("b"))
        assert not world.dht.store(hosts[0], key, b"junk")
        assert await hosts[2].get(key) == record("a", at=10)


async def test_records_take_their_time_to_show():
    async with SimWorld() as world:
        world.links.record_delay_s = 5.0
        hosts = await swarm(world, 4)
        key = record_key(MODEL, peer("a"))
        await hosts[1].put(key, record("a", at=10))
        await hosts[1].provide("/p2pllm/m")
        assert await hosts[2].get(key) is None
        assert await hosts[2].find("/p2pllm/m") == ()
        await trio.sleep(5)
        assert await hosts[2].get(key) == record("a", at=10)
        assert await hosts[2].find("/p2pllm/m") == (hosts[1].me,)


async def test_who_is_silent_or_gone_holds_nothing_for_others():
    async with SimWorld() as world:
        hosts = await swarm(world, 4)
        await hosts[1].provide("/p2pllm/m")
        world.hang("h3")
        assert await hosts[2].find("/p2pllm/m") == (hosts[1].me,)
        world.kill("h1")
        assert await hosts[2].find("/p2pllm/m") == (hosts[1].me,)
        with pytest.raises(PeerLost):
            await hosts[1].get("/p2pllm/m/x")
