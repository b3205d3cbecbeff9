"""Chains in which servers push: what they gain, and how they fall back to relaying."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.session import Session
from p2pllm.types import Span
from tests.client.harness import CONFIG, open_swarm

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 22, 12, 50, 6, 7, 19, 44, 31]


def ids(*rows):
    return torch.tensor(rows)


def client(push="on", **changes):
    return replace(CONFIG, client=replace(CONFIG.client, push=push, step_timeout_s=3.0, **changes))


async def generate(session, reference, fed, count):
    for index in range(count):
        token = (5 * index + 1) % 64
        logits = await session.step(ids([token]))
        fed.append(token)
        assert torch.equal(logits[0], reference.logits(fed)[-1:]), index


async def per_step(push, count=10):
    async with (
        open_swarm((0, 2), (2, 4), (4, 6), latency_s=0.05) as swarm,
        Session(swarm.context(client(push)), max_length=64) as session,
    ):
        fed = list(IDS)
        await session.step(ids(IDS))
        await generate(session, swarm.reference, fed, 1)
        began = trio.current_time()
        await generate(session, swarm.reference, fed, count)
        return (trio.current_time() - began) / count


async def test_a_pushed_step_takes_the_one_way_delays_and_a_relayed_one_twice_as_many():
    # 10 ms of compute per hop, 1 ms at each of the client's ends.
    assert await per_step("on") == pytest.approx(4 * 0.05 + 0.032, rel=0.05)
    assert await per_step("off") == pytest.approx(6 * 0.05 + 0.032, rel=0.05)


async def test_the_history_of_later_hops_arrives_behind():
    async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm:
        swarm.world.set_latency("client", "s0", 0.3)  # its copies come last
        async with Session(swarm.context(client()), max_length=128) as session:
            fed = list(IDS)
            await session.step(ids(IDS))
            lags = []
            for _ in range(30):
                await generate(session, swarm.reference, fed, 1)
                lags.append(max(len(leg.due) for leg in session._live.chain.legs))
            assert 0 < max(lags) <= 8
            swarm.add_server("spare", Span(2, 4))
            swarm.world.kill("s1")
            await generate(session, swarm.reference, fed, 3)
            assert session.recoveries == 1


@pytest.mark.parametrize("rows", [1, 3])
async def test_a_link_that_cannot_be_pushed_over_is_relayed_and_nobody_is_blamed(rows):
    async with open_swarm((0, 2), (2, 3), (3, 4), (4, 6)) as swarm:
        swarm.world.hosts["s1"].learn(swarm.members[2].peer, ())
        context = swarm.context(client(prefill_chunk_tokens=4))
        async with Session(context, max_length=64, rows=rows) as session:
            logits = await session.step(ids(*[IDS] * rows))
            assert torch.equal(logits[0], swarm.reference.logits(IDS))
            for index in range(4):
                logits = await session.step(ids(*[[index]] * rows))
                assert torch.equal(logits[-1], swarm.reference.logits([*IDS, *range(index + 1)])[-1:])
            assert session._live.chain.wired == (True, False, True)
            assert session.recoveries == 0
            assert not any(s.failures for s in context.peers.statistics(trio.current_time()))


async def test_a_partition_between_two_servers_costs_no_server():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context(client())
        async with Session(context, max_length=64) as session:
            fed = list(IDS)
            await session.step(ids(IDS))
            await generate(session, swarm.reference, fed, 2)
            swarm.world.hosts["s0"].learn(swarm.members[1].peer, ())
            for host in ("s0", "s1"):
                other = swarm.members[1 if host == "s0" else 0].peer
                await swarm.world.hosts[host].close_peer(other)
            await generate(session, swarm.reference, fed, 3)
            assert session.recoveries == 0
            assert not any(s.failures for s in context.peers.statistics(trio.current_time()))


async def test_streams_that_break_cost_no_server():
    async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm:
        context = swarm.context(client(prefill_chunk_tokens=3))
        async with Session(context, max_length=128) as session:
            fed = list(IDS)
            await session.step(ids(IDS))
            for victim in swarm.members:
                for delay in (0.0, 0.03, 0.06, 0.09):
                    swarm.world.nursery.start_soon(cut_later, context, victim.peer, delay)
                    await generate(session, swarm.reference, fed, 2)
                swarm.world.nursery.start_soon(cut_later, context, victim.peer, 0.07)
                logits = await session.step(ids(IDS))
                fed += IDS
                assert torch.equal(logits[0], swarm.reference.logits(fed)[-len(IDS) :])
            assert len(session.recovered) == 0
            assert not any(s.failures for s in context.peers.statistics(trio.current_time()))


async def cut_later(context, peer, seconds):
    await trio.sleep(seconds)
    await context.ports.network.close_peer(peer)


@pytest.mark.parametrize("moment", range(12))
async def test_a_cancelled_step_leaves_the_session_where_it_was(moment):
    async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm:
        async with Session(swarm.context(client(prefill_chunk_tokens=2)), max_length=64) as session:
            fed = list(IDS)
            await session.step(ids(IDS))
            await generate(session, swarm.reference, fed, 1)
            for _ in range(3):
                with trio.move_on_after(0.01 * moment):
                    await session.step(ids([4, 5, 6, 7, 8]))
                assert session.position == len(fed)
            await generate(session, swarm.reference, fed, 2)
            assert session.recovered == ()
        assert [len(server.sessions) for server in swarm.members] == [0, 0, 0]


async def test_auto_pushes_unless_the_straight_way_is_known_to_be_longer():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context(client("auto"))
        async with Session(context, max_length=64, rows=1) as session:
            await session.step(ids([1]))
            assert session._live.chain.wired == (True,)
        one, two = swarm.members
        one.announcement = replace(one.announcement, pings=((two.peer, 0.5),))
        for peer in (one.peer, two.peer):
            context.peers.pinged(peer, 0.04, trio.current_time())
        async with Session(context, max_length=64, rows=1) as session:
            await session.step(ids([1]))
            assert session._live.chain.wired == ()
