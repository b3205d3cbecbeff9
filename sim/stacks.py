"""Worlds by the name of their stack: what ``--stack`` chooses among those in virtual time.

Invariants: libp2p is imported only when its stack is opened; it takes a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2pllm.config import NetConfig
from sim.network import SimWorld
from sim.world import World


@asynccontextmanager
async def open_world(stack: str, seed: int, config: NetConfig) -> AsyncIterator[World]:
    """A world of that stack, ``ports`` or ``libp2p``."""
    if stack == "ports":
        async with SimWorld(seed, config=config) as ports:
            yield ports
        return
    assert stack == "libp2p", f"no world in virtual time is called {stack}"
    from sim.libp2p.world import Libp2pWorld

    async with Libp2pWorld(seed, config=config) as libp2p:
        yield libp2p
