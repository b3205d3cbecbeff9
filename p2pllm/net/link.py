"""The bytes below encryption: one socket, read without limits on pieces, written without waiting where it can be.

Invariants: ``read(n)`` gives exactly n bytes, in however many pieces the network delivers them, and refuses to buffer
more than a handshake needs before the peer has proven who it is. ``try_send`` never waits and may take a part; ``send``
takes the rest. Nothing here knows noise, yamux or libp2p's connection classes beyond their base interface.
"""

from __future__ import annotations

import socket
import struct
import sys
from abc import abstractmethod

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError, MessageTooLarge

HANDSHAKE_BYTES_MAX = 64 * 1024
RECEIVE_BYTES_MIN = 68 * 1024
"""One noise record and a little: a step of any size is one system call. Larger reads are for bulk."""
RECEIVE_BYTES_MAX = 256 * 1024
NOTSENT_BYTES_MAX = 256 * 1024
"""Unsent bytes that the kernel takes at most: enough for full speed; bulk keeps below it by its own budget."""

if sys.platform == "linux":
    import fcntl

_LINUX = sys.platform == "linux"
_SIOCOUTQ = 0x5411
_TCP_NOTSENT_LOWAT = 25
_TCP_INFO_BYTES = 248
_TCP_INFO_RTT = 68
_TCP_INFO_MIN_RTT = 148


class Link(ReadWriteCloser):
    """What the noise and yamux layers need of a connection."""

    def __init__(self) -> None:
        self.closed = trio.Event()
        self._ahead = bytearray()
        self._budget: int | None = HANDSHAKE_BYTES_MAX

    @abstractmethod
    async def receive(self) -> bytes:
        """Bytes as soon as any are there; ``b""`` at the end. Raises OSError when the connection broke."""

    @abstractmethod
    def try_send(self, data: bytes | memoryview) -> int:
        """Hand over what fits without waiting; how many bytes. Raises OSError when the connection broke."""

    @abstractmethod
    async def send(self, data: bytes | memoryview) -> None:
        """Hand over all of ``data``. A cancelled send leaves a broken connection: close it."""

    def queued(self) -> int | None:
        """Bytes handed over that the peer has not acknowledged; None where the system does not tell."""
        return None

    def min_rtt_s(self) -> float | None:
        """The path's round trip without queues; None where the system does not tell."""
        return None

    def established(self) -> bytes:
        """The peer has proven who it is: lift the handshake limit, and return what was read ahead."""
        self._budget = None
        ahead, self._ahead = bytes(self._ahead), bytearray()
        return ahead

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes, or what is there when ``n`` is None; the handshake's interface."""
        if n is not None and self._budget is not None and n > self._budget:
            raise MessageTooLarge(f"{n} bytes asked for in a handshake")
        while len(self._ahead) < (1 if n is None else n):
            try:
                data = await self.receive()
            except (OSError, trio.ClosedResourceError) as exc:
                raise ConnectionClosedError(str(exc), transport="tcp") from exc
            if not data:
                raise IncompleteReadError("the peer closed during the handshake", n or 1, len(self._ahead))
            self._ahead += data
        size = len(self._ahead) if n is None else n
        out = bytes(self._ahead[:size])
        del self._ahead[:size]
        if self._budget is not None:
            self._budget -= size
        return out

    async def write(self, data: bytes) -> None:
        try:
            await self.send(data)
        except (OSError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError(str(exc), transport="tcp") from exc


class TcpLink(Link):
    """A TCP socket taken over from trio: no scheduler turn for a send that fits, one for a receive."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__()
        self._sock = socket.socket(fileno=stream.socket.detach())
        self._sock.setblocking(False)
        self._size = RECEIVE_BYTES_MIN
        try:
            peer = self._sock.getpeername()
            self._remote: tuple[str, int] | None = (str(peer[0]), int(peer[1]))
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _LINUX:
                self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_BYTES_MAX)
        except OSError:  # reset before we looked: the first read will say so
            self._remote = None

    async def receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            try:
                data = self._sock.recv(self._size)
            except BlockingIOError:
                continue
            if len(data) == self._size and self._size < RECEIVE_BYTES_MAX:
                self._size *= 2
            elif len(data) < self._size // 4 and self._size > RECEIVE_BYTES_MIN:
                self._size //= 2
            return data

    def try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while True:
            view = view[self.try_send(view) :]
            if not view:
                return
            await trio.lowlevel.wait_writable(self._sock.fileno())

    def queued(self) -> int | None:
        if sys.platform != "linux":
            return None
        try:
            return int.from_bytes(fcntl.ioctl(self._sock, _SIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
        except (OSError, ValueError):
            return None

    def min_rtt_s(self) -> float | None:
        if not _LINUX:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return None
        if len(info) < _TCP_INFO_MIN_RTT + 4:
            return None
        smoothed: int = struct.unpack_from("=I", info, _TCP_INFO_RTT)[0]
        least: int = struct.unpack_from("=I", info, _TCP_INFO_MIN_RTT)[0]
        return min(smoothed, least) / 1e6

    async def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock.fileno())
            self._sock.close()
        self.closed.set()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._remote


class ForeignLink(Link):
    """Any other libp2p connection (a relay circuit, say) behind the same interface: correct, not fast."""

    def __init__(self, conn: ReadWriteCloser) -> None:
        super().__init__()
        self._conn = conn

    async def receive(self) -> bytes:
        try:
            return await self._conn.read(RECEIVE_BYTES_MIN)
        except (ConnectionClosedError, IncompleteReadError) as exc:
            raise OSError(str(exc)) from exc

    def try_send(self, data: bytes | memoryview) -> int:
        return 0

    async def send(self, data: bytes | memoryview) -> None:
        try:
            await self._conn.write(bytes(data))
        except ConnectionClosedError as exc:
            raise OSError(str(exc)) from exc

    async def close(self) -> None:
        self.closed.set()
        await self._conn.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._conn.get_remote_address()
