"""sim.libp2p.wire: a connection is a socket in virtual time."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sim.libp2p.wire import BUFFER_BYTES, PIECE_BYTES, UNSENT_BYTES, Place, Wire, connection
from sim.links import Access, Links, wire_bytes
from sim.queues import Downlink, Uplink
from sim.timers import Timers

LATENCY_S = 0.05
RATE = 1e6


class Line:
    """Two hosts, and what lies between."""

    def __init__(self) -> None:
        self.links = Links(seed=1, latency_s=LATENCY_S)
        self.timers = Timers()
        self.is_cut = False
        self._up = {name: Uplink(self.timers, lambda piece: piece.pipe.launched(piece)) for name in "ab"}
        self._down = {name: Downlink() for name in "ab"}

    def plug(self, name: str, access: Access) -> None:
        self.links.set_access(name, access)
        self._up[name].change(access.up_bytes_per_s)
        self._down[name].change(access.down_bytes_per_s, access.queue_s)

    def cut(self, a: str, b: str) -> bool:
        return self.is_cut

    def uplink(self, name: str) -> Uplink:
        return self._up[name]

    def downlink(self, name: str) -> Downlink:
        return self._down[name]

    def wires(self) -> tuple[Wire, Wire]:
        return connection(self, Place("a", "10.0.0.1", 40000), Place("b", "10.0.0.2", 4001))


@asynccontextmanager
async def running(**accesses: Access) -> AsyncIterator[Line]:
    line = Line()
    for name, access in accesses.items():
        line.plug(name, access)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.timers.run)
        yield line
        nursery.cancel_scope.cancel()


async def receive_exactly(wire: Wire, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await wire.receive()
    assert len(data) == size
    return data


async def test_bytes_arrive_in_order_one_latency_later():
    async with running() as line:
        a, b = line.wires()
        assert (a.get_remote_address(), b.get_remote_address()) == (("10.0.0.2", 4001), ("10.0.0.1", 40000))
        began = trio.current_time()
        for piece in (b"one", b"two", memoryview(b"three")):
            assert a.try_send(piece) == len(piece)
        assert a.queued() == 11
        assert await b.receive() == b"onetwothree"
        assert trio.current_time() - began == pytest.approx(LATENCY_S)
        assert a.queued() == 11
        await trio.sleep(LATENCY_S)
        assert a.queued() == 0, "acknowledged a latency after it arrived"


@pytest.mark.parametrize(
    ("up", "down", "slowest"), [(RATE, None, RATE), (None, RATE, RATE), (RATE, RATE, RATE), (RATE, RATE / 4, RATE / 4)]
)
async def test_two_links_in_a_row_cost_the_slower_ones_time(up, down, slowest):
    async with running(a=Access(up_bytes_per_s=up), b=Access(down_bytes_per_s=down)) as line:
        a, b = line.wires()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, bytes(1_000_000))
            await receive_exactly(b, 1_000_000)
        taken = trio.current_time() - began
        assert taken == pytest.approx(LATENCY_S + wire_bytes(1_000_000) / slowest, rel=0.02)


async def test_connections_take_turns_on_an_uplink():
    async with running(a=Access(up_bytes_per_s=RATE)) as line:
        (bulk, _), (quick, far) = line.wires(), line.wires()
        assert bulk.try_send(bytes(1_000_000)) == UNSENT_BYTES
        began = trio.current_time()
        quick.try_send(b"step")
        assert await far.receive() == b"step"
        assert trio.current_time() - began < LATENCY_S + 2.2 * PIECE_BYTES / RATE


async def test_all_connections_share_a_downlink():
    async with running(b=Access(down_bytes_per_s=RATE)) as line:
        pairs = [line.wires() for _ in range(4)]
        began = trio.current_time()
        for a, _ in pairs:
            a.try_send(bytes(100_000))
        for _, b in pairs:
            await receive_exactly(b, 100_000)
        assert trio.current_time() - began == pytest.approx(LATENCY_S + wire_bytes(400_000) / RATE, rel=0.02)


async def test_what_finds_the_downlinks_queue_full_comes_again_and_in_order():
    async with running(b=Access(down_bytes_per_s=RATE, queue_s=0.02)) as line:
        a, b = line.wires()
        sent = [bytes([number]) * 10_000 for number in range(20)]
        for piece in sent:
            a.try_send(piece)
        began = trio.current_time()
        assert await receive_exactly(b, 200_000) == b"".join(sent)
        assert trio.current_time() - began > LATENCY_S + wire_bytes(200_000) / RATE + 2 * LATENCY_S


async def test_a_full_buffer_lets_the_sender_wait():
    async with running() as line:
        a, b = line.wires()
        line.is_cut = True
        assert sum(a.try_send(bytes(UNSENT_BYTES + 1)) for _ in range(20)) == BUFFER_BYTES
        assert a.try_send(b"x") == 0
        sent = trio.Event()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await a.send(b"more")
                sent.set()

            nursery.start_soon(send)
            await trio.sleep(10)
            assert not sent.is_set()
            line.is_cut = False
            a.out.look()
            with trio.fail_after(1.1 * LATENCY_S):
                await sent.wait()
        assert (await receive_exactly(b, BUFFER_BYTES + 4))[-4:] == b"more"


async def test_a_sender_leaves_no_more_unsent_than_the_product_wants():
    async with running(a=Access(up_bytes_per_s=RATE)) as line:
        a, _ = line.wires()
        began = trio.current_time()
        assert a.try_send(bytes(1_000_000)) == UNSENT_BYTES
        await a.send(bytes(500_000))
        assert trio.current_time() - began == pytest.approx(wire_bytes(500_000) / RATE, rel=0.05)


async def test_nothing_passes_a_cut_and_nothing_is_lost_there():
    async with running() as line:
        a, b = line.wires()
        a.try_send(b"before ")
        line.is_cut = True
        a.try_send(b"during ")
        with trio.move_on_after(100) as patience:
            await b.receive()
        assert patience.cancelled_caught
        line.is_cut = False
        a.out.look()
        a.try_send(b"after")
        assert await receive_exactly(b, 19) == b"before during after"


async def test_the_end_of_the_file_comes_last_and_stays():
    async with running(a=Access(up_bytes_per_s=RATE)) as line:
        a, b = line.wires()
        a.try_send(bytes(50_000))
        await a.close()
        await a.close()
        assert a.closed.is_set()
        await receive_exactly(b, 50_000)
        assert [await b.receive(), await b.receive()] == [b"", b""]
        with pytest.raises(OSError, match="Bad file descriptor"):
            a.try_send(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await a.receive()


async def test_closing_wakes_whoever_reads_here():
    async with running() as line, trio.open_nursery() as nursery:
        a, _ = line.wires()

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await a.receive()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await a.close()


async def test_who_writes_to_a_closed_end_is_reset():
    async with running() as line:
        a, b = line.wires()
        await b.close()
        assert await a.receive() == b""
        assert a.try_send(b"nobody reads this") == 17
        await trio.sleep(2.1 * LATENCY_S)
        with pytest.raises(ConnectionResetError):
            a.try_send(b"x")


async def test_a_crash_resets_the_connection_after_what_was_leaving():
    async with running(a=Access(up_bytes_per_s=RATE)) as line:
        a, b = line.wires()
        a.try_send(bytes(2 * PIECE_BYTES))
        await trio.sleep(0.5 * PIECE_BYTES / RATE)
        a.crash()
        a.crash()
        assert len(await b.receive()) == PIECE_BYTES
        with pytest.raises(ConnectionResetError) as caught:
            await b.receive()
        assert caught.value.errno == errno.ECONNRESET
        for end in (a, b):
            with pytest.raises(ConnectionResetError):
                end.try_send(b"x")
            await end.close()


async def test_a_crash_wakes_a_sender_that_waits():
    async with running() as line, trio.open_nursery() as nursery:
        a, b = line.wires()
        line.is_cut = True

        async def send() -> None:
            with pytest.raises(ConnectionResetError):
                await a.send(bytes(BUFFER_BYTES + 1))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        line.is_cut = False
        b.crash()


async def test_a_cancelled_reader_loses_nothing():
    async with running() as line:
        a, b = line.wires()
        with trio.move_on_after(0.01) as scope:
            await b.receive()
        assert scope.cancelled_caught
        a.try_send(b"x")
        assert await b.receive() == b"x"
