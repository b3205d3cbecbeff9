"""p2pllm.net.link and yamux on real sockets: partial sends, resets, and steps before bulk through a slow pipe."""

from __future__ import annotations

import socket
import sys
import time

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError

from p2pllm.config import NetConfig
from p2pllm.net.link import ForeignLink, TcpLink
from p2pllm.net.yamux import YamuxConnection, YamuxStream
from p2pllm.types import Priority
from tests.net.memory import PEER, PlainSession, Wire, link_pair

pytestmark = pytest.mark.real_clock
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is queued")


async def tcp_pair(send_bytes: int = 0, receive_bytes: int = 0) -> tuple[TcpLink, TcpLink]:
    """Two ends of a TCP connection; the limits are of the first one's sending and the second one's receiving buffer."""
    listener = socket.socket()
    if receive_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    here = socket.socket()
    if send_bytes:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    here.connect(listener.getsockname())
    there, _ = listener.accept()
    listener.close()
    links = [TcpLink(trio.SocketStream(trio.socket.from_stdlib_socket(sock))) for sock in (here, there)]
    return links[0], links[1]


async def test_a_send_takes_what_fits_and_the_rest_follows() -> None:
    one, other = await tcp_pair(8_000, 8_000)
    data = bytes(range(256)) * 4_000
    taken = one.try_send(data)
    assert 0 < taken < len(data)
    while (more := one.try_send(data[taken:])) > 0:
        taken += more
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send, data[taken:])
        while len(got) < len(data):
            got += await other.receive()
    assert got == data
    await one.close()
    assert await other.receive() == b""
    await other.close()
    await other.close()


async def test_exact_reads_and_their_errors() -> None:
    one, other = await tcp_pair()
    await one.write(b"abcdef")
    assert await other.read(2) == b"ab"
    assert await other.read(4) == b"cdef"
    await one.write(b"xy")
    await one.close()
    with pytest.raises(IncompleteReadError):
        await other.read(3)
    await other.close()
    with pytest.raises(ConnectionClosedError):
        await other.write(b"x")
    assert other.get_remote_address() is not None


@linux
async def test_the_system_tells_what_is_queued_and_how_long_the_path_is() -> None:
    one, other = await tcp_pair(100_000, 10_000)
    assert one.queued() == 0
    taken = 0
    while (more := one.try_send(bytes(10_000))) > 0:
        taken += more
    queued = one.queued()
    assert queued is not None
    assert 0 < queued <= taken
    rtt_s = one.min_rtt_s()
    assert rtt_s is not None
    assert rtt_s < 0.1
    await one.close()
    assert one.queued() is None
    assert one.min_rtt_s() is None
    await other.close()


async def test_any_other_connection_serves_as_a_link() -> None:
    here, there = link_pair(Wire())
    link = ForeignLink(here)
    assert link.try_send(b"x") == 0
    await link.send(b"hello")
    assert await there.read(5) == b"hello"
    assert link.queued() is None
    assert link.get_remote_address() == ("10.0.0.2", 4001)
    await link.close()
    with pytest.raises(OSError, match="closed"):
        await link.send(b"x")


class SlowLink(TcpLink):
    """A receiver that takes ``bytes_per_s`` from a real socket: the sender's kernel queue fills as on a slow path."""

    bytes_per_s = 8e5

    async def receive(self) -> bytes:
        data = await super().receive()
        await trio.sleep(len(data) / self.bytes_per_s)
        return data


async def step_waits(kind: type[YamuxConnection]) -> list[float]:
    one, other = await tcp_pair(4_000_000, 20_000)
    slow = SlowLink.__new__(SlowLink)
    slow.__dict__.update(other.__dict__)
    config = NetConfig()
    a = kind(PlainSession(one, True), PEER, config)  # type: ignore[arg-type]
    b = YamuxConnection(PlainSession(slow, False), PEER, config)  # type: ignore[arg-type]
    waits: list[float] = []

    async def drain(stream: YamuxStream) -> None:
        while await stream.receive_some(1 << 20):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        await a.event_started.wait()
        bulk, step = a.open_nowait(), a.open_nowait()
        nursery.start_soon(drain, await b.accept_stream())
        there = await b.accept_stream()
        nursery.start_soon(bulk.send_all, bytes(40_000_000), Priority.BULK)
        await trio.sleep(2.0)
        for _ in range(10):
            begun = time.perf_counter()
            await step.send_all(b"next token")
            assert await there.receive_some() == b"next token"
            waits.append(time.perf_counter() - begun)
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return waits


@linux
async def test_a_step_waits_little_behind_bulk_on_a_slow_path() -> None:
    """0.8 MB/s, megabytes of kernel buffer: bulk keeps to 100 ms of it, so the median step waits hardly longer."""
    waits = sorted(await step_waits(YamuxConnection))
    assert waits[len(waits) // 2] < 0.25


@linux
async def test_without_pacing_it_waits_for_the_whole_buffer() -> None:
    class Unpaced(YamuxConnection):
        def _hold_s(self, size: int) -> float:
            return 0.0

    waits = sorted(await step_waits(Unpaced))
    assert waits[len(waits) // 2] > 0.25
