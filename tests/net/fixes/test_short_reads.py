"""p2pllm.net.fixes.short_reads: packets in any number of pieces, and strangers who announce gigabytes."""

from __future__ import annotations

import pytest
import trio
from libp2p.io.exceptions import MessageTooLarge
from libp2p.network.stream.exceptions import StreamError

from p2pllm.net.link import HANDSHAKE_BYTES_MAX, TcpLink
from p2pllm.ports import Stream
from tests.net.fixes.stock import PROTOCOL, connect, stock_hosts
from tests.net.memory import MemoryNet, Wire, link_pair, networks


async def count(stream: Stream) -> None:
    got = 0
    while data := await stream.receive_some():
        got += len(data)
    await stream.send_all(b"%d" % got)


async def test_without_the_fix_a_packet_in_more_than_a_hundred_pieces_kills_the_connection() -> None:
    net = MemoryNet()
    async with stock_hosts(net) as (a, b):
        read = []

        async def handler(stream: object) -> None:
            try:
                while sum(read) < 60_000:
                    read.append(len(await stream.read(60_000)))  # type: ignore[attr-defined]
            except StreamError:
                pass

        a.set_stream_handler(PROTOCOL, handler)
        await connect(b, a)
        stream = await b.new_stream(a.get_id(), [PROTOCOL])
        net.wires[0].piece = 500
        await stream.write(bytes(60_000))
        await trio.sleep(30)
        assert sum(read) < 60_000


@pytest.mark.parametrize("piece", [1, 7, 500])
async def test_with_it_pieces_do_not_matter(piece: int) -> None:
    net = MemoryNet(piece=piece)
    async with networks(net, 2) as (a, b):
        a.serve("/count", count)
        await b.bootstrap()
        stream = await b.open_stream(a.me, "/count")
        await stream.send_all(bytes(70_000))
        await stream.close()  # type: ignore[attr-defined]
        assert await stream.receive_some() == b"70000"


async def test_a_handshake_holds_no_more_than_it_needs() -> None:
    here, there = link_pair(Wire())
    with pytest.raises(MessageTooLarge):
        await here.read(1 << 40)
    there.out.put(bytes(HANDSHAKE_BYTES_MAX))
    await here.read(HANDSHAKE_BYTES_MAX - 10)
    with pytest.raises(MessageTooLarge):
        await here.read(11)
    assert here.established() == bytes(10)
    there.out.put(b"from now on without limit")
    assert await here.read() == b"from now on without limit"


@pytest.mark.real_clock
async def test_the_tcp_transport_hands_over_our_link() -> None:
    from multiaddr import Multiaddr

    from p2pllm.net.fixes.short_reads import TcpTransport

    transport = TcpTransport()
    send, accepted = trio.open_memory_channel[object](1)

    async def handler(stream: object) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    listener = transport.create_listener(handler)
    await listener.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
    conn = await transport.dial(listener.get_addrs()[0])
    assert isinstance(conn.stream, TcpLink)  # type: ignore[attr-defined]
    await conn.write(b"x")
    there = await accepted.receive()
    assert isinstance(there, TcpLink)
    assert await there.read(1) == b"x"
    await there.close()
    await conn.close()
    await listener.close()
