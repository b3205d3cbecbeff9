"""Both stacks keep the same time: what a connection, a stream and messages of all sizes take differs by 5 % at most."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from p2pllm.ports import Stream
from sim.libp2p.world import Libp2pWorld
from sim.links import Access
from sim.network import SimWorld
from sim.run import run

SIZES = (100, 100, 8192, 8192, 1 << 20, 1 << 20, 1 << 20)
"""The same size again is not the same: windows have grown."""
MBIT = 1e6 / 8
PATHS = [
    pytest.param(0.0025, Access(), id="5ms"),
    pytest.param(0.005, Access(1000 * MBIT, 1000 * MBIT), id="10ms-1000Mbit"),
    pytest.param(0.05, Access(100 * MBIT, 100 * MBIT), id="100ms-100Mbit"),
    pytest.param(0.05, Access(10 * MBIT, 100 * MBIT), id="100ms-10Mbit-up"),
    pytest.param(0.05, Access(10 * MBIT, 10 * MBIT), id="100ms-10Mbit"),
    pytest.param(0.1, Access(100 * MBIT, 20 * MBIT), id="200ms-20Mbit-down"),
]


async def read_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some()
        assert piece
        data += piece
    return data


async def echo(stream: Stream) -> None:
    """Whole messages, as a server answers steps."""
    for size in SIZES:
        await stream.send_all(await read_exactly(stream, size))


async def times(world_of: Any, latency_s: float, access: Access, slow_start: bool = False) -> dict[str, float]:
    taken = {}
    async with world_of(7, latency_s) as world:
        world.links.slow_start = slow_start
        for name in ("server", "client"):
            world.set_access(name, access)
        server, client = await world.start("server"), await world.start("client")
        server.serve("/echo", echo)
        client.learn(server.me, server.addrs)
        began = trio.current_time()
        await client.open_stream(server.me, "/echo")
        taken["connection and stream"] = trio.current_time() - began
        await trio.sleep(1)
        began = trio.current_time()
        stream = await client.open_stream(server.me, "/echo")
        taken["stream"] = trio.current_time() - began
        for number, size in enumerate(SIZES):
            began = trio.current_time()
            await stream.send_all(bytes(size))
            await read_exactly(stream, size)
            taken[f"echo {number} of {size} B"] = trio.current_time() - began
    return taken


@pytest.mark.parametrize(("latency_s", "access"), PATHS)
def test_both_stacks_keep_the_same_time(latency_s, access):
    ports = run(lambda: times(SimWorld, latency_s, access))
    libp2p = run(lambda: times(Libp2pWorld, latency_s, access))
    assert ports == pytest.approx(libp2p, rel=0.05)
    assert ports["stream"] == pytest.approx(2 * latency_s, rel=0.05)


def test_tcp_begins_slowly_on_both():
    access = Access(100 * MBIT, 100 * MBIT)
    ports = run(lambda: times(SimWorld, 0.05, access, True))
    libp2p = run(lambda: times(Libp2pWorld, 0.05, access, True))
    assert ports == pytest.approx(libp2p, rel=0.15)
    assert ports["echo 4 of 1048576 B"] > 1.2 * run(lambda: times(SimWorld, 0.05, access))["echo 4 of 1048576 B"]
