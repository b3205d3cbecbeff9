"""Who fails is left alone for a while and used again when it is back; who is full or forgot us is not blamed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.session import Session
from p2pllm.types import Span
from tests.client.harness import CONFIG, Swarm, open_swarm

SETTINGS = replace(
    CONFIG,
    client=replace(
        CONFIG.client, step_timeout_s=4.0, step_timeout_min_s=1.0, ban_s=5.0, ban_heal_s=60.0, patience_s=120.0
    ),
)
IDS = torch.tensor([[3, 5, 7, 11]])


async def used(swarm: Swarm, context) -> str:
    """Who serves a new session; the first server is made the better one."""
    async with Session(context, max_length=32) as session:
        await session.step(IDS)
        (hop,) = session.route
    return next(server.name for server in swarm.members if server.peer == hop.peer_id)


def prefer_first(swarm: Swarm) -> None:
    swarm.world.set_latency("client", "s1", 0.2)
    swarm.members[1].announcement = replace(swarm.members[1].announcement, queue=50)


@pytest.mark.parametrize("fault", ["hang", "partition"])
async def test_a_server_that_was_banned_and_recovers_is_used_again(fault):
    async with open_swarm((0, 6), (0, 6), config=SETTINGS) as swarm:
        prefer_first(swarm)
        context, first = swarm.context(), swarm.members[0].peer
        assert await used(swarm, context) == "s0"
        lengths = []
        for _ in range(3):
            if fault == "hang":
                swarm.world.hang("s0")
            else:
                swarm.world.partition(["s0"])
            assert await used(swarm, context) == "s1"
            now = trio.current_time()
            assert context.peers.banned(first, now)
            lengths.append(context.peers.statistics(now))
            if fault == "hang":
                swarm.world.resume("s0")
            else:
                swarm.world.heal()
            assert await used(swarm, context) == "s1"  # still banned, whatever it does meanwhile
            while context.peers.banned(first, trio.current_time()):  # noqa: ASYNC110 - what ends a ban is the clock
                await trio.sleep(0.5)
            assert await used(swarm, context) == "s0"
        bans = [next(s for s in snapshot if s.peer == first).failures for snapshot in lengths]
        assert bans == sorted(bans)
        assert bans[-1] > bans[0]  # each ban was longer than the one before
        await trio.sleep(4 * SETTINGS.client.ban_heal_s)
        assert all(s.failures == 0 for s in context.peers.statistics(trio.current_time()))


async def test_a_server_that_comes_back_empty_ends_a_gap():
    """The only server dies in mid-session and comes back without caches: the wait ends with it."""
    async with open_swarm((0, 6), config=SETTINGS) as swarm:
        context = swarm.context()

        async def come_back() -> None:
            await trio.sleep(12.0)
            old = swarm.members.pop()
            swarm.add_server(old.name, Span(0, 6))

        async with Session(context, max_length=32) as session:
            whole = await session.step(IDS)
            swarm.world.kill("s0")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_back)
                began = trio.current_time()
                await session.step(IDS)
            assert trio.current_time() - began < 40.0
            assert torch.equal(whole[0], swarm.reference.logits(IDS[0].tolist()))


async def test_full_and_forgetful_servers_are_not_blamed():
    small = replace(
        SETTINGS, server=replace(SETTINGS.server, cache_tokens=64, alloc_timeout_s=0.5, idle_timeout_s=60.0)
    )
    async with open_swarm((0, 6), (0, 6), config=small) as swarm:
        prefer_first(swarm)
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            await session.step(IDS)
            assert await used(swarm, context) == "s1"  # BUSY: the first one is full
            now = trio.current_time()
            assert all(s.failures == 0 for s in context.peers.statistics(now))
            await trio.sleep(small.server.idle_timeout_s + 60)  # the server forgets the session: GONE
            await session.step(IDS)
            assert session.recoveries > 0
        assert all(s.failures == 0 for s in context.peers.statistics(trio.current_time()))
