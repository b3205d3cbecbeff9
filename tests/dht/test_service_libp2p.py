"""p2pllm.dht.service over the real network: libp2p hosts on loopback, KadDHT as the carrier."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import pytest
import trio

from p2pllm.config import Config, local
from p2pllm.dht.service import Directory
from p2pllm.local.clock import new_rng, token_bytes
from p2pllm.net import Identity, open_network
from p2pllm.ports import Ports
from p2pllm.types import ServerState, Span
from sim.compute import SimCompute
from sim.storage import MemoryStorage
from tests.dht.swarm import MODEL, announcement

pytestmark = pytest.mark.real_clock

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


async def open_directory(stack: AsyncExitStack, nursery, config: Config, bootstrap=(), models=(MODEL,)):
    network = await stack.enter_async_context(
        open_network(
            config.net, identity=Identity.ephemeral(), wall_time=time.time, listen=LOOPBACK, bootstrap=bootstrap
        )
    )
    ports = Ports(network, SimCompute(), MemoryStorage(), time.time, new_rng(), token_bytes)
    directory = Directory(ports, config, models)
    await nursery.start(directory.run)
    return network, directory


async def until(directory, condition) -> float:
    begun = trio.current_time()
    with trio.fail_after(30):
        while not condition():
            await directory.wait_changed()
    return trio.current_time() - begun


async def test_servers_and_a_client_meet_change_and_part():
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        boot, open_to_all = await open_directory(stack, nursery, local(), models=None)
        servers = []
        for number in range(3):
            network, directory = await open_directory(stack, nursery, local(), boot.addrs)
            directory.announce(announcement(Span(number, number + 1)))
            servers.append((network, directory))
        everybody = {network.me for network, _ in servers}
        for _, directory in servers:
            await until(directory, lambda d=directory: {a.peer for a in d.view.servers(MODEL)} == everybody)
        _, client = await open_directory(stack, nursery, local(), boot.addrs)
        took = await until(client, lambda: {a.peer for a in client.view.servers(MODEL)} == everybody)
        assert took < 10
        assert client.view.gaps(MODEL, 8) == (3, 4, 5, 6, 7)
        assert await boot.find(f"/p2pllm/{MODEL}") != ()
        await servers[0][1].withdraw()
        gone = servers[0][0].me
        await until(client, lambda: client.view.get(MODEL, gone).state is ServerState.OFFLINE)
        assert len(open_to_all.view.servers(MODEL)) == 2
        assert {peer for peer, _ in client.members()} >= everybody - {gone}
        nursery.cancel_scope.cancel()
