"""sim.circuits and sim.route: who is reached how, what a relayed path costs, how it becomes direct, and how it ends."""

from __future__ import annotations

import pytest
import trio

from p2pllm.errors import PeerLost
from p2pllm.types import PeerEvent, Reachability
from sim.links import Access, wire_bytes
from sim.nat import Nat, RelayLimits
from sim.network import SimWorld
from tests.sim.flows import UNLIMITED, Receiver, noise, open_to

MB = 1_000_000
DIRECT_S = 0.01
TO_RELAY_S = 0.05
GENEROUS = RelayLimits()


async def net(world, server=Nat.SYMMETRIC, client=Nat.SYMMETRIC, limits=GENEROUS, relay=UNLIMITED):
    """A relay, a server behind a NAT with a reservation there, and a client that knows its addresses."""
    world.set_access("relay", Access(relay.up_bytes_per_s, relay.down_bytes_per_s, relay=limits))
    for name, kind in (("server", server), ("client", client)):
        world.set_access(name, Access(nat=kind))
        world.set_latency("relay", name, TO_RELAY_S)
    world.set_latency("server", "client", DIRECT_S)
    hosts = [world.host(name) for name in ("relay", "server", "client")]
    for host in hosts[1:]:
        assert host.reachability() is (Reachability.PUBLIC if host.access.nat is Nat.PUBLIC else Reachability.UNKNOWN)
        assert await host.bootstrap() == 1
    return hosts


async def test_without_a_relay_nobody_gets_in():
    async with SimWorld() as world:
        world.set_access("server", Access(nat=Nat.PORT_RESTRICTED))
        client, server = world.host("client"), world.host("server")
        assert await server.bootstrap() == 1
        assert server.reachability() is Reachability.PRIVATE
        await client.close_peer(server.me)
        client.learn(server.me, server.addrs)
        with pytest.raises(PeerLost, match="NAT"):
            await client.open_stream(server.me, "/x")


async def test_a_full_cone_takes_strangers_once_it_has_sent_something():
    async with SimWorld() as world:
        world.set_access("server", Access(nat=Nat.FULL_CONE))
        world.host("boot")
        server, client = world.host("server"), world.host("client")
        Receiver(server)
        client.learn(server.me, server.addrs)
        with pytest.raises(PeerLost):
            await client.open_stream(server.me, "/test/sink")
        await server.bootstrap()
        assert server.reachability() is Reachability.PUBLIC
        await client.open_stream(server.me, "/test/sink")
        assert client.path(server.me).direct


async def test_a_relayed_path_has_the_latency_and_the_links_of_both_legs():
    async with SimWorld() as world:
        relay, server, client = await net(world, relay=Access(1 * MB, 2 * MB))
        assert "/p2p-circuit/" in server.addrs[0]
        receiver = Receiver(server)
        stream = await open_to(client, receiver)
        path = client.path(server.me)
        assert not path.direct
        assert path.address.startswith(relay.addrs[0])
        assert path.rtt_s == pytest.approx(4 * TO_RELAY_S)
        begun = trio.current_time()
        await stream.send_all(noise(10_000))
        await trio.sleep(5)
        assert bytes(receiver.data[1]) == noise(10_000)
        expected = 2 * TO_RELAY_S + wire_bytes(10_000) / MB + wire_bytes(10_000) / (2 * MB)
        assert receiver.last_at - begun == pytest.approx(expected, rel=0.001)
        assert not client.path(server.me).direct  # two symmetric NATs never punch through


async def test_two_circuits_share_the_relays_uplink():
    async with SimWorld() as world:
        _, server, client = await net(world, relay=Access(100_000, None))
        other = world.host("other")
        receiver = Receiver(server)
        other.learn(server.me, server.addrs)
        world.set_access("other", Access(nat=Nat.SYMMETRIC))
        streams = [await open_to(host, receiver) for host in (client, other)]
        begun = trio.current_time()
        for stream in streams:
            world.nursery.start_soon(stream.send_all, bytes(100_000))
        await trio.sleep(20)
        assert sum(size for _, _, size in receiver.log) == 200_000
        assert receiver.last_at - begun == pytest.approx(2.0 * 1.05, rel=0.1)


@pytest.mark.parametrize(
    ("server", "client", "works"),
    [
        (Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED, True),
        (Nat.PORT_RESTRICTED, Nat.PUBLIC, True),
        (Nat.SYMMETRIC, Nat.FULL_CONE, True),
        (Nat.SYMMETRIC, Nat.PORT_RESTRICTED, False),
    ],
)
async def test_punching_moves_open_streams_to_the_direct_path(server, client, works):
    async with SimWorld() as world:
        _, near, far = await net(world, server, client)
        receiver = Receiver(near)
        stream = await open_to(far, receiver)
        assert not far.path(near.me).direct
        await stream.send_all(b"a" * 1000)
        await trio.sleep(3)
        path = far.path(near.me)
        assert path.direct == near.path(far.me).direct == works
        begun = trio.current_time()
        await stream.send_all(b"b" * 1000)
        await trio.sleep(1)
        assert bytes(receiver.data[1]) == b"a" * 1000 + b"b" * 1000
        latency_s = DIRECT_S if works else 2 * TO_RELAY_S
        assert receiver.last_at - begun == pytest.approx(latency_s)
        assert path.rtt_s == pytest.approx(2 * latency_s)
        world.kill("relay")
        await trio.sleep(1)
        if works:
            await stream.send_all(b"c")
            assert far.path(near.me).direct
        else:
            with pytest.raises(PeerLost, match="relay"):
                await stream.send_all(b"c")
            assert far.path(near.me) is None


async def test_limits_of_relays():
    async with SimWorld() as world:
        _, server, client = await net(world, limits=RelayLimits(circuit_bytes=50_000))
        stream = await open_to(client, Receiver(server))
        async with client.peer_events() as events:
            for _ in range(5):
                await stream.send_all(bytes(10_000))
            await trio.sleep(1)
            await stream.send_all(b"and one more")
            with pytest.raises(PeerLost, match="too many bytes"):
                await stream.receive_some()
            assert await anext(events) == PeerEvent(server.me, False)
    async with SimWorld() as world:
        _, server, client = await net(world, limits=RelayLimits(circuit_s=30))
        stream = await open_to(client, Receiver(server))
        begun = trio.current_time()
        with pytest.raises(PeerLost, match="time is over"):
            await stream.receive_some()
        assert trio.current_time() - begun == pytest.approx(30, abs=1)
    async with SimWorld() as world:
        _, server, client = await net(world, limits=RelayLimits(reservations_max=1, circuits_max=0))
        assert [host.addrs[0].count("p2p-circuit") for host in (server, client)] == [1, 0]
        with pytest.raises(PeerLost, match="no relay"):
            await open_to(client, Receiver(server))


async def test_a_relay_that_is_cut_off_silences_its_circuits():
    async with SimWorld() as world:
        _, server, client = await net(world)
        receiver = Receiver(server)
        stream = await open_to(client, receiver)
        world.partition(["relay"])
        await stream.send_all(b"late")
        await trio.sleep(2)
        assert not receiver.log
        world.heal()
        await trio.sleep(1)
        assert bytes(receiver.data[1]) == b"late"
        world.hang("relay")
        with pytest.raises(PeerLost, match="heartbeat"):
            await stream.receive_some()


async def test_a_reservation_ends_with_its_connection_and_is_made_again():
    async with SimWorld() as world:
        relay, server, _ = await net(world)
        await server.close_peer(relay.me)
        assert server.addrs == (server.address,)
        await trio.sleep(1)
        assert await server.bootstrap() == 1
        assert "/p2p-circuit/" in server.addrs[0]
