"""p2pllm.net.fixes.muxer: what libp2p's own yamux does under stress, and that ours is there instead and does not."""

from __future__ import annotations

import pytest
import trio
from libp2p.network.stream.exceptions import StreamError

from p2pllm.errors import PeerLost
from p2pllm.net.yamux import YamuxConnection
from p2pllm.ports import Stream
from tests.net.fixes.stock import PROTOCOL, connect, stock_hosts
from tests.net.memory import MemoryNet, networks


async def hold(stream: object) -> None:
    await trio.sleep_forever()


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def stock_echo(stream: object) -> None:
    while True:
        await stream.write(await stream.read(1000))  # type: ignore[attr-defined]


async def test_without_the_fix_a_pause_of_five_seconds_kills_the_stream() -> None:
    async with stock_hosts(MemoryNet()) as (a, b):
        a.set_stream_handler(PROTOCOL, hold)
        await connect(b, a)
        stream = await b.new_stream(a.get_id(), [PROTOCOL])
        started = trio.current_time()
        with pytest.raises(StreamError):
            await stream.write(bytes(20 << 20))
        assert trio.current_time() - started < 6


async def test_with_it_the_sender_waits() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        got = bytearray()

        async def late(stream: Stream) -> None:
            await trio.sleep(20)
            while data := await stream.receive_some():
                got.extend(data)

        a.serve("/late", late)
        await b.bootstrap()
        stream = await b.open_stream(a.me, "/late")
        await stream.send_all(bytes(5 << 20))
        await stream.aclose()
        await trio.sleep(1)
        assert len(got) == 5 << 20


async def test_without_the_fix_a_cancelled_write_ruins_the_connection() -> None:
    async with stock_hosts(MemoryNet(capacity=5_000, bytes_per_s=1e5)) as (a, b):
        a.set_stream_handler(PROTOCOL, stock_echo)
        await connect(b, a)
        await trio.sleep(3)
        big = await b.new_stream(a.get_id(), [PROTOCOL])
        small = await b.new_stream(a.get_id(), [PROTOCOL])
        with trio.move_on_after(0.1):
            await big.write(bytes(60_000))
        answered = False
        with trio.move_on_after(20):
            try:
                await small.write(b"ping")
                answered = await small.read(4) == b"ping"
            except StreamError:
                pass
        assert not answered


async def test_with_it_only_the_cancelled_stream_is_lost() -> None:
    async with networks(MemoryNet(capacity=5_000, bytes_per_s=1e5), 2) as (a, b):
        a.serve("/echo", echo)
        await b.bootstrap()
        await trio.sleep(3)
        big = await b.open_stream(a.me, "/echo")
        small = await b.open_stream(a.me, "/echo")
        with trio.move_on_after(0.1) as scope:
            await big.send_all(bytes(600_000))
        assert scope.cancelled_caught
        with trio.fail_after(20):
            await small.send_all(b"ping")
            assert await small.receive_some() == b"ping"
        with pytest.raises(PeerLost):
            await big.send_all(b"more")


async def test_without_the_fix_a_silent_peer_is_never_noticed() -> None:
    net = MemoryNet()
    async with stock_hosts(net) as (a, b):
        a.set_stream_handler(PROTOCOL, hold)
        await connect(b, a)
        stream = await b.new_stream(a.get_id(), [PROTOCOL])
        for wire in net.wires:
            wire.silent = True
        with trio.move_on_after(120) as scope:
            await stream.read(1)
        assert scope.cancelled_caught


async def test_our_muxer_is_the_one_in_use() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        await b.bootstrap()
        for node, peer in ((a, b.me), (b, a.me)):
            conns = node._host.get_network().get_connections()
            assert [type(conn.muxed_conn) for conn in conns] == [YamuxConnection]
            assert node.path(peer) is not None
