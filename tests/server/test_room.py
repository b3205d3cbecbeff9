"""Who waits for cache room gets it in turn, or hears in time that there is none."""

from __future__ import annotations

import pytest
import trio

from p2pllm.server.kvcache import KVCache
from p2pllm.server.room import CacheRoom


async def test_waits_until_pages_are_free():
    room = CacheRoom(KVCache(4, 16))
    held = await room.reserve("a", 1, 64, 1.0)
    assert held is not None
    got: list[object] = []

    async def wait(owner: str) -> None:
        got.append((owner, await room.reserve(owner, 1, 64, 30.0) is not None, trio.current_time()))

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "b")
        await trio.sleep(5)
        room.release("a")
    assert got == [("b", True, begun + 5)]


async def test_gives_up_in_time_and_leaves_the_line():
    room = CacheRoom(KVCache(4, 16))
    await room.reserve("a", 1, 64, 1.0)
    begun = trio.current_time()
    assert await room.reserve("b", 1, 16, 3.0) is None
    assert trio.current_time() == begun + 3
    assert room.cache.waiting == 0
    room.release("a")
    assert room.cache.tokens_free == 64


async def test_a_cancelled_waiter_loses_nothing_for_the_others():
    room = CacheRoom(KVCache(4, 16))
    await room.reserve("a", 1, 64, 1.0)
    got: list[str] = []

    async def wait(owner: str) -> None:
        if await room.reserve(owner, 1, 64, 30.0):
            got.append(owner)

    with trio.CancelScope() as doomed:
        async with trio.open_nursery() as outer:

            async def first() -> None:
                await wait("b")

            outer.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            # Granted and cancelled in the same moment: the pages must come back.
            room.release("a")
            doomed.cancel()
    room.cache.check_integrity()
    assert got in ([], ["b"])
    if not got:
        assert room.cache.tokens_free == 64


async def test_pins_hold_pages_back():
    room = CacheRoom(KVCache(1, 16))
    held = await room.reserve("a", 1, 16, 1.0)
    assert held is not None
    room.pin(held)
    room.release("a")
    assert await room.reserve("b", 1, 16, 1.0) is None
    room.unpin(held)
    assert await room.reserve("b", 1, 16, 1.0) is not None


async def test_impossible_requests_are_refused_at_once():
    with pytest.raises(ValueError, match="do not fit"):
        await CacheRoom(KVCache(1, 16)).reserve("a", 1, 17, 1.0)
