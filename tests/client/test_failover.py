"""Sessions that lose their servers, and give the tokens of the model in one piece all the same."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.context import HopLost
from p2pllm.client.session import Session
from p2pllm.errors import ClientFault, ServerFault
from p2pllm.types import Span
from p2pllm.wire.messages import FaultKind
from p2pllm.wire.tensor import round_trip
from tests.client.harness import CONFIG, open_swarm

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 22, 12, 50, 6, 7, 19, 44, 31]


def ids(*rows):
    return torch.tensor(rows)


@pytest.fixture(params=["off", "on"], autouse=True)
def mode(request, monkeypatch):
    """Everything holds in relayed and in push mode."""
    monkeypatch.setattr("tests.client.test_failover.PUSH", request.param)


PUSH = "off"


def client(**changes):
    return replace(CONFIG, client=replace(CONFIG.client, step_timeout_s=3.0, push=PUSH, **changes))


async def generate(session, reference, fed, count, before=None):
    """Greedy tokens, one by one; each step's logits are those of the model in one piece."""
    for index in range(count):
        if before is not None:
            await before(index)
        token = (7 * index + 3) % 64
        logits = await session.step(ids([token]))
        fed.append(token)
        assert torch.equal(logits[0], reference.logits(fed)[-1:]), index


async def after(seconds, call, *args):
    await trio.sleep(seconds)
    call(*args)


def using(swarm, session):
    """The names of the servers of a session, in order."""
    names = {server.peer: server.name for server in swarm.members}
    return [names[hop.peer_id] for hop in session.route]


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_killed_server_is_replaced_and_fed_the_history(lost):
    async with open_swarm((0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6)) as swarm:
        context = swarm.context(client())
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            fed = list(IDS)
            await generate(session, swarm.reference, fed, 3)
            victim = using(swarm, session)[lost]
            survivors = [hop.peer_id for hop in session.route]
            swarm.world.kill(victim)
            await generate(session, swarm.reference, fed, 3)
            assert victim not in using(swarm, session)
            assert sum(hop.peer_id in survivors for hop in session.route) == 2
            (recovery,) = session.recovered
            assert recovery.span == session.route[lost].span
            assert recovery.replacement == (session.route[lost],)
            assert 0.0 < recovery.seconds < 1.0
            assert recovery.replayed == len(IDS) + 3
            assert session.recoveries == 1
            assert session.exact
        assert sum(len(server.sessions) for server in swarm.members if server.name != victim) == 0


@pytest.mark.parametrize("activations", ["fp32", "int8"])
@pytest.mark.parametrize("spares", [((0, 6),), ((1, 3), (3, 5)), ((0, 3), (3, 6)), ((2, 3), (3, 4)), ((1, 4), (3, 6))])
async def test_replacements_may_have_other_borders(activations, spares):
    """Rounding stays at the borders of the first chain, wherever the new ones are."""
    async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm:
        async with Session(swarm.context(client()), max_length=64, activations=activations) as session:
            steps = [IDS, [1], [2], [3, 4], [5]]
            plain = []
            hidden = {}
            for index, step in enumerate(steps):
                if index == 2:
                    for number, (start, end) in enumerate(spares):
                        swarm.add_server(f"spare{number}", Span(start, end))
                    swarm.world.kill("s1")
                if index == 4:
                    for number in range(len(spares)):
                        swarm.world.kill(f"spare{number}")
                        swarm.add_server(f"again{number}", Span(*spares[number]))
                plain.append(await session.step(ids(step)))
            assert len(session.recovered) >= 2
        fed = [token for step in steps for token in step]
        expected = rounded_logits(swarm.reference, fed, activations)
        assert torch.equal(torch.cat([logits[0] for logits in plain]), expected), hidden


def rounded_logits(reference, fed, codec):
    from p2pllm.model.span import Segment

    def rounded(hidden):
        return torch.from_numpy(round_trip(hidden.numpy(), "fp32", codec))

    hidden = reference.ends.embed(fed)
    for span in (Span(0, 2), Span(2, 4), Span(4, 6)):
        hidden = reference.blocks.run(rounded(hidden), [Segment(len(fed))], span=span)
    return reference.ends.head(rounded(hidden))


@pytest.mark.parametrize("moment", range(0, 40, 2))
async def test_a_server_is_lost_in_the_middle_of_a_long_prefill(moment):
    async with open_swarm((0, 2), (2, 4), (4, 6), (0, 3), (3, 6), (1, 5)) as swarm:
        context = swarm.context(client(prefill_chunk_tokens=2))
        async with Session(context, max_length=128, rows=1) as session:
            for number, victim in enumerate(using(swarm, session)[: 1 + moment % 3]):
                swarm.world.nursery.start_soon(after, 0.015 * moment + 0.05 * number, swarm.world.kill, victim)
            for index, (start, end) in enumerate([(0, 2), (2, 4), (4, 6), (0, 6)]):
                swarm.add_server(f"spare{index}", Span(start, end))
            fed = IDS * 3
            logits = await session.step(ids(fed))
            assert torch.equal(logits[0], swarm.reference.logits(fed))
            await trio.sleep(1.0)
            await generate(session, swarm.reference, fed, 2)
            assert session.recoveries >= 1


async def test_all_servers_at_once():
    async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm, Session(swarm.context(client()), max_length=64) as session:
        await session.step(ids(IDS))
        fed = list(IDS)
        for name in ("s0", "s1", "s2"):
            swarm.world.kill(name)
        for index, (start, end) in enumerate([(0, 3), (2, 6)]):
            swarm.add_server(f"spare{index}", Span(start, end))
        await generate(session, swarm.reference, fed, 3)
        assert len(session.recovered) == 3


@pytest.mark.parametrize("moment", range(24))
async def test_the_replacement_fails_too_whatever_it_does(moment):
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context(client(prefill_chunk_tokens=3))
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            fed = list(IDS)
            for index, span in enumerate([(3, 6), (3, 4), (4, 6), (3, 6)]):
                swarm.add_server(f"spare{index}", Span(*span), throughput=faster(99.0 - 10 * index))
            swarm.world.kill("s1")
            swarm.world.nursery.start_soon(after, 0.1 + moment * 0.02, swarm.world.kill, "spare0")
            swarm.world.nursery.start_soon(after, 0.3 + moment * 0.02, swarm.world.kill, "spare1")
            await generate(session, swarm.reference, fed, 6)


def faster(speed):
    from p2pllm.dht.record import Throughput

    return Throughput(speed, 5000.0, 1000.0)


async def test_a_hung_server_is_noticed_at_the_deadline():
    async with (
        open_swarm((0, 3), (3, 6), (3, 6)) as swarm,
        Session(swarm.context(client()), max_length=64) as session,
    ):
        await session.step(ids(IDS))
        fed = list(IDS)
        await generate(session, swarm.reference, fed, 2)
        victim = using(swarm, session)[1]
        swarm.world.hang(victim)
        began = trio.current_time()
        await generate(session, swarm.reference, fed, 1)
        assert trio.current_time() - began < 5.0
        swarm.world.resume(victim)
        await generate(session, swarm.reference, fed, 3)
        assert "no answer within" in session.recovered[0].cause


@pytest.mark.parametrize("kind", [FaultKind.GONE, FaultKind.INTERNAL])
@pytest.mark.parametrize("moment", range(0, 30, 5))
async def test_a_server_that_ends_the_session(kind, moment):
    async with open_swarm((0, 3), (3, 6), (3, 6)) as swarm:
        context = swarm.context(client(prefill_chunk_tokens=1))
        async with Session(context, max_length=128, rows=1) as session:
            victim = next(s for s in swarm.members if s.name == using(swarm, session)[1])

            def end():
                for hosted in list(victim.sessions._sessions.values()):
                    channel = hosted.channel
                    hosted.end(kind, "it had enough")
                    swarm.world.nursery.start_soon(channel.flush)

            swarm.world.nursery.start_soon(after, 0.07 + 0.01 * moment, end)
            fed = IDS * 2
            logits = await session.step(ids(fed))
            assert torch.equal(logits[0], swarm.reference.logits(fed))
            assert "it had enough" in session.recovered[0].cause
            blamed = [s.failures for s in context.peers.statistics(trio.current_time()) if s.peer == victim.peer]
            assert blamed == [0 if kind is FaultKind.GONE else 1]


async def test_the_only_server_may_forget_the_session():
    """It is opened there again once it had a moment, and fed everything."""
    async with open_swarm((0, 3), (3, 6)) as swarm, Session(swarm.context(client()), max_length=64) as session:
        await session.step(ids(IDS))
        fed = list(IDS)
        for hosted in list(swarm.members[1].sessions._sessions.values()):
            await swarm.members[1].sessions._end(hosted, "sorry")
        await generate(session, swarm.reference, fed, 2)
        assert using(swarm, session) == ["s0", "s1"]


async def test_a_survivor_may_serve_the_lost_blocks_too():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context(client())
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            swarm.members[0].announcement = replace(swarm.members[0].announcement, span=Span(0, 3))
            both = swarm.add_server("both", Span(0, 6))
            fed = list(IDS)
            swarm.world.kill("s0")
            await generate(session, swarm.reference, fed, 2)
            assert using(swarm, session) == ["both", "s1"]
            swarm.world.kill("s1")
            await generate(session, swarm.reference, fed, 2)
            assert using(swarm, session) == ["both", "both"]
            assert len(both.sessions) == 2
        assert len(both.sessions) == 0


async def test_beams_and_rollbacks_survive():
    from tests.client.test_reorder import feed

    async with open_swarm((0, 3), (3, 6), (0, 3), (3, 6)) as swarm:
        reference = swarm.reference
        async with Session(swarm.context(client(prefill_chunk_tokens=4)), max_length=64, rows=3) as session:
            await feed(session, reference, [IDS, [], [7, 7]])
            await feed(session, reference, [[1], [2], [3]], sources=(0, 0, 2))
            swarm.world.kill(using(swarm, session)[1])
            out = await feed(session, reference, [[4], [5], [6]], sources=(1, 0, 2))
            rows = [[*IDS, 2, 4], [*IDS, 1, 5], [7, 7, 3, 6]]
            for row, logits in zip(rows, out, strict=True):
                assert torch.equal(logits, reference.logits(row)[-1])
            session.rewind((19, 5, 3))
            swarm.world.kill(using(swarm, session)[0])
            out = await feed(session, reference, [[8], [9], [10]], sources=(2, 0, 1))
            for row, logits in zip([[7, 7, 3, 8], [*rows[0], 9], [*IDS[:5], 10]], out, strict=True):
                assert torch.equal(logits, reference.logits(row)[-1])


@pytest.mark.parametrize("moment", range(10))
async def test_a_reorder_that_was_cancelled_is_not_done_twice(moment):
    from tests.client.test_reorder import feed

    async with open_swarm((0, 3), (3, 6)) as swarm:
        reference = swarm.reference
        async with Session(swarm.context(client(prefill_chunk_tokens=2)), max_length=64, rows=3) as session:
            await feed(session, reference, [[1, 2], [3], [4, 5, 6]])
            with trio.move_on_after(0.01 * moment) as patience:
                await feed(session, reference, [[10, 11], [12, 13], [14]], sources=(1, 1, 0))
            assert patience.cancelled_caught
            out = await feed(session, reference, [[20], [21], [22]], sources=(1, 2, 0))
            for row, logits in zip([[3, 20], [4, 5, 6, 21], [1, 2, 22]], out, strict=True):
                assert torch.equal(logits, reference.logits(row)[-1])


# -- blame ------------------------------------------------------------------------------------------------------------


async def test_a_server_that_says_we_are_wrong_is_not_believed_alone():
    async with open_swarm((0, 6), (0, 6)) as swarm:
        context = swarm.context(client())
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            liar = next(s for s in swarm.members if s.name == using(swarm, session)[0])
            liar.engine.refuse = lambda task: ClientFault("you are wrong")
            await generate(session, swarm.reference, list(IDS), 2)
            assert using(swarm, session) != [liar.name]
            assert context.peers.banned(liar.peer, trio.current_time())
            assert len(liar.sessions) == 0


async def test_two_servers_that_say_so_are_believed_and_nobody_is_banned():
    async with open_swarm((0, 6), (0, 6), (0, 6)) as swarm:
        context = swarm.context(client())
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            for server in swarm.members:
                server.engine.refuse = lambda task: ClientFault("you are wrong") if task.positions[0] != 0 else None
            with pytest.raises(HopLost, match="refused the request: you are wrong"):
                await session.step(ids([1]))
            assert [s.failures for s in context.peers.statistics(trio.current_time())] == [0, 0]


async def test_a_server_that_fails_inside_is_banned_and_used_again_when_it_healed():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context(client())
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            sick = swarm.members[0]
            sick.engine.refuse = lambda task: ServerFault("sick")
            swarm.world.nursery.start_soon(after, 20.0, lambda: setattr(sick.engine, "refuse", lambda task: None))
            await generate(session, swarm.reference, list(IDS), 2)
            assert trio.current_time() > 20.0
            assert session.recoveries > 1


async def test_waiting_for_a_replica_is_said_once(caplog):
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context(client(patience_s=30.0))
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            swarm.world.kill("s1")
            swarm.members.pop()
            swarm.world.nursery.start_soon(after, 20.0, swarm.add_server, "late", Span(3, 6))
            with caplog.at_level(logging.WARNING):
                await generate(session, swarm.reference, list(IDS), 2)
            assert len([r for r in caplog.records if "waiting up to" in r.getMessage()]) == 1
