"""The real network keeps every promise of the port: py-libp2p over TCP on loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio

from p2pllm.config import local
from p2pllm.net import Identity, Libp2pNetwork, open_network
from p2pllm.ports import Network
from tests.net.conformance import Body, all_bodies, check

pytestmark = pytest.mark.real_clock


class LoopbackArm:
    """Nodes of one process, on sockets."""

    pause_s = 6.0
    loss_s = 5.0

    @asynccontextmanager
    async def networks(self, count: int) -> AsyncGenerator[Sequence[Network]]:
        config = replace(local().net, heartbeat_interval_s=1.0, heartbeat_timeout_s=3.0)
        async with AsyncExitStack() as stack:
            nodes: list[Libp2pNetwork] = []
            for _ in range(count):
                network = open_network(
                    config,
                    identity=Identity.ephemeral(),
                    wall_time=time.time,
                    listen=["/ip4/127.0.0.1/tcp/0"],
                    bootstrap=nodes[0].addrs if nodes else (),
                )
                nodes.append(await stack.enter_async_context(network))
            for node in nodes:
                for other in nodes:
                    node.learn(other.me, other.addrs)
            for node in nodes[1:]:
                assert await node.bootstrap()
            yield nodes

    async def crash(self, network: Network) -> None:
        """The sockets go without a word, as when a process is killed."""
        assert isinstance(network, Libp2pNetwork)
        for listener in list(network._host.get_network().listeners.values()):
            await listener.close()
        for peer in network._peers.connected:
            for conn in network._peers.all(peer):
                await conn._link.close()

    def wall_time(self) -> float:
        return time.time()


@all_bodies
async def test_libp2p(promise: Body) -> None:
    with trio.fail_after(100):
        await check(promise, LoopbackArm())
