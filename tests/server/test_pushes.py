"""Pushes: outputs go straight to the next hop, and back to the opener where that cannot be."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import trio

from p2pllm.config import Config
from p2pllm.errors import PeerLost
from p2pllm.server.hosted import Hosted
from p2pllm.server.pushes import Pushes
from p2pllm.types import Span
from p2pllm.wire import PUSH
from p2pllm.wire.messages import Answer, Close, Fault, FaultKind, Opened, Rewire, Unpushed
from p2pllm.wire.session import Send
from sim.host import SimNetwork
from sim.network import SimWorld
from tests.server.support import Caller, a_step, alone, serving, sid, tokens, unpacked

FIRST, SECOND = Span(0, 2), Span(2, 4)


async def chain(world: SimWorld, number: int = 1, client: SimNetwork | None = None) -> tuple[Caller, Caller]:
    """A session over both servers, the first one pushing to the second."""
    client = client or world.host(f"client{number}")
    a, b = world.hosts["a"], world.hosts["b"]
    a.learn(b.me, b.addrs)
    first, second = await Caller.dial(client, a), await Caller.dial(client, b)
    assert isinstance(await second.open(number, span=SECOND, push_from=a.me), Opened)
    assert isinstance(await first.open(number, span=FIRST, push_to=b.me), Opened)
    return first, second


async def test_the_second_hop_answers_what_the_first_one_was_asked():
    async with SimWorld() as world, serving(world, "a", FIRST) as a, serving(world, "b", SECOND):
        first, second = await chain(world)
        hidden = tokens(20)
        outputs = []
        for step, part in enumerate(hidden.split([12, 1, 1, 6])):
            at = len(torch.cat([hidden[:0], *outputs]))
            await first.channel.send(*a_step(1, step, (at,), part))
            outputs.append(await second.answer(step))
            history, _ = await first.next()
            assert isinstance(history, Answer), "the opener's copy of what was pushed"
        assert torch.equal(torch.cat(outputs), alone(hidden))
        assert a.sessions == 1


async def test_many_sessions_share_one_push_stream():
    async with SimWorld() as world, serving(world, "a", FIRST), serving(world, "b", SECOND):

        async def one(number: int) -> None:
            first, second = await chain(world, number)
            hidden = tokens(10, number)
            for step, part in enumerate(hidden.split(2)):
                await first.channel.send(*a_step(number, step, (2 * step,), part))
                assert torch.equal(await second.answer(step), alone(hidden)[2 * step : 2 * step + 2])

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)


async def test_a_next_hop_that_is_gone_makes_the_opener_relay():
    async with SimWorld() as world, serving(world, "a", FIRST):
        b = world.host("b")
        client = world.host("client")
        first = await Caller.dial(client, world.hosts["a"])
        await first.open(1, span=FIRST, push_to=b.me)
        await first.channel.send(*a_step(1, 0, (0,), tokens(3)))
        answer, out = await first.next()
        assert isinstance(answer, Answer)
        assert torch.equal(unpacked(answer.tensor, out), alone(tokens(3), FIRST))
        assert await first.next() == (Unpushed(sid(1), 0), b"")
        await first.channel.send(*a_step(1, 1, (3,), tokens(1)))
        assert isinstance((await first.next())[0], Answer)


async def test_a_next_hop_that_does_not_know_the_session_makes_the_opener_relay():
    async with SimWorld() as world, serving(world, "a", FIRST), serving(world, "b", SECOND):
        first, second = await chain(world)
        await second.ask(Close(sid(1)))
        await first.channel.send(*a_step(1, 0, (0,), tokens(3)))
        assert isinstance((await first.next())[0], Answer)
        assert await first.next() == (Unpushed(sid(1), 0), b"")


async def test_a_push_stream_that_breaks_makes_the_openers_relay_and_a_new_epoch_pushes_again():
    async with SimWorld() as world, serving(world, "a", FIRST), serving(world, "b", SECOND):
        first, second = await chain(world)
        a, b = world.hosts["a"], world.hosts["b"]
        await first.channel.send(*a_step(1, 0, (0,), tokens(3)))
        await second.answer(0)
        await first.next()
        await a.close_peer(b.me)
        await trio.sleep(0.1)
        assert await first.next() == (Unpushed(sid(1), 0), b"")
        await second.ask(Rewire(sid(1), 1, push_from=a.me))
        await first.ask(Rewire(sid(1), 1, push_to=b.me))
        await first.channel.send(*a_step(1, 1, (3,), tokens(1, 5), epoch=1))
        assert torch.equal(await second.answer(1), alone(torch.cat([tokens(3), tokens(1, 5)]))[3:])


async def test_strangers_may_not_push():
    async with SimWorld() as world, serving(world, "a", FIRST), serving(world, "b", SECOND):
        first, second = await chain(world)
        thief = await Caller.dial(world.host("thief"), world.hosts["b"], PUSH)
        refused = await thief.step(1, 0, (0,), tokens(3))
        assert isinstance(refused, Fault)
        assert refused.kind is FaultKind.GONE
        await first.channel.send(*a_step(1, 0, (0,), tokens(3)))
        assert torch.equal(await second.answer(0), alone(tokens(3)))
        await thief.channel.send(Close(sid(1)))
        with pytest.raises(PeerLost):
            await thief.next()


async def test_an_idle_push_stream_is_closed_and_opened_again():
    async with SimWorld() as world, serving(world, "a", FIRST, stream_idle_s=30.0), serving(world, "b", SECOND):
        first, second = await chain(world)
        await first.channel.send(*a_step(1, 0, (0,), tokens(3)))
        await second.answer(0)
        await first.next()
        await trio.sleep(60)
        await first.channel.send(*a_step(1, 1, (3,), tokens(1, 5)))
        assert torch.equal(await second.answer(1), alone(torch.cat([tokens(3), tokens(1, 5)]))[3:])
        assert isinstance((await first.next())[0], Answer)


async def test_a_server_that_ends_pushes_no_more():
    """A handler may still answer a step when the tasks of its server have ended."""
    async with SimWorld() as world:
        host = world.host("server")
        async with trio.open_nursery() as nursery:
            pushes = Pushes(host, Config(), nursery)
            pushes.shut()
        pushes.post(cast("Hosted", object()), Send(host.me, Close(sid(1))))
