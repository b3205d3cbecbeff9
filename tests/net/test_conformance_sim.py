"""The simulated network keeps every promise of the port."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from p2pllm.ports import Network
from sim.host import SimNetwork
from sim.network import EPOCH_S, SimWorld
from tests.net.conformance import Body, all_bodies, check


class SimArm:
    """Hosts of one simulated world."""

    pause_s = 20.0
    loss_s = 10.0

    @asynccontextmanager
    async def networks(self, count: int) -> AsyncGenerator[Sequence[Network]]:
        async with SimWorld(seed=count) as world:
            hosts = [world.host(f"host{number}") for number in range(count)]
            for host in hosts:
                world.set_bandwidth(host.name, 10e6)
                for other in hosts:
                    host.learn(other.me, other.addrs)
            for host in hosts[1:]:
                assert await host.bootstrap()
            yield hosts

    async def crash(self, network: Network) -> None:
        assert isinstance(network, SimNetwork)
        network.world.kill(network.name)

    def wall_time(self) -> float:
        return EPOCH_S


@all_bodies
async def test_sim(promise: Body) -> None:
    await check(promise, SimArm())
