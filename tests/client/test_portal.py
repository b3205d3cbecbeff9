"""p2pllm.client.portal: calls, contexts and streams from plain threads into a trio loop, and their cancellation."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from p2pllm.client.portal import Portal
from p2pllm.errors import LocalProtocolError, UserError


async def double(x: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * x


async def fail() -> None:
    raise UserError("no such thing")


def test_calls_return_and_raise() -> None:
    """A call's result and its error arrive where it was made."""
    with Portal() as portal:
        assert portal.call(double, 21) == 42
        with pytest.raises(UserError, match="no such thing"):
            portal.call(fail)


def test_calls_from_many_threads() -> None:
    """Every thread gets its own answer."""
    with Portal() as portal, concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: portal.call(double, i), range(50))) == [2 * i for i in range(50)]


def test_a_cancelled_call_has_ended_when_its_caller_goes_on() -> None:
    """Giving up a call cancels it inside trio, and its clean-up has run."""
    ended = threading.Event()
    started = threading.Event()

    async def long() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with Portal() as portal:
        call = portal.submit(long)
        assert started.wait(5)
        call.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
        assert ended.is_set()


def test_a_context_is_entered_and_left_in_one_task() -> None:
    """Cancel scopes inside a held context work: trio checks that they are left where they were entered."""
    log: list[str] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            log.append("in")
            yield "value"
            log.append("out")
            nursery.cancel_scope.cancel()

    with Portal() as portal:
        held = portal.open(resource())
        assert held.value == "value"
        held.close()
        assert log == ["in", "out"]


def test_what_entering_or_leaving_raises_arrives() -> None:
    """An error of either end reaches the caller, and the portal lives on."""

    @asynccontextmanager
    async def broken(when: str) -> AsyncIterator[None]:
        if when == "enter":
            raise UserError("cannot enter")
        yield
        raise UserError("cannot leave")

    with Portal() as portal:
        with pytest.raises(UserError, match="enter"):
            portal.open(broken("enter"))
        held = portal.open(broken("leave"))
        with pytest.raises(UserError, match="leave"):
            held.close()
        assert portal.call(double, 1) == 2


def test_streams_arrive_in_order_and_stop_when_dropped() -> None:
    """A stream runs at most a few items ahead, and leaving the loop early ends its source."""
    stopped = threading.Event()
    made: list[int] = []

    async def source() -> AsyncGenerator[int, None]:
        try:
            for i in range(1000):
                made.append(i)
                yield i
                await trio.lowlevel.checkpoint()
        finally:
            stopped.set()

    with Portal() as portal:
        items = portal.iterate(source)
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        items.close()
        assert stopped.wait(5)
        assert len(made) < 100


def test_a_streams_error_arrives_after_its_items() -> None:
    """What was made before the error is delivered first."""

    async def source() -> AsyncGenerator[int, None]:
        yield 1
        raise UserError("then this")

    with Portal() as portal:
        items = portal.iterate(source)
        assert next(items) == 1
        with pytest.raises(UserError, match="then this"):
            next(items)


def test_a_call_from_the_loops_own_thread_is_refused() -> None:
    """It would wait for itself for ever, so it is an error instead."""
    with Portal() as portal:

        async def inner() -> None:
            portal.call(double, 1)

        with pytest.raises(LocalProtocolError, match="never end"):
            portal.call(inner)


def test_a_closed_portal_refuses_calls() -> None:
    """After the end there is an error, not a hang."""
    with Portal() as portal:
        pass
    with pytest.raises(LocalProtocolError, match="closed"):
        portal.call(double, 1)
