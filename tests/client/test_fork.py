"""Sessions that are forked, or moved to another chain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.route import Hop, Plan
from p2pllm.client.session import Session
from p2pllm.errors import UserError
from p2pllm.types import Span
from tests.client.harness import CONFIG, open_swarm
from tests.client.test_failover import rounded_logits

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 22, 12, 50, 6, 7, 19, 44, 31]


def client(push, **changes):
    return replace(CONFIG, client=replace(CONFIG.client, push=push, step_timeout_s=3.0, **changes))


async def step(session, reference, fed, *tokens):
    logits = await session.step(torch.tensor([tokens]))
    fed += tokens
    assert torch.equal(logits[0], reference.logits(fed)[-len(tokens) :])


@pytest.mark.parametrize("push", ["off", "on"])
async def test_a_fork_goes_its_own_way(push):
    async with open_swarm((0, 3), (3, 6), (0, 2), (2, 6)) as swarm:
        async with Session(swarm.context(client(push)), max_length=64) as session:
            one = []
            await step(session, swarm.reference, one, *IDS)
            for token in range(5):
                await step(session, swarm.reference, one, token)
            async with await session.fork() as fork:
                two = list(one)
                assert fork.position == session.position
                await step(session, swarm.reference, one, 1)
                await step(fork, swarm.reference, two, 2)
                fork.position = 4
                two = two[:4]
                await step(fork, swarm.reference, two, 3, 4)
                for name in ("s0", "s1"):
                    swarm.world.kill(name)
                await step(session, swarm.reference, one, 5)
                await step(fork, swarm.reference, two, 6)
                memory = session._live.history.memory_bytes
            await step(session, swarm.reference, one, 7)
            assert session._live.history.memory_bytes < memory
        assert session._live.history.memory_bytes == 0
        assert sum(len(server.sessions) for server in swarm.members[2:]) == 0


async def test_a_fork_of_a_session_that_was_never_stepped():
    async with open_swarm((0, 6)) as swarm, Session(swarm.context(client("on")), max_length=64) as session:
        async with await session.fork() as fork:
            await step(fork, swarm.reference, [], *IDS)
        await session.open(1)
        async with await session.fork() as fork:
            await step(fork, swarm.reference, [], *IDS)
        await session.aclose()
        with pytest.raises(UserError, match="not open"):
            await session.fork()


def chain(swarm, *legs):
    names = {server.name: server.peer for server in swarm.members}
    return Plan(tuple(Hop(names[name], Span(start, end)) for name, start, end in legs), 0.0)


@pytest.mark.parametrize("push", ["off", "on"])
@pytest.mark.parametrize("activations", ["fp32", "int8"])
async def test_a_session_moves_to_another_chain_and_back(push, activations):
    async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm:
        async with Session(swarm.context(client(push)), max_length=99, activations=activations) as session:
            out = [await session.step(torch.tensor([IDS]))]
            swarm.add_server("whole", Span(0, 6))
            swarm.add_server("left", Span(0, 3))
            swarm.add_server("right", Span(1, 6))
            routes = [
                [("s0", 0, 2), ("right", 2, 6)],
                [("left", 0, 3), ("right", 3, 6)],
                [("left", 0, 1), ("whole", 1, 6)],
                [("s0", 0, 2), ("s1", 2, 4), ("s2", 4, 6)],
                [("s0", 0, 2), ("whole", 2, 4), ("s2", 4, 6)],
            ]
            fed = list(IDS)
            for number, route in enumerate(routes):
                assert await session.reroute(chain(swarm, *route))
                assert session.route == chain(swarm, *route).hops
                for token in (number, number + 9):
                    out.append(await session.step(torch.tensor([[token]])))
                    fed.append(token)
            assert session.recoveries == 0
            names = ("s0", "s1", "s2")
            swarm.world.kill("whole")
            out.append(await session.step(torch.tensor([[9]])))
            fed.append(9)
            assert [server.name for server in swarm.members if len(server.sessions)][:1] == [names[0]]
        assert torch.equal(torch.cat([logits[0] for logits in out]), rounded_logits(swarm.reference, fed, activations))


@pytest.mark.parametrize("push", ["off", "on"])
@pytest.mark.parametrize("moment", range(0, 30, 3))
async def test_a_move_that_fails_changes_nothing(push, moment):
    async with (
        open_swarm((0, 2), (2, 4), (4, 6)) as swarm,
        Session(swarm.context(client(push)), max_length=64) as session,
    ):
        fed = []
        await step(session, swarm.reference, fed, *IDS)
        swarm.add_server("left", Span(0, 3))
        swarm.add_server("right", Span(3, 6))
        swarm.world.nursery.start_soon(kill_later, swarm.world, "right", 0.01 * moment)
        route = session.route
        moved = await session.reroute(chain(swarm, ("left", 0, 3), ("right", 3, 6)))
        assert moved or session.route == route
        await trio.sleep(1.0)
        for token in range(3):
            await step(session, swarm.reference, fed, token)


async def kill_later(world, name, seconds):
    await trio.sleep(seconds)
    world.kill(name)


@pytest.mark.parametrize("push", ["off", "on"])
async def test_a_clearly_better_chain_is_moved_to_by_itself(push):
    async with open_swarm((0, 3), (3, 6), latency_s=0.2) as swarm:
        context = swarm.context(client(push))
        session = Session(context, max_length=200)
        fed = []
        await step(session, swarm.reference, fed, *IDS)
        swarm.add_server("best", Span(0, 6))
        swarm.world.set_latency("client", "best", 0.01)
        context.peers.pinged(swarm.members[-1].peer, 0.02, trio.current_time())
        swarm.members[-1].announcement = replace(
            swarm.members[-1].announcement,
            throughput=replace(swarm.members[-1].announcement.throughput, inference=900.0),
        )
        for token in range(60):
            await step(session, swarm.reference, fed, token)
            await trio.sleep(0.2)
        assert session.route == chain(swarm, ("best", 0, 6)).hops
        assert session.recoveries == 0
        assert [len(server.sessions) for server in swarm.members] == [0, 0, 1]
        await session.aclose()
