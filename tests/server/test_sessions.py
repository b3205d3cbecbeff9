"""Sessions over the simulated network, with a real small model in exact mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trio

from p2pllm.errors import PeerLost
from p2pllm.types import Span
from p2pllm.wire.frame import encode_message
from p2pllm.wire.messages import Answer, Attach, Attached, Close, Closed, Fault, FaultKind, InfoRequest, Opened, Rewire
from sim.network import SimWorld
from tests.server.support import HIDDEN, MODEL, NUMERICS, Caller, a_step, alone, serving, sid, tokens


def assert_fault(message: Any, kind: FaultKind, *words: str) -> None:
    assert isinstance(message, Fault), message
    assert message.kind is kind, message
    assert all(word in message.reason for word in words), message.reason


async def test_a_generation_equals_the_model_alone():
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        assert await caller.open() == Opened(sid(1), 0, NUMERICS.tag())
        hidden = tokens(14)
        outputs = [await caller.output(1, 0, (0,), hidden[:10])]
        for step, one in enumerate(hidden[10:].split(1), 1):
            outputs += [await caller.output(1, step, (9 + step,), one)]
        assert torch.equal(torch.cat(outputs), alone(hidden))
        assert server.sessions == 1
        assert await caller.ask(Close(sid(1))) == Closed(sid(1))
        assert server.sessions == 0
        assert server.room.cache.tokens_free == 1024


async def test_sessions_of_several_peers_are_batched_and_equal_to_run_alone():
    async with SimWorld() as world, serving(world, pass_s=0.05) as server:
        results: dict[int, torch.Tensor] = {}

        async def generate(number: int) -> None:
            hidden = tokens(30, number)
            caller = await Caller.dial(world.host(f"client{number}"), world.hosts["server"])
            await caller.open(number)
            parts = [await caller.output(number, 0, (0,), hidden[: 10 + number])]
            for step, one in enumerate(hidden[10 + number :].split(1), 1):
                parts += [await caller.output(number, step, (9 + number + step,), one)]
            results[number] = torch.cat(parts)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(generate, number)
        for number, output in results.items():
            assert torch.equal(output, alone(tokens(30, number)))
        steps = sum(1 + 20 - number for number in range(6))
        assert server.engine.passes < steps / 2, "most passes were shared"


async def test_rows_are_ragged_and_roll_back():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open(rows=2)
        a, b = tokens(12, 1), tokens(12, 2)
        assert torch.equal(await caller.output(1, 0, (0, 0), a[:8], b[:5]), torch.cat([alone(a[:8]), alone(b[:5])]))
        got = await caller.output(1, 1, (8, 5), a[8:8], b[5:7])
        assert torch.equal(got, alone(b[:7])[5:])
        got = await caller.output(1, 2, (3, 7), tokens(2, 9), b[7:8], tail=1)
        expected = [alone(torch.cat([a[:3], tokens(2, 9)]))[4:], alone(b[:8])[7:]]
        assert torch.equal(got, torch.cat(expected))


async def test_rows_are_reordered_as_beams_are():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open(rows=3)
        rows = [tokens(6, seed) for seed in range(3)]
        await caller.output(1, 0, (0, 0, 0), *rows)
        new = [tokens(1, 10 + seed) for seed in range(3)]
        got = await caller.output(1, 1, (6, 4, 6), *new, sources=(2, 2, 0))
        heads = [rows[2], rows[2][:4], rows[0]]
        expected = [alone(torch.cat([head, n]))[len(head) :] for head, n in zip(heads, new, strict=True)]
        assert torch.equal(got, torch.cat(expected))
        again = [tokens(1, 20 + seed) for seed in range(3)]
        got = await caller.output(1, 2, (5, 7, 7), *again, sources=(1, 0, 2))
        heads = [torch.cat([heads[1], new[1]]), torch.cat([heads[0], new[0]]), torch.cat([heads[2], new[2]])]
        expected = [alone(torch.cat([head, n]))[len(head) :] for head, n in zip(heads, again, strict=True)]
        assert torch.equal(got, torch.cat(expected))


async def test_chunks_in_flight_are_answered_in_order():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        hidden = tokens(60)
        for step in range(5):
            await caller.channel.send(*a_step(1, step, (12 * step,), hidden[12 * step : 12 * step + 12]))
        got = [await caller.answer(step) for step in range(5)]
        assert torch.equal(torch.cat(got), alone(hidden))


async def test_a_repeated_step_is_answered_again_and_not_computed():
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        first = await caller.output(1, 0, (0,), tokens(3))
        assert torch.equal(await caller.output(1, 0, (0,), tokens(3)), first)
        assert server.engine.passes == 1
        assert_fault(await caller.step(1, 0, (0,), tokens(3, 9)), FaultKind.CLIENT, "other contents")


async def test_a_lost_stream_is_attached_again_and_nothing_is_lost():
    async with SimWorld() as world, serving(world) as server:
        client = world.host("client")
        caller = await Caller.dial(client, world.hosts["server"])
        await caller.open()
        hidden = tokens(9)
        first = await caller.output(1, 0, (0,), hidden[:4])
        await caller.channel.send(*a_step(1, 1, (4,), hidden[4:8]))
        await trio.sleep(world.latency("client", "server") + 0.0005)  # it is being computed
        caller.channel.abort()
        await trio.sleep(1)
        again = await Caller.dial(client, world.hosts["server"])
        assert await again.ask(Attach(sid(1), 0)) == Attached(sid(1), 0, 1, (8,))
        second = await again.output(1, 1, (4,), hidden[4:8])
        third = await again.output(1, 2, (8,), hidden[8:], acked=1)
        assert torch.equal(torch.cat([first, second, third]), alone(hidden))
        assert server.engine.passes == 3


@pytest.mark.parametrize("count", [1, 20])
async def test_a_step_that_runs_while_the_stream_moves_is_answered_on_the_new_one(count: int):
    async with SimWorld() as world, serving(world, pass_s=1.0):
        client = world.host("client")
        old = await Caller.dial(client, world.hosts["server"])
        new = await Caller.dial(client, world.hosts["server"])
        await old.open()
        await old.channel.send(*a_step(1, 0, (0,), tokens(count)))
        await trio.sleep(0.1)
        assert await new.ask(Attach(sid(1), 0)) == Attached(sid(1), 0, -1, (0,))
        assert torch.equal(await new.answer(0), alone(tokens(count)))


async def test_a_session_that_stays_alone_ends():
    async with SimWorld() as world, serving(world, linger_s=5.0) as server:
        client = world.host("client")
        caller = await Caller.dial(client, world.hosts["server"])
        await caller.open()
        caller.channel.abort()
        await trio.sleep(4)
        assert server.sessions == 1
        await trio.sleep(3)
        assert server.sessions == 0
        assert server.room.cache.tokens_free == 1024
        again = await Caller.dial(client, world.hosts["server"])
        assert_fault(await again.ask(Attach(sid(1), 0)), FaultKind.GONE)


async def test_a_session_that_nobody_steps_ends():
    async with SimWorld() as world, serving(world, idle_timeout_s=20.0) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        await trio.sleep(10)
        await caller.output(1, 0, (0,), tokens(1))
        await trio.sleep(15)
        assert server.sessions == 1
        assert_fault((await caller.next())[0], FaultKind.GONE, "too long")
        assert server.sessions == 0


async def test_only_the_opener_commands_its_session():
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        thief = await Caller.dial(world.host("thief"), world.hosts["server"])
        for message in (Attach(sid(1), 0), Rewire(sid(1), 5)):
            assert_fault(await thief.ask(message), FaultKind.GONE)
        assert_fault(await thief.step(1, 0, (0,), tokens(2)), FaultKind.GONE)
        assert_fault(await thief.open(), FaultKind.GONE)
        assert isinstance(await thief.ask(Close(sid(1))), Closed), "it learns nothing, and closes nothing"
        assert server.sessions == 1
        assert torch.equal(await caller.output(1, 0, (0,), tokens(2)), alone(tokens(2)))


async def test_a_new_epoch_shuts_the_old_one_out():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        await caller.output(1, 0, (0,), tokens(3))
        assert await caller.ask(Rewire(sid(1), 1)) == Attached(sid(1), 1, 0, (3,))
        assert_fault(await caller.step(1, 1, (3,), tokens(1)), FaultKind.GONE, "epoch 0")
        assert isinstance(await caller.step(1, 1, (3,), tokens(1), epoch=1), Answer)


async def test_opening_anew_in_a_later_epoch_replaces_the_session():
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open(rows=2, length=512)
        await caller.output(1, 0, (0, 0), tokens(3, 5), tokens(1))
        assert await caller.open(length=512, epoch=1) == Opened(sid(1), 1, NUMERICS.tag())
        assert server.sessions == 1
        assert server.room.cache.tokens_free == 512
        assert torch.equal(await caller.output(1, 0, (0,), tokens(2), epoch=1), alone(tokens(2)))


async def test_a_full_cache_makes_wait_in_line_and_then_busy():
    async with SimWorld() as world, serving(world, cache_tokens=128, alloc_timeout_s=10.0) as server:
        first = await Caller.dial(world.host("first"), world.hosts["server"])
        second = await Caller.dial(world.host("second"), world.hosts["server"])
        await first.open(1, length=128)
        begun = trio.current_time()
        assert_fault(await second.open(2, alloc_timeout_s=3.0), FaultKind.BUSY)
        assert trio.current_time() - begun == pytest.approx(3.0, abs=0.1)
        async with trio.open_nursery() as nursery:

            async def close_later() -> None:
                await trio.sleep(5)
                await first.ask(Close(sid(1)))

            nursery.start_soon(close_later)
            assert isinstance(await second.open(3, alloc_timeout_s=60.0), Opened)
        assert server.sessions == 1
        assert_fault(await first.open(4, length=129), FaultKind.BUSY, "whole cache")


async def test_who_hangs_up_in_line_leaves_it():
    async with SimWorld() as world, serving(world, cache_tokens=128) as server:
        first = await Caller.dial(world.host("first"), world.hosts["server"])
        await first.open(1, length=128)
        second = await Caller.dial(world.host("second"), world.hosts["server"])
        with trio.move_on_after(1):
            await second.open(2, alloc_timeout_s=60.0)
        second.channel.abort()
        await trio.sleep(1)
        assert server.room.cache.waiting == 0
        await first.ask(Close(sid(1)))
        assert server.room.cache.tokens_free == 128


async def test_quotas():
    async with SimWorld() as world, serving(world, sessions_per_peer_max=2, sessions_max=3):
        greedy = await Caller.dial(world.host("greedy"), world.hosts["server"])
        other = await Caller.dial(world.host("other"), world.hosts["server"])
        assert isinstance(await greedy.open(1), Opened)
        assert isinstance(await greedy.open(2), Opened)
        assert_fault(await greedy.open(3), FaultKind.BUSY, "yours")
        assert isinstance(await other.open(4), Opened)
        assert_fault(await other.open(5), FaultKind.BUSY, "too many")
        await greedy.ask(Close(sid(1)))
        assert isinstance(await other.open(5), Opened)


async def test_too_much_waiting_work_is_busy_and_the_session_goes_on():
    async with SimWorld() as world, serving(world, queue_bytes_max=3 * HIDDEN * 4):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open(rows=2)
        rows = tokens(3, 1), tokens(3, 2)
        assert_fault(await caller.step(1, 0, (0, 0), *rows), FaultKind.BUSY)
        assert torch.equal(await caller.output(1, 0, (0, 0), rows[0], rows[1][:0]), alone(rows[0]))


@pytest.mark.parametrize(
    ("fields", "kind", "word"),
    [
        ({"model": "other"}, FaultKind.GONE, "another model"),
        ({"span": Span(2, 5)}, FaultKind.GONE, "2:5"),
        ({"numerics": "other"}, FaultKind.GONE, "class"),
        ({"length": 513}, FaultKind.CLIENT, "512"),
        ({"adapter": "mine"}, FaultKind.CLIENT, "mine"),
    ],
)
async def test_requests_that_are_not_for_this_server(fields: dict[str, Any], kind: FaultKind, word: str):
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        assert_fault(await caller.open(**fields), kind, word)
        assert server.sessions == 0
        assert isinstance(await caller.open(), Opened), "the stream is none the worse"


async def test_a_hostile_byte_ends_its_stream_only():
    async with SimWorld() as world, serving(world) as server:
        good = await Caller.dial(world.host("good"), world.hosts["server"])
        await good.open(2)
        whole = encode_message(*a_step(1, 0, (0,), tokens(3)))
        hostile: list[bytes] = [
            b"\xff" * 40,
            whole[:-1] + bytes([whole[-1] ^ 1]),
            encode_message(InfoRequest(1, MODEL)),
        ]
        hostile += [encode_message(Opened(sid(1), 0, ""))]
        for data in hostile:
            bad = await Caller.dial(world.hosts.get("bad") or world.host("bad"), world.hosts["server"])
            await bad.open()
            await bad.channel._stream.send_all(data)
            with pytest.raises(PeerLost):
                await bad.next()
            await trio.sleep(1)
        assert torch.equal(await good.output(2, 0, (0,), tokens(3)), alone(tokens(3)))
        back = await Caller.dial(world.hosts["bad"], world.hosts["server"])
        assert isinstance(await back.ask(Attach(sid(1), 0)), Attached), "the session itself did nothing wrong"
        assert server.sessions == 2


async def test_a_tensor_that_is_none_is_the_clients_fault_and_the_session_goes_on():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open(rows=2)
        rows = tokens(3, 1), tokens(4, 2)
        await caller.output(1, 0, (0, 0), *rows)
        step, payload = a_step(1, 1, (3, 3), tokens(1, 3), tokens(1, 4), sources=(1, 0))
        poison = torch.full((2, HIDDEN), torch.nan).numpy().tobytes()
        await caller.channel.send(step, poison)
        await caller.channel.send(*a_step(1, 2, (4, 4), tokens(1, 5), tokens(1, 6)))
        assert_fault((await caller.next())[0], FaultKind.CLIENT)
        await caller.channel.send(step, payload)
        expected = [
            alone(torch.cat([rows[1][:3], tokens(1, 3)]))[3:],
            alone(torch.cat([rows[0], tokens(1, 4)]))[3:],
        ]
        assert torch.equal(await caller.answer(1), torch.cat(expected))


async def test_a_silent_stream_is_dropped():
    async with SimWorld() as world, serving(world, stream_idle_s=30.0):
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await trio.sleep(31)
        with pytest.raises(PeerLost):
            await caller.next()


async def test_half_a_message_does_not_wait_for_ever():
    async with SimWorld() as world, serving(world, idle_timeout_s=30.0) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        await caller.channel._stream.send_all(encode_message(*a_step(1, 0, (0,), tokens(3)))[:50])
        assert_fault((await caller.next())[0], FaultKind.GONE)
        assert server.sessions == 0


async def test_draining_lets_sessions_end_and_takes_no_new_ones():
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        other = await Caller.dial(world.host("other"), world.hosts["server"])
        await caller.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 20.0)
            await trio.sleep(1)
            assert_fault(await other.open(2), FaultKind.GONE, "leaving")
            assert isinstance(await caller.step(1, 0, (0,), tokens(2)), Answer)
            begun = trio.current_time()
            await caller.ask(Close(sid(1)))
        assert trio.current_time() - begun < 1
        await other.channel.aclose()


async def test_draining_is_bounded():
    async with SimWorld() as world, serving(world) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"])
        await caller.open()
        begun = trio.current_time()
        await server.drain(7.0)
        assert trio.current_time() - begun < 9
        assert_fault((await caller.next())[0], FaultKind.GONE, "leaving")


async def test_a_client_that_does_not_read_holds_up_nobody():
    async with SimWorld() as world, serving(world):
        lazy = await Caller.dial(world.host("lazy"), world.hosts["server"])
        await lazy.open(1, length=512)
        hidden = tokens(500)
        await lazy.channel.send(*a_step(1, 0, (0,), hidden))
        for _ in range(40):
            await lazy.channel.send(*a_step(1, 0, (0,), hidden))
        other = await Caller.dial(world.host("other"), world.hosts["server"])
        await other.open(2)
        begun = trio.current_time()
        assert torch.equal(await other.output(2, 0, (0,), tokens(3)), alone(tokens(3)))
        assert trio.current_time() - begun < 1
