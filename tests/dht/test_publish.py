"""Own announcements: sequence numbers that never fall, times that fit, storage in the DHT."""

from __future__ import annotations

import pytest
import trio

from p2pllm.config import RecordConfig
from p2pllm.dht.publish import Publisher
from p2pllm.dht.record import record_key, verify
from p2pllm.errors import StorageError
from p2pllm.types import ServerState
from sim.network import SimWorld
from sim.ports import sim_ports
from sim.storage import MemoryStorage
from tests.dht.swarm import MODEL, announcement


def publisher(world, storage=None, path="seq"):
    ports = sim_ports(world, "s") if "s" not in world.hosts else sim_ports(world, "s", network=world.hosts["s"])
    if storage is not None:
        ports = type(ports)(**{name: getattr(ports, name) for name in ports.__slots__} | {"storage": storage})
    return Publisher(ports, RecordConfig(), path), ports


async def renewed(one):
    await one.renew()
    return verify(one.records[MODEL])


async def test_fields_are_filled_in():
    async with SimWorld() as world:
        one, ports = publisher(world)
        one.want(announcement())
        ann = await renewed(one)
        assert (ann.peer, ann.addrs) == (ports.network.me, ports.network.addrs)
        assert ann.issued_ms == int(ports.wall_time() * 1000)
        assert ann.ttl_ms == 180_000
        assert not ann.relayed


async def test_sequence_is_the_clock_or_one_more_than_ever():
    storage = MemoryStorage()
    async with SimWorld() as world:
        one, ports = publisher(world, storage)
        await one.load()
        one.want(announcement())
        first = await renewed(one)
        assert first.sequence == int(ports.wall_time() * 1000)
        second = await renewed(one)
        assert second.sequence == first.sequence + 1
        world.skew("s", -86_400)
        again, _ = publisher(world, storage)
        await again.load()
        again.want(announcement())
        assert (await renewed(again)).sequence == second.sequence + 1
        await trio.lowlevel.checkpoint()


async def test_an_old_record_of_ours_that_somebody_has_is_overtaken():
    async with SimWorld() as world:
        one, ports = publisher(world)
        one.want(announcement())
        old = await renewed(one)
        world.skew("s", -1000)
        amnesiac, _ = publisher(world, MemoryStorage())
        amnesiac.want(announcement())
        await amnesiac.renew()
        assert amnesiac.seen(old)
        assert (await renewed(amnesiac)).sequence > old.sequence
        assert not amnesiac.seen(old)
        assert ports.network.me == old.peer


async def test_a_small_error_of_our_clock_is_left_alone_and_a_large_one_corrected():
    async with SimWorld() as world:
        one, ports = publisher(world)
        one.want(announcement())
        assert not one.correct(200.0)
        assert (await renewed(one)).issued_ms == int(ports.wall_time() * 1000)
        assert one.correct(4000.0)
        assert (await renewed(one)).issued_ms == int((ports.wall_time() + 4000) * 1000)
        assert not one.correct(4001.0)
        assert one.correct(0.0)


async def test_load_is_told_apart_from_everything_else():
    async with SimWorld() as world:
        one, _ = publisher(world)
        assert one.want(announcement())
        assert not one.want(announcement(queue=3, cache_tokens_free=1))
        assert one.want(announcement(state=ServerState.DRAINING))
        await trio.lowlevel.checkpoint()


async def test_leaving_says_offline_for_every_model():
    async with SimWorld() as world:
        one, _ = publisher(world)
        one.want(announcement())
        one.leave()
        assert (await renewed(one)).state is ServerState.OFFLINE


async def test_storing_needs_somebody_and_forgives_a_refusal():
    async with SimWorld() as world:
        world.host("boot")
        one, ports = publisher(world)
        one.want(announcement())
        await one.renew()
        assert not await one.store()
        await ports.network.bootstrap()
        assert await one.store()
        assert await world.hosts["boot"].get(record_key(MODEL, ports.network.me)) == one.records[MODEL]
        assert await world.hosts["boot"].find(f"/p2pllm/{MODEL}") == (ports.network.me,)
        world.skew("s", -86_400)
        again, _ = publisher(world, MemoryStorage())
        again.want(announcement())
        await again.renew()
        assert not await again.store()


async def test_nonsense_on_disk_and_a_full_disk_are_survived():
    def full(operation, path):
        if operation == "write":
            raise StorageError("no space left")

    async with SimWorld() as world:
        for content in (b"", b"\xff\xfe", b"12x"):
            one, _ = publisher(world, MemoryStorage({"seq": content}))
            await one.load()
            one.want(announcement())
            assert (await renewed(one)).sequence > 1_000_000
        storage = MemoryStorage()
        storage.fail(full)
        one, _ = publisher(world, storage)
        await one.load()
        one.want(announcement())
        await one.renew()
        with pytest.raises(ValueError, match="cannot announce"):
            one.want(announcement(queue=-1))
