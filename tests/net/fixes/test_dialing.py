"""p2pllm.net.fixes.dialing: all addresses at once, no sleep, no grudge, no strangers."""

from __future__ import annotations

import pytest
import trio
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pllm.errors import PeerLost
from p2pllm.ports import Stream
from tests.net.fixes.stock import stock_hosts
from tests.net.memory import MemoryNet, address, identity, networks


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def test_without_the_fix_a_dial_sleeps_and_one_dead_address_is_the_end() -> None:
    async with stock_hosts(MemoryNet(), 3) as (a, b, c):
        started = trio.current_time()
        await b.connect(PeerInfo(a.get_id(), [Multiaddr(address(1))]))
        assert trio.current_time() - started >= 0.25
        with pytest.raises(SwarmException):
            await c.connect(PeerInfo(a.get_id(), [Multiaddr(address(99)), Multiaddr(address(1))]))


async def test_without_the_fix_a_failure_is_held_against_the_peer() -> None:
    async with stock_hosts(MemoryNet()) as (a, b):
        with pytest.raises(SwarmException):
            await b.connect(PeerInfo(a.get_id(), [Multiaddr(address(99))]))
        with pytest.raises(SwarmException, match="negative cache"):
            await b.connect(PeerInfo(a.get_id(), [Multiaddr(address(1))]))


async def test_one_good_address_is_enough_and_takes_no_longer() -> None:
    net = MemoryNet(latency_s=0.01)
    net.silent_addresses.add("10.0.0.99")
    async with networks(net, 2) as (a, b):
        a.serve("/echo", echo)
        b.learn(a.me, [address(98), address(99), *a.addrs])
        started = trio.current_time()
        await b.open_stream(a.me, "/echo")
        assert trio.current_time() - started < 0.25


async def test_a_failure_is_forgotten_at_once() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        a.serve("/echo", echo)
        b.learn(a.me, [address(98)])
        with pytest.raises(PeerLost):
            await b.open_stream(a.me, "/echo")
        b.learn(a.me, a.addrs)
        await b.open_stream(a.me, "/echo")


async def test_libp2ps_own_protocols_dial_through_us() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        b.learn(a.me, a.addrs)
        conns = await b._host.get_network().dial_peer(ID.from_base58(a.me))
        assert len(conns) == 1
        with pytest.raises(SwarmException, match="no address is known"):
            await b._host.get_network().dial_peer(ID.from_base58(identity(9).peer_id))


async def test_strangers_are_not_dialled() -> None:
    net = MemoryNet()
    async with networks(net, 3) as (a, b, c):
        peer = ID.from_base58(c.me)
        a._host.get_peerstore().add_addrs(peer, [Multiaddr(address(3))], 3600)
        await b.bootstrap()
        await b.close_peer(a.me)
        dialled = len(net.dialled)
        await trio.sleep(300)
        assert ("10.0.0.3", 4001) not in net.dialled[dialled:]
