"""p2pllm.net.fixes.inbound_slots: a node accepts connections for ever, not a fixed number of times."""

from __future__ import annotations

import pytest
import trio
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException

from p2pllm.config import NetConfig
from p2pllm.errors import PeerLost
from tests.net.fixes.stock import connect, stock_hosts
from tests.net.memory import MemoryNet, networks


async def test_without_the_fix_slots_are_used_up() -> None:
    few = ConnectionConfig(max_connections=3, min_connections=0, low_watermark=0, high_watermark=3)
    async with stock_hosts(MemoryNet(), connection_config=few) as (a, b):
        for _ in range(3):
            conn = await connect(b, a)
            await conn.close()
            await trio.sleep(1)
        assert not a.get_network().get_connections()
        with pytest.raises(SwarmException):
            await connect(b, a)


async def test_with_it_they_come_back() -> None:
    async with networks(MemoryNet(), 2, NetConfig(connections_max=3)) as (a, b):
        for _ in range(10):
            assert await b.bootstrap() == 1
            await b.close_peer(a.me)
            await trio.sleep(1)
        assert a._host.get_network()._inbound_limiter.borrowed_tokens == 0


async def test_more_than_the_limit_at_once_are_refused() -> None:
    async with networks(MemoryNet(), 5, NetConfig(connections_max=3, dial_timeout_s=3.0)) as (a, *others):
        for node in others[:3]:
            node.learn(a.me, a.addrs)
            await node._dialer.connect(a.me)
        others[3].learn(a.me, a.addrs)
        with pytest.raises(PeerLost):
            await others[3]._dialer.connect(a.me)
