"""A session opens soon although servers fell silent, and waits in line, without counting it as a failure, for room."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.session import Session
from tests.client.harness import CONFIG, open_swarm

IDS = torch.tensor([[3, 5, 7, 11]])
SMALL = replace(CONFIG, server=replace(CONFIG.server, cache_tokens=64))


@pytest.mark.parametrize("kept", [True, False])
async def test_servers_that_fell_silent_are_passed_by_within_seconds(kept):
    async with open_swarm((0, 3), (3, 6), (0, 3), (3, 6), (0, 3), (3, 6)) as swarm:
        for name in ("s4", "s5"):
            swarm.world.set_latency("client", name, 0.1)
        for server in swarm.members[4:]:
            server.announcement = replace(server.announcement, queue=50)
        context = swarm.context()
        if kept:
            for _ in range(2):
                async with Session(context, max_length=32) as session:
                    await session.step(IDS)
        swarm.world.partition(["client", "s4", "s5"])
        began = trio.current_time()
        async with Session(context, max_length=32, rows=1) as session:
            await session.open(1)
            took_s = trio.current_time() - began
            assert [hop.peer_id for hop in session.route] == [server.peer for server in swarm.members[4:]]
            assert session.recoveries > 0
        assert took_s < 12.0  # two attempts to connect, 5 s each, and the third that works


async def test_to_wait_for_room_is_no_failure():
    async with open_swarm((0, 3), (3, 6), config=SMALL) as swarm:
        context = swarm.context()
        async with trio.open_nursery() as nursery:
            first = await nursery.start(hold, context, 40.0)
            began = trio.current_time()
            async with Session(context, max_length=64) as session:
                await session.step(IDS)
                assert 39.0 < trio.current_time() - began < 44.0
                assert session.recoveries == 0
                assert session.route == first


async def test_nobody_holds_room_while_waiting_for_more():
    """Three servers with room for one, which all want together: the one after the other, without pauses."""
    async with open_swarm((0, 2), (2, 4), (4, 6), config=SMALL) as swarm:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for i in range(10):
                nursery.start_soon(hold, swarm.context(name=f"client{i}"), 5.0)
        assert 50.0 < trio.current_time() - began < 56.0


async def hold(context, seconds, *, task_status=trio.TASK_STATUS_IGNORED):
    async with Session(context, max_length=64) as session:
        await session.step(IDS)
        task_status.started(session.route)
        await trio.sleep(seconds)
        assert session.recoveries == 0
