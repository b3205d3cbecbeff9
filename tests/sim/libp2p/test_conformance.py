"""The product's real adapter keeps every promise of the port in virtual time, too."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from p2pllm.ports import Network
from sim.libp2p.host import Libp2pHost
from sim.libp2p.world import Libp2pWorld
from sim.world import EPOCH_S
from tests.net.conformance import Body, all_bodies, check


class Libp2pArm:
    """Hosts of one simulated world."""

    pause_s = 20.0
    loss_s = 10.0

    @asynccontextmanager
    async def networks(self, count: int) -> AsyncGenerator[Sequence[Network]]:
        async with Libp2pWorld(seed=count) as world:
            hosts = [await world.start(f"host{number}") for number in range(count)]
            for host in hosts:
                world.set_bandwidth(host.name, 10e6)
                for other in hosts:
                    host.learn(other.me, other.addrs)
            for host in hosts[1:]:
                assert await host.bootstrap()
            yield hosts

    async def crash(self, network: Network) -> None:
        assert isinstance(network, Libp2pHost)
        network.world.kill(network.name)

    def wall_time(self) -> float:
        return EPOCH_S


@all_bodies
async def test_libp2p(promise: Body) -> None:
    await check(promise, Libp2pArm())
