"""A client from ports: what runs behind it begins and ends with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from p2pllm.config import Config
from p2pllm.errors import UserError
from sim.swarm import open_swarm
from sim.toy import ToyModel

TOY = ToyModel(4)
CONFIG = replace(Config(), server=replace(Config().server, cache_tokens=256))


async def test_the_ways_to_servers_are_measured_while_a_model_is_open():
    async with open_swarm(TOY, [(0, 2), (2, 4)], CONFIG, latency_s=0.03) as swarm:
        async with swarm.client(pings=True) as client:
            await trio.sleep(3 * CONFIG.client.ping_interval_s)
            now = trio.current_time()
            for server in swarm.servers.values():
                assert client.peers.rtt_s(server.peer) == pytest.approx(0.06)
                assert client.peers.pinged_at(server.peer) > now - 2 * CONFIG.client.ping_interval_s
        await trio.sleep(100)
        assert all(client.peers.pinged_at(server.peer) <= now for server in swarm.servers.values())


async def test_an_error_of_the_caller_leaves_as_it_was_raised():
    async with open_swarm(TOY, [(0, 4)], CONFIG) as swarm:
        caught: list[BaseException] = []
        try:
            async with swarm.client() as client:
                await client.model.generate([[1, 2]], max_new_tokens=-1)
        except UserError as exc:
            caught.append(exc)
        assert len(caught) == 1
