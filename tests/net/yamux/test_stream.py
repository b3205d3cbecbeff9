"""p2pllm.net.yamux.connection and its streams, outbox and p2pllm.net.yamux.heartbeat: what a bad network and a rude
peer can do to them.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2pllm.config import NetConfig
from p2pllm.errors import LocalProtocolError, PeerLost
from p2pllm.net.yamux import YamuxConnection, YamuxStream
from p2pllm.net.yamux.frames import ACK, DATA, FIN, GO_AWAY, PING, SYN, WINDOW_UPDATE, header
from p2pllm.net.yamux.stream import WINDOW_BYTES_MAX
from p2pllm.types import Priority
from tests.net.memory import Wire, yamux_pair


async def receive(stream: YamuxStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = await stream.receive_some()
        assert more
        data += more
    return bytes(data)


async def drain(stream: YamuxStream) -> None:
    while await stream.receive_some():
        pass


async def streams(a: YamuxConnection, b: YamuxConnection) -> tuple[YamuxStream, YamuxStream]:
    return a.open_nowait(), await b.accept_stream()


def pattern(size: int) -> bytes:
    return bytes(i * 31 % 251 for i in range(1024)) * (size // 1024 + 1)


async def test_bytes_arrive_whole_and_in_order_however_the_network_cuts_them() -> None:
    """3 MB both ways, in pieces of 1,000 bytes, through a buffer smaller than a frame."""
    async with yamux_pair(Wire(capacity=30_000, piece=1_000, latency_s=0.001)) as (a, b):
        one, other = await streams(a, b)
        data = pattern(1 << 20)[: 1 << 20]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, data)
            nursery.start_soon(other.send_all, data[::-1], Priority.BULK)
            assert await receive(other, len(data)) == data
            assert await receive(one, len(data)) == data[::-1]


async def test_end_of_file_is_not_loss() -> None:
    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        await one.send_all(b"last words")
        await one.aclose()
        assert await other.receive_some() == b"last words"
        assert await other.receive_some() == b""
        assert await other.receive_some() == b""
        await other.send_all(b"into the void")
        await other.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert not a._streams
        assert not b._streams


async def test_a_reset_is_loss_and_what_came_before_it_is_still_there() -> None:
    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        await one.send_all(b"half a mess")
        one.abort()
        one.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert await other.receive_some() == b"half a mess"
        with pytest.raises(PeerLost, match="reset"):
            await other.receive_some()
        with pytest.raises(PeerLost, match="reset"):
            await other.send_all(b"x")
        with pytest.raises(PeerLost, match="aborted here"):
            await one.receive_some()
        assert not a._streams
        assert not b._streams


async def test_a_lost_connection_is_loss_for_every_waiter() -> None:
    wire = Wire(capacity=10_000)
    async with yamux_pair(wire) as (a, b):
        one, other = await streams(a, b)
        lost: list[str] = []

        async def wait_for_data() -> None:
            with pytest.raises(PeerLost, match="closed"):
                await drain(other)
            lost.append("reader")

        async def wait_for_room() -> None:
            with pytest.raises(PeerLost, match="closed"):
                await one.send_all(bytes(1 << 20))
            lost.append("writer")

        async def wait_for_stream() -> None:
            with pytest.raises(Exception, match="closed"):
                await b.accept_stream()
            lost.append("acceptor")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_stream)
            nursery.start_soon(wait_for_data)
            await trio.testing.wait_all_tasks_blocked()
            wire.silent = True
            nursery.start_soon(wait_for_room)
            await trio.testing.wait_all_tasks_blocked()
            await a.close()
            wire.silent = False
            b._link.into.tell()
        assert sorted(lost) == ["acceptor", "reader", "writer"]
        with pytest.raises(PeerLost):
            a.open_nowait()


async def test_a_receiver_that_pauses_is_waited_for() -> None:
    """20 s without a read, longer than any window's worth of patience elsewhere."""
    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        data = pattern(1 << 20)[: 1 << 20]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, data)
            await trio.sleep(20)
            assert await receive(other, len(data)) == data


async def test_a_receiver_that_never_reads_ends_the_stream_alone() -> None:
    async with yamux_pair(config=NetConfig(send_timeout_s=7.0)) as (a, b):
        one, other = await streams(a, b)
        started = trio.current_time()
        with pytest.raises(PeerLost, match="took no data for 7 s"):
            await one.send_all(bytes(1 << 20))
        assert trio.current_time() - started == pytest.approx(7.0, abs=0.1)
        two, another = await streams(a, b)
        await two.send_all(b"fine")
        assert await another.receive_some() == b"fine"
        assert len(other._buffer) <= 256 * 1024


async def test_a_send_cancelled_at_any_moment_leaves_the_connection_intact() -> None:
    """The half-sent message's stream is dead; other streams never notice. Cancelled at every point of a slow send."""
    for moment in range(40):
        wire = Wire(capacity=5_000, piece=777, bytes_per_s=1e6)
        async with yamux_pair(wire) as (a, b):
            one, other = await streams(a, b)
            with trio.move_on_after(moment * 0.002) as scope:
                await one.send_all(bytes(60_000), Priority(moment % 2))
            if not scope.cancelled_caught:
                continue
            two, another = await streams(a, b)
            await two.send_all(pattern(20_000)[:20_000])
            assert await receive(another, 20_000) == pattern(20_000)[:20_000]
            with pytest.raises(PeerLost):
                await one.send_all(b"more")
            with pytest.raises(PeerLost):
                await drain(other)


async def test_a_receive_cancelled_at_any_moment_loses_nothing() -> None:
    async with yamux_pair(Wire(latency_s=0.005, piece=100)) as (a, b):
        one, other = await streams(a, b)
        data = pattern(5_000)[:5_000]
        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, data)
            while len(got) < len(data):
                with trio.move_on_after(0.0013):
                    got += await other.receive_some(70)
        assert got == data


async def test_writers_of_many_streams_take_turns() -> None:
    async with yamux_pair(Wire(capacity=20_000, bytes_per_s=1e6)) as (a, b):
        pairs = [await streams(a, b) for _ in range(5)]
        ends: list[float] = []

        async def send(stream: YamuxStream) -> None:
            await stream.send_all(bytes(200_000), Priority.BULK)
            ends.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for one, other in pairs:
                nursery.start_soon(send, one)
                nursery.start_soon(receive, other, 200_000)
        assert ends[-1] - ends[0] < 0.5, "five of them share 1 MB/s, so they end together, after a second"


async def test_a_step_overtakes_bulk_that_waits() -> None:
    async with yamux_pair(Wire(capacity=10_000, bytes_per_s=1e6)) as (a, b):
        bulk, bulk_there = await streams(a, b)
        step, step_there = await streams(a, b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk.send_all, bytes(2_000_000), Priority.BULK)
            nursery.start_soon(receive, bulk_there, 2_000_000)
            await trio.sleep(0.5)
            started = trio.current_time()
            await step.send_all(b"next token")
            assert await step_there.receive_some() == b"next token"
            assert trio.current_time() - started < 0.15, "one bulk record and one buffer at 1 MB/s"


async def test_bulk_in_flight_stays_within_a_tenth_of_a_second() -> None:
    """With a deep buffer below (where the system tells its depth), a step still waits little."""
    async with yamux_pair(Wire(capacity=8 << 20, bytes_per_s=2e6, latency_s=0.02)) as (a, b):
        a._link.tells_queue = True
        bulk, bulk_there = await streams(a, b)
        step, step_there = await streams(a, b)
        waits: list[float] = []
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk.send_all, bytes(8_000_000), Priority.BULK)

            async def drain() -> None:
                await receive(bulk_there, 8_000_000)
                nursery.cancel_scope.cancel()

            nursery.start_soon(drain)
            while True:
                await trio.sleep(0.1)
                asked = trio.current_time()
                await step.send_all(b"?")
                await step_there.receive_some()
                waits.append(trio.current_time() - asked)
        assert max(waits) < 0.25, "0.1 s of bulk, one record under way, the path itself"
        assert trio.current_time() - started < 4.0 * 1.3, "and the pipe stays busy: 8 MB at 2 MB/s"


async def test_windows_grow_with_the_path_and_stay_bounded() -> None:
    """10 MB/s over 100 ms each way needs 2 MB of window; 256 KB would give 1.3 MB/s."""
    async with yamux_pair(Wire(latency_s=0.1, capacity=64 << 20, bytes_per_s=10e6)) as (a, b):
        one, other = await streams(a, b)
        await trio.sleep(4)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, bytes(40_000_000), Priority.BULK)
            await receive(other, 40_000_000)
        assert trio.current_time() - started < 8.0
        assert other.recv_window <= WINDOW_BYTES_MAX


async def test_unread_streams_cannot_grow_without_bound() -> None:
    async with yamux_pair(config=NetConfig(streams_per_peer_max=64)) as (a, b):
        pairs = [await streams(a, b) for _ in range(64)]
        async with trio.open_nursery() as nursery:
            for one, _ in pairs:
                nursery.start_soon(one.send_all, bytes(10 << 20))
            await trio.sleep(5)
            assert sum(len(other._buffer) for _, other in pairs) <= 64 * 256 * 1024
            nursery.cancel_scope.cancel()


async def test_too_many_streams_are_refused_one_by_one() -> None:
    async with yamux_pair(config=NetConfig(streams_per_peer_max=3)) as (a, b):
        opened = [a.open_nowait() for _ in range(4)]
        for _ in range(3):
            await b.accept_stream()
        with pytest.raises(PeerLost, match="reset"):
            await opened[3].receive_some()
        opened[0].abort()
        await trio.testing.wait_all_tasks_blocked()
        again = a.open_nowait()
        await again.send_all(b"room again")
        assert await (await b.accept_stream()).receive_some() == b"room again"


async def test_what_is_sent_into_a_closed_stream_is_dropped_and_then_refused() -> None:
    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        await other.aclose()
        assert await one.receive_some() == b""
        await one.send_all(bytes(900_000))
        with pytest.raises(PeerLost, match="reset"):
            await one.send_all(bytes(4_000_000))


async def test_a_stream_that_only_we_closed_is_reset_after_a_while() -> None:
    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        await one.aclose()
        await trio.sleep(60)
        assert await other.receive_some() == b""
        with pytest.raises(PeerLost):
            await other.send_all(b"?")
        assert not a._streams


async def test_our_own_mistakes_are_named() -> None:
    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(LocalProtocolError, match="two tasks receive"):
                await one.receive_some()
            nursery.cancel_scope.cancel()
        await other.aclose()
        with pytest.raises(PeerLost, match="closed here"):
            await other.send_all(b"x")


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (b"\x01" + bytes(11), "not a yamux frame"),
        (header(9, 0, 0, 0), "not a yamux frame"),
        (header(WINDOW_UPDATE, SYN, 3, 0), "cannot open stream 3"),
        (header(WINDOW_UPDATE, SYN, 0, 0), "cannot open stream 0"),
        (header(WINDOW_UPDATE, SYN, 2, 0) * 2, "cannot open stream 2"),
        (header(DATA, SYN, 2, 300_000), "more data than the window"),
        (header(WINDOW_UPDATE, SYN, 2, 0xFFFFFFFF), "beyond all bounds"),
        (header(GO_AWAY, 0, 0, 0), "closed the connection"),
    ],
)
async def test_a_peer_that_breaks_yamux_loses_the_connection(frames: bytes, why: str) -> None:
    async with yamux_pair() as (a, b):
        b._link.out.put(frames)
        with trio.fail_after(1):
            await a._closed.wait()
        assert why in a.lost


async def test_what_belongs_to_no_stream_is_ignored() -> None:
    async with yamux_pair() as (a, b):
        b._link.out.put(header(DATA, FIN, 77, 5) + b"stray" + header(WINDOW_UPDATE, ACK, 99, 5))
        one, other = await streams(a, b)
        await other.send_all(b"fine")
        assert await one.receive_some() == b"fine"


async def test_a_flood_of_pings_is_answered_or_ends() -> None:
    """Answers that the peer does not take are bounded."""
    async with yamux_pair(Wire(capacity=4_000)) as (a, b):
        b._link.into.wire.silent = True
        a._link.into.wire = Wire()
        for _ in range(6_000):
            b._link.out.parts.append((0.0, header(PING, SYN, 0, 1)))
        b._link.out.tell()
        with trio.fail_after(4):
            await a._closed.wait()
        assert "more answers than it takes" in a.lost


async def test_a_silent_peer_is_noticed_and_a_busy_one_is_not() -> None:
    wire = Wire()
    config = NetConfig(heartbeat_interval_s=3.0, heartbeat_timeout_s=5.0)
    async with yamux_pair(wire, config) as (a, b):
        await trio.sleep(100)
        assert a.lost is None
        assert a.rtt() >= 0
        one, _ = await streams(a, b)
        wire.silent = True
        started = trio.current_time()
        with pytest.raises(PeerLost, match="silent for 5 s"):
            await one.receive_some()
        assert trio.current_time() - started <= 8.5


async def test_the_libp2p_side_of_a_stream_speaks_its_exceptions() -> None:
    from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

    async with yamux_pair() as (a, b):
        one, other = await streams(a, b)
        async with one:
            await one.write(b"abc")
        assert await other.read(2) == b"ab"
        assert await other.read(-1) == b"c"
        assert await other.read(0) == b""
        with pytest.raises(MuxedStreamEOF):
            await other.read()
        await other.write(b"half-closed streams still receive")
        assert await one.read() == b"half-closed streams still receive"
        await other.reset()
        with pytest.raises(MuxedStreamReset):
            await one.read()
