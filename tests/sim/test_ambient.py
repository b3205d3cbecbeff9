"""What libp2p reads past our ports is pinned inside a run, and nowhere else; the canary for new Python and trio."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
import uuid

import pytest
import trio

from sim.run import run
from sim.world import EPOCH_S


def drawn() -> tuple[object, ...]:
    return (
        os.urandom(8),
        secrets.token_bytes(8),
        secrets.randbelow(1 << 60),
        random.random(),
        random.SystemRandom().getrandbits(64),
        uuid.uuid4(),
    )


async def draw() -> tuple[object, ...]:
    return drawn()


def test_chance_of_the_system_follows_from_the_seed():
    first = run(draw, 7)
    assert len(set(first)) == len(first)
    assert run(draw, 7) == first
    assert not set(run(draw, 8)) & set(first)


def test_clocks_of_the_system_show_virtual_time():
    async def main() -> list[tuple[float, float]]:
        seen = []
        for _ in range(2):
            seen.append((time.time() - EPOCH_S, time.monotonic()))
            assert time.time_ns() == pytest.approx(time.time() * 1e9)
            assert time.monotonic_ns() == pytest.approx(time.monotonic() * 1e9)
            await trio.sleep(3600)
        return seen

    (wall, steady), (later_wall, later_steady) = run(main)
    assert wall == pytest.approx(0)
    assert (later_wall - wall, later_steady - steady) == (pytest.approx(3600), pytest.approx(3600))


@pytest.mark.real_clock
def test_everything_is_put_back_even_after_an_error():
    places = [(time, "time"), (time, "monotonic"), (os, "urandom"), (random, "_urandom")]
    before, state = [getattr(*place) for place in places], random.getstate()

    async def fail() -> None:
        drawn()
        raise KeyError("mine")

    with pytest.raises(KeyError):
        run(fail)
    assert [getattr(*place) for place in places] == before
    assert random.getstate() == state
    assert len({drawn(), drawn()}) == 2


@pytest.mark.real_clock
def test_other_threads_see_the_real_values():
    seen: list[tuple[float, bytes]] = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: seen.append((time.time(), os.urandom(16))))
        thread.start()
        thread.join()

    for _ in range(2):
        run(main, 7)
    assert all(abs(wall - time.time()) < 60 for wall, _ in seen)
    assert seen[0][1] != seen[1][1]


def test_the_loop_gets_no_thread_under_virtual_time():
    async def main() -> None:
        await trio.to_thread.run_sync(lambda: None)

    with pytest.raises(RuntimeError, match="a thread was asked for"):
        run(main)

    async def resolve() -> None:
        await trio.socket.getaddrinfo("example.org", 80)

    with pytest.raises(RuntimeError, match="a thread was asked for"):
        run(resolve)
