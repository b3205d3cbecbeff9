"""sim.queues: rates are kept, times are those of the formula, steps pass bulk, full queues drop."""

from __future__ import annotations

import itertools

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.types import Priority
from sim.draws import LogNormal
from sim.links import PACKET_BYTES, Access, wire_bytes
from sim.network import SimWorld
from sim.queues import Downlink, Piece
from sim.run import run
from sim.stream import PIECE_BYTES, RECORD_BYTES, RECORD_HEADERS_BYTES
from tests.sim.flows import Receiver, noise, open_to, time_of

MB = 1_000_000


def carried(size):
    return sum(wire_bytes(min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES))


@pytest.mark.parametrize("size", [100, 8192, 200_000])
@pytest.mark.parametrize(("up", "down"), [(None, None), (1 * MB, None), (None, 1 * MB), (1 * MB, 3 * MB), (3 * MB, MB)])
async def test_a_message_takes_latency_the_slower_link_and_a_packet_on_the_other(size, up, down):
    took_s = await time_of(size, client=Access(up_bytes_per_s=up), server=Access(down_bytes_per_s=down))
    slower, faster = sorted((up or 1e18, down or 1e18))
    packet = min(PACKET_BYTES, carried(size))
    assert took_s == pytest.approx(0.05 + carried(size) / slower + packet / faster, rel=0.001)


async def test_access_latencies_count_once_each():
    took_s = await time_of(10, client=Access(latency_s=0.02), server=Access(latency_s=0.01))
    assert took_s == pytest.approx(0.08)


@pytest.mark.parametrize("kib", [64, 256])
async def test_a_fixed_window_passes_once_per_round_trip(kib):
    def fix(world):
        world.links.window_bytes = kib * 1024

    took_s = await time_of(10 * kib * 1024, prepare=fix)
    assert took_s == pytest.approx(9 * 0.1 + 0.05, rel=0.001)
    took_s = await time_of(40 * kib * 1024, server=Access(down_bytes_per_s=MB), prepare=fix)
    record = min(kib * 1024, RECORD_BYTES[Priority.STEP])  # credit for it comes back when it is there as a whole
    per_round = max(0.1 + carried(record) / MB, carried(kib * 1024) / MB)
    assert took_s == pytest.approx(39 * per_round + 0.05 + carried(kib * 1024) / MB, rel=0.05)


async def test_the_products_window_grows_with_the_way():
    fixed_s = 0.1 * 8 * MB / (256 * 1024)
    assert await time_of(8 * MB) < fixed_s / 4


async def two_flows(latencies, down=1 * MB, size=1 * MB):
    async with SimWorld(1) as world:
        world.links.window_bytes = 2 * PIECE_BYTES  # with larger ones whoever begins gets a whole window first
        world.set_access("server", Access(down_bytes_per_s=down))
        receiver = Receiver(world.host("server"))
        streams = []
        for name, latency_s in latencies.items():
            world.set_latency(name, "server", latency_s)
            streams.append(await open_to(world.host(name), receiver))
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.send_all, bytes(size))
        await trio.sleep(60)
        return begun, receiver


async def test_two_flows_share_a_downlink_and_each_gets_its_half():
    begun, receiver = await two_flows({"a": 0.01, "b": 0.01})
    assert receiver.last_at - begun == pytest.approx(0.01 + 2 * carried(MB) / MB, rel=0.01)
    half = [sum(size for at, number, size in receiver.log if number == n and at < begun + 1.0) for n in (1, 2)]
    assert half[0] == pytest.approx(half[1], rel=0.1)


class Way:
    """As much of a pipe as a downlink looks at."""

    cut = False


@given(
    rate=st.sampled_from([1000.0, 50_000.0, 1e7]),
    queue_s=st.sampled_from([float("inf"), 0.05]),
    pieces=st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 2), st.integers(1, 20_000), st.booleans()), min_size=1, max_size=30
    ),
)
def test_a_link_never_exceeds_its_rate(rate, queue_s, pieces):
    link, sent, now = Downlink(), [], 0.0
    link.bytes_per_s, link.queue_s = rate, queue_s
    for first_at, takes_s, size, looked_at in sorted(pieces):
        if looked_at:  # whether anybody looks meanwhile changes nothing
            now = first_at
            link.settle(now)
        piece = Piece(Way(), b"", size, Priority.STEP)
        piece.rtt_s = 0.1
        link.take(piece, first_at, first_at + takes_s)
        sent.append((piece, first_at + takes_s, piece.arrival))
    link.settle(1e6)
    busy = sorted((piece.arrival - piece.size / rate, piece.arrival) for piece, _, _ in sent)
    for (_, end), (start, _) in itertools.pairwise(busy):
        assert start >= end - 1e-6
    for piece, last_at, bound in sent:
        assert piece.settled
        assert piece.arrival >= max(last_at, bound) - 1e-6


@settings(max_examples=40, deadline=None)
@given(
    loss=st.sampled_from([0.0, 0.01, 0.2]),
    queue_s=st.sampled_from([float("inf"), 0.02]),
    down=st.sampled_from([None, 500_000]),
    slow_start=st.booleans(),
    window=st.sampled_from([None, 20_000]),
    reordering=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_bytes_arrive_whole_and_in_order_whatever_the_setting(
    loss, queue_s, down, slow_start, window, reordering, seed
):
    sizes = [1, 30_000, 120_000]

    async def main():
        async with SimWorld(seed) as world:
            links = world.links
            links.set_default(latency_s=0.01, jitter_s=LogNormal(0.01, 1.0), loss=loss)
            links.slow_start, links.window_bytes, links.reordering = slow_start, window, reordering
            world.set_access("server", Access(down_bytes_per_s=down, queue_s=queue_s))
            receiver = Receiver(world.host("server"))
            async with trio.open_nursery() as nursery:
                for number, size in enumerate(sizes):
                    stream = await open_to(world.host(f"c{number}"), receiver)
                    nursery.start_soon(stream.send_all, noise(size, seed))
            await trio.sleep(200)
            return [bytes(data) for data in receiver.data.values()], world.trace_hash()

    got, trace = run(main, seed)
    assert sorted(got, key=len) == [noise(size, seed) for size in sizes]
    assert run(main, seed) == (got, trace)


async def test_streams_overtake_each_other_unless_told_otherwise():
    for reordering in (True, False):
        async with SimWorld(4) as world:
            world.links.set_default(latency_s=0.01, jitter_s=0.1)
            world.links.reordering = reordering
            receiver, client = Receiver(world.host("server")), world.host("client")
            streams = [await open_to(client, receiver) for _ in range(20)]
            for stream in streams:
                await stream.send_all(b"x")
            await trio.sleep(1)
            times = [at for _, at in sorted((number, at) for at, number, _ in receiver.log)]
            assert len(times) == 20
            assert (times != sorted(times)) == reordering


async def test_a_full_queue_drops_and_costs_a_round_trip():
    sent = {f"c{number}": 0.02 for number in range(10)}

    async def last(queue_s):
        async with SimWorld(1) as world:
            world.set_access("server", Access(down_bytes_per_s=1 * MB, queue_s=queue_s))
            receiver = Receiver(world.host("server"))
            streams = [await open_to(world.host(name), receiver) for name in sent]
            begun = trio.current_time()
            for stream in streams:
                await stream.send_all(bytes(10_000))
            await trio.sleep(30)
            assert sum(size for _, _, size in receiver.log) == 100_000
            return receiver.last_at - begun

    assert await last(float("inf")) == pytest.approx(0.01 + 10 * carried(10_000) / MB, rel=0.01)
    assert await last(0.02) > 0.01 + 10 * carried(10_000) / MB + 0.01


async def test_steps_pass_bulk_that_waits_and_bulk_takes_turns():
    async with SimWorld(1) as world:
        world.set_access("client", Access(up_bytes_per_s=wire_bytes(PIECE_BYTES + RECORD_HEADERS_BYTES)))
        receiver, client = Receiver(world.host("server")), world.host("client")
        streams = [await open_to(client, receiver) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for stream, priority in zip(streams, (1, 1, 1, 0), strict=True):
                nursery.start_soon(stream.send_all, bytes(PIECE_BYTES), Priority(priority))
                await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert [number for _, number, _ in receiver.log] == [1, 4, 2, 3]
        times = [at for at, _, _ in receiver.log]
        assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([1, 1, 1])


async def test_a_partition_keeps_what_is_under_way_and_the_rate_holds_afterwards():
    async with SimWorld(1, 0.05) as world:
        world.set_access("server", Access(down_bytes_per_s=1 * MB))
        receiver = Receiver(world.host("server"))
        stream = await open_to(world.host("client"), receiver)
        world.partition(["client"])
        await stream.send_all(bytes(100_000))
        await trio.sleep(3)
        assert not receiver.log
        healed = trio.current_time()
        world.heal()
        await trio.sleep(3)
        assert sum(size for _, _, size in receiver.log) == 100_000
        assert receiver.last_at - healed == pytest.approx(carried(100_000) / MB, rel=0.01)


async def test_a_rate_that_changes_counts_at_once():
    async with SimWorld(1, 0.0) as world:
        world.set_access("server", Access(down_bytes_per_s=1000))
        receiver = Receiver(world.host("server"))
        stream = await open_to(world.host("client"), receiver)
        begun = trio.current_time()
        for _ in range(5):
            await stream.send_all(bytes(10_000))
        await trio.sleep(1)
        world.set_access("server", Access(down_bytes_per_s=1 * MB))
        await trio.sleep(100)
        assert sum(size for _, _, size in receiver.log) == 50_000
        assert receiver.last_at - begun < 60
