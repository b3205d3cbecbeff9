"""sim.congestion: slow start doubles, losses halve, and the throughput is about what is known of TCP."""

from __future__ import annotations

import math

import pytest
import trio

from sim.congestion import WINDOW_INITIAL_BYTES
from sim.links import MSS_BYTES, Access
from sim.network import SimWorld
from tests.sim.flows import Receiver, open_to, time_of

MB = 1_000_000


@pytest.mark.parametrize("size", [100_000, 230_000])
async def test_slow_start_takes_a_round_trip_for_each_doubling(size):
    def slowly(world):
        world.links.slow_start = True

    rounds = math.log2(size / WINDOW_INITIAL_BYTES + 1)
    took_s = await time_of(size, prepare=slowly)
    assert 0.05 + 0.1 * math.floor(rounds - 1) <= took_s <= 0.05 + 0.1 * math.ceil(rounds + 1)
    assert await time_of(size) == pytest.approx(0.05)


async def test_an_idle_connection_begins_anew():
    async with SimWorld(1, 0.05) as world:
        world.links.slow_start = True
        receiver = Receiver(world.host("server"))
        stream = await open_to(world.host("client"), receiver)
        took = []
        for pause_s in (3.0, 0.0, 3.0):
            await trio.sleep(pause_s)
            begun = trio.current_time()
            await stream.send_all(bytes(100_000))
            await trio.sleep(0.9)
            took.append(receiver.last_at - begun)
        assert took[1] < took[0] == pytest.approx(took[2])


@pytest.mark.parametrize(("loss", "rtt_s"), [(0.001, 0.05), (0.01, 0.05), (0.01, 0.2)])
async def test_losses_limit_throughput_as_they_do_tcps(loss, rtt_s):
    def lossy(world):
        world.links.window_bytes = 16 * MB
        world.links.set_default(latency_s=rtt_s / 2, loss=loss)

    expected = MSS_BYTES / rtt_s * math.sqrt(1.5 / loss)  # Mathis et al., 1997
    size = int(40 * expected)
    assert size / await time_of(size, prepare=lossy) == pytest.approx(expected, rel=0.4)


async def test_a_short_queue_is_shared_without_collapse():
    async with SimWorld(1, 0.02) as world:
        world.set_access("server", Access(down_bytes_per_s=1 * MB, queue_s=0.05))
        receiver = Receiver(world.host("server"))
        streams = [await open_to(world.host(f"c{number}"), receiver) for number in range(4)]
        begun = trio.current_time()
        for stream in streams:
            world.nursery.start_soon(stream.send_all, bytes(2 * MB))
        await trio.sleep(100)
        assert sum(size for _, _, size in receiver.log) == 8 * MB
        assert receiver.last_at - begun < 1.6 * 8 * 1.05
