"""What a program may read without asking a port: clocks and chance of the system, pinned while a run lasts.

Our code takes time and chance from its ports; libp2p does not. Its DHT, peer store and identify protocol read
``time.time``, its routing table draws with ``secrets``, and a run would differ from the next by both. Threads are
refused: while one works, no task of the loop does, and virtual time would jump over whatever others wait for.

Invariants: everything is put back at the end, also after an error, and other threads of the process see the real
values meanwhile. Not pinned is what ``cryptography`` draws for handshakes and signs with: it changes ciphertext, which
no trace contains, and never a size.
"""

from __future__ import annotations

import os
import random
import threading  # noqa: TID251 (asks which thread it is, and starts none)
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import trio
from trio._core._thread_cache import ThreadCache

from sim.world import EPOCH_S

MONOTONIC_S = 1000.0
"""What ``time.monotonic`` shows then; some code takes a small value for a machine that has just booted."""

T = TypeVar("T")


@contextmanager
def pinned(seed: int) -> Iterator[None]:
    """Until the block ends, this thread's ambient clocks are virtual, its chance is drawn from ``seed``."""
    owner, state, chance = threading.get_ident(), random.getstate(), random.Random(f"{seed}/ambient")
    random.seed(f"{seed}/random")

    def here(virtual: Callable[..., T], real: Callable[..., T]) -> Callable[..., T]:
        return lambda *args: (virtual if threading.get_ident() == owner else real)(*args)

    def refuse(*_: object) -> None:
        raise RuntimeError("a thread was asked for under virtual time: let the work run inline, or through a port")

    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (time, "time", lambda: EPOCH_S + _now()),
        (time, "time_ns", lambda: int((EPOCH_S + _now()) * 1e9)),
        (time, "monotonic", lambda: MONOTONIC_S + _now()),
        (time, "monotonic_ns", lambda: int((MONOTONIC_S + _now()) * 1e9)),
        (os, "urandom", chance.randbytes),
        (random, "_urandom", chance.randbytes),  # what SystemRandom draws from, and with it all of ``secrets``
        (ThreadCache, "start_thread_soon", refuse),
    ]
    with ExitStack() as stack:
        stack.callback(random.setstate, state)
        for owner_of, name, virtual in replaced:
            real = getattr(owner_of, name)
            stack.callback(setattr, owner_of, name, real)
            setattr(owner_of, name, here(virtual, real))
        yield


def _now() -> float:
    """Virtual time; zero before the loop runs and after it."""
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0
