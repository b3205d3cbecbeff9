"""p2pllm.net.kad: what members share, and what they refuse.

Also its fixes: p2pllm.net.fixes.kad_protocol, p2pllm.net.fixes.kad_clients and p2pllm.net.fixes.kad_stores.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.dht.record import TTL_MAX_MS, Announcement, record_key, sign_announcement
from p2pllm.errors import LocalProtocolError, PeerLost
from p2pllm.net import Libp2pNetwork, open_network
from p2pllm.net.fixes import kad_stores
from p2pllm.net.fixes.kad_protocol import KAD_PROTOCOL
from p2pllm.types import ModelId, Numerics, ServerState, Span
from tests.net.fixes.stock import connect, stock_hosts
from tests.net.memory import WALL, MemoryNet, address, identity, networks

MODEL = ModelId("0123456789abcdef" * 4)
PUT_VALUE = Message.MessageType.PUT_VALUE


def record(author: Libp2pNetwork, sequence: int, issued: float = WALL, **changes: object) -> bytes:
    ann = Announcement(MODEL, Span(0, 2), 2, ServerState.ONLINE, Numerics("float32", "none", "k", "i", False))
    stamped = replace(ann, peer=author.me, sequence=sequence, issued_ms=int(issued * 1000), ttl_ms=60_000, **changes)
    return sign_announcement(stamped, author.sign)


@asynccontextmanager
async def swarm(count: int, **wire: float):
    net = MemoryNet(**wire)
    async with networks(net, count) as nodes:
        for node in nodes[1:]:
            await node.bootstrap()
        yield net, nodes


async def rude_put(node: Libp2pNetwork, peer: str, key: str, value: bytes, claimed: str | None = None) -> bool:
    """Offer a value straight to a member, without any check here; whether it took it."""
    stream = await node.open_stream(peer, KAD_PROTOCOL)  # type: ignore[arg-type]
    message = Message(type=PUT_VALUE, key=(claimed or key).encode(), record=Record(key=key.encode(), value=value))
    data = message.SerializeToString()
    size = len(data)
    prefix = b""
    while size >= 128:
        prefix += bytes((size & 127 | 128,))
        size >>= 7
    await stream.send_all(prefix + bytes((size,)) + data)
    try:
        return bool(await stream.receive_some())
    except PeerLost:
        return False


async def test_every_member_refuses_forged_stale_oversized_and_foreign_records() -> None:
    async with swarm(3) as (_, (a, b, c)):
        key = record_key(MODEL, b.me)
        good = record(b, 5)
        bent = bytearray(good)
        bent[20] ^= 1
        refused = {
            "forged": (key, record(c, 9)),
            "bent": (key, bytes(bent)),
            "foreign key": (record_key(MODEL, c.me), good),
            "foreign namespace": ("/other/x", good),
            "no namespace": ("x", good),
            "of another day": (key, record(b, 99, WALL - 86_400)),
            "oversized": (key, good + bytes(20_000)),
            "empty": (key, b""),
        }
        for why, (name, value) in refused.items():
            assert not await rude_put(c, a.me, name, value), why
        assert not await rude_put(c, a.me, key, good, claimed="/p2pllm/other"), "two keys"
        assert await rude_put(c, a.me, key, good)
        assert not await rude_put(c, a.me, key, record(b, 4)), "stale"
        assert await rude_put(c, a.me, key, record(b, 6))
        assert await b.get(key) == record(b, 6)


async def test_a_member_that_lies_is_not_believed() -> None:
    async with swarm(3) as (_, (a, b, c)):
        key = record_key(MODEL, b.me)
        lie = Record(key=key.encode(), value=record(c, 9))
        a._kad._dht.value_store.store[key.encode()] = (lie, WALL * 2)
        assert await c.get(key) is None
        await b.put(key, record(b, 1))
        assert await c.get(key) == record(b, 1)


async def test_a_copy_of_ones_own_is_never_the_answer() -> None:
    async with swarm(3) as (_, (a, b, c)):
        key = record_key(MODEL, b.me)
        await b.put(key, record(b, 1))
        assert await c.get(key) == record(b, 1)
        await b.put(key, record(b, 2))
        assert await c.get(key) == record(b, 2)
        for node in (a, b):
            node._kad._dht.value_store.store.clear()
        assert await c.get(key) is None, "nobody else has it any more"


async def test_what_is_ours_to_get_right_is_told_to_us() -> None:
    async with swarm(2) as (_, (_, b)):
        key = record_key(MODEL, b.me)
        await b.put(key, record(b, 5))
        with pytest.raises(LocalProtocolError, match="newer"):
            await b.put(key, record(b, 4))
        with pytest.raises(LocalProtocolError, match="not a record"):
            await b.put(key, b"junk")


async def test_a_put_that_nobody_takes_and_a_provide_that_nobody_hears_are_peer_lost() -> None:
    async with networks(MemoryNet(), 1) as (alone,):
        with pytest.raises(PeerLost):
            await alone.put(record_key(MODEL, alone.me), record(alone, 1))
        with pytest.raises(PeerLost):
            await alone.provide("/p2pllm/x")
        assert await alone.get(record_key(MODEL, alone.me)) is None
        assert await alone.find("/p2pllm/x") == ()


async def test_find_repeats_nobody_and_keeps_the_limit() -> None:
    async with swarm(6) as (_, nodes):
        for node in nodes[1:]:
            await node.provide("/p2pllm/x")
            await node.provide("/p2pllm/x")
        found = await nodes[0].find("/p2pllm/x")
        assert sorted(found) == sorted(node.me for node in nodes[1:])
        assert len(await nodes[0].find("/p2pllm/x", 2)) == 2
        assert nodes[1].me not in await nodes[1].find("/p2pllm/x")


async def test_dead_members_delay_a_lookup_little() -> None:
    async with swarm(6, latency_s=0.02) as (net, nodes):
        key = record_key(MODEL, nodes[5].me)
        await nodes[5].put(key, record(nodes[5], 1))
        for number in (2, 3):
            net.silent_addresses.add(f"10.0.0.{number}")
        for node in nodes[1:3]:
            for peer in node._peers.connected:
                await node.close_peer(peer)
        started = trio.current_time()
        assert await nodes[4].get(key) == record(nodes[5], 1)
        assert trio.current_time() - started < 7


async def test_a_small_swarm_is_joined_in_a_moment() -> None:
    """Ten members, 10 ms between them: under half a second of virtual time, every member findable."""
    net = MemoryNet(latency_s=0.005)
    async with networks(net, 10) as nodes:
        times = []
        for node in nodes[1:]:
            started = trio.current_time()
            assert await node.bootstrap() == 1
            times.append(trio.current_time() - started)
        assert max(times) < 0.6
        await nodes[1].provide("/p2pllm/x")
        assert await nodes[9].find("/p2pllm/x") == (nodes[1].me,)


# --- the fixes ---


async def test_kad_protocol_our_dht_is_not_the_public_one() -> None:
    async with swarm(2) as (_, (a, b)):
        with pytest.raises(PeerLost, match="does not speak"):
            await b.open_stream(a.me, "/ipfs/kad/1.0.0")
        stream = await b.open_stream(a.me, KAD_PROTOCOL)
        await stream.aclose()


async def test_kad_clients_a_node_that_only_asks_is_in_no_routing_table() -> None:
    async with swarm(2) as (net, (a, b)), AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            open_network(
                NetConfig(),
                identity=identity(50),
                wall_time=lambda: WALL,
                listen=[address(50)],
                bootstrap=a.addrs,
                serve_dht=False,
                transport=net.transport(),
            )
        )
        await b.put(record_key(MODEL, b.me), record(b, 1))
        assert await client.bootstrap() == 1
        assert await client.get(record_key(MODEL, b.me)) == record(b, 1)
        await trio.sleep(10)
        for node in (a, b):
            assert not node._kad._dht.routing_table.peer_in_table(ID.from_base58(client.me))
        assert a._kad._dht.routing_table.peer_in_table(ID.from_base58(b.me))
        assert b._kad.members == 1


async def test_kad_clients_without_the_fix_it_is_in_them() -> None:
    async with stock_hosts(MemoryNet()) as (a, b):
        server, client = KadDHT(a, DHTMode.SERVER), KadDHT(b, DHTMode.CLIENT)
        async with background_trio_service(server), background_trio_service(client):
            await connect(b, a)
            await trio.sleep(1)
            await client.get_value("/pk/x")
            await trio.sleep(1)
            assert server.routing_table.peer_in_table(b.get_id())


def provider(number: int) -> PeerInfo:
    return PeerInfo(ID.from_base58(identity(number).peer_id), [Multiaddr(address(number % 250))])


async def test_kad_stores_a_new_provider_finds_room_and_old_ones_go() -> None:
    async with networks(MemoryNet(), 1) as (a,):
        store = a._kad._dht.provider_store
        for number in range(1, BUCKET_SIZE + 2):
            store.add_provider(b"key", provider(number))
        known = {str(info.peer_id) for info in store.get_providers(b"key")}
        assert str(provider(BUCKET_SIZE + 1).peer_id) in known
        assert str(provider(1).peer_id) not in known
        await trio.sleep(TTL_MAX_MS / 1000 + 60)
        assert store.get_providers(b"key") == []
        store.add_provider(b"key", provider(99))
        assert [str(info.peer_id) for info in store.get_providers(b"key")] == [str(provider(99).peer_id)]


async def test_kad_stores_without_the_fix_twenty_are_for_ever() -> None:
    async with stock_hosts(MemoryNet(), 1) as (a,):
        store = KadDHT(a, DHTMode.SERVER).provider_store
        for number in range(1, BUCKET_SIZE + 2):
            store.add_provider(b"key", provider(number))
        assert str(provider(BUCKET_SIZE + 1).peer_id) not in {str(info.peer_id) for info in store.get_providers(b"key")}


async def test_kad_stores_values_are_bounded_and_short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kad_stores, "VALUES_MAX", 3)
    async with networks(MemoryNet(), 1) as (a,):
        store = a._kad._dht.value_store
        for number in range(5):
            store.put_record(b"%d" % number, Record(value=b"x"))
        assert list(store.store) == [b"2", b"3", b"4"]
        assert store.get(b"4") is not None
        await trio.sleep(TTL_MAX_MS / 1000 + 60)
        assert store.get(b"4") is None
        await trio.sleep(600)
        assert not store.store
