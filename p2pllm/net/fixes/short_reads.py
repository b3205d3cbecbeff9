"""Trap: a noise packet in more than 100 reads kills the connection, and a stranger's length field is believed.

libp2p's transport is kept; only the stream that it hands over is ours (``p2pllm.net.link``): it reads exactly, in
however many pieces, and no more than a handshake needs before the peer is known.
"""

from __future__ import annotations

from libp2p.abc import IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from p2pllm.net.fixes.inbound_slots import until_closed
from p2pllm.net.link import TcpLink


class TcpTransport(TCP):
    """libp2p's TCP, its connections read and written through our link."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        return _relink(await super().dial(maddr))

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int]) -> IRawConnection:
        return _relink(await super().dial_with_source(maddr, source))

    def create_listener(self, handler_function: THandler) -> TCPListener:
        async def handle(stream: ReadWriteCloser) -> None:
            if isinstance(stream, TrioTCPStream):
                await until_closed(handler_function, TcpLink(stream.stream))

        return super().create_listener(handle)


def _relink(conn: IRawConnection) -> IRawConnection:
    if not isinstance(conn, RawConnection) or not isinstance(conn.stream, TrioTCPStream):
        raise OpenConnectionError(f"a TCP dial gave a {type(conn).__name__}")
    return RawConnection(TcpLink(conn.stream.stream), True)
