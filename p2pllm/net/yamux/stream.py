"""One yamux stream: p2pllm's ``Stream`` port and libp2p's muxed-stream interface on the same object.

Invariants: a receiver that pauses costs the sender its credit, never the stream; credit returns as bytes are consumed.
Data that arrived before an error is still delivered. End of file (the peer's FIN) and loss are different: the first is
``b""``, the second ``PeerLost``. A send that did not finish leaves a reset stream and an intact connection.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import outcome
import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from p2pllm.errors import LocalProtocolError, PeerLost
from p2pllm.net.noise import RECORD_BYTES_MAX
from p2pllm.net.yamux.frames import FIN, HEADER_BYTES, RST, WINDOW_BYTES_INITIAL, WINDOW_UPDATE
from p2pllm.ports import Buffer
from p2pllm.types import PeerId, Priority

if TYPE_CHECKING:
    from p2pllm.net.yamux.connection import YamuxConnection

BODY_BYTES_MAX = RECORD_BYTES_MAX - HEADER_BYTES
"""One frame is one noise record: larger ones would be cut in two."""
WINDOW_BYTES_MAX = 4 * 1024 * 1024
"""What an unread stream may hold: 100 Mbit/s over 300 ms."""
DROPPED_BYTES_MAX = 1024 * 1024
"""A peer that sends more than this into a stream that we closed is told to stop."""


class YamuxStream(IMuxedStream):
    """See the module. Made by the connection only."""

    def __init__(self, conn: YamuxConnection, stream_id: int) -> None:
        self.conn = conn
        self.muxed_conn = conn
        self.stream_id = stream_id
        self.send_window = WINDOW_BYTES_INITIAL
        self.recv_window = WINDOW_BYTES_INITIAL
        self.touched_at = trio.current_time()
        self.fin_sent = False
        self.eof = False
        self.done = False  # nobody here will read or write any more
        self._target = WINDOW_BYTES_INITIAL
        self._released = 0
        self._dropped = 0
        self._updated_at = self.touched_at
        self._buffer = bytearray()
        self._error: str | None = None
        self._reader: trio.lowlevel.Task | None = None
        self._reader_max = 0
        self._sending = False
        self._credit: trio.Event | None = None

    # --- the port ---

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self.conn.peer

    async def send_all(self, data: Buffer, priority: Priority = Priority.STEP) -> None:
        """Send ``data`` whole, in frames of one record each; see the port for cancellation and errors."""
        if self._sending:
            raise LocalProtocolError("two tasks send on one stream")
        view = memoryview(data).cast("B")
        conn = self.conn
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while view:
                self._check_sendable()
                limit = BODY_BYTES_MAX if priority is Priority.STEP else min(BODY_BYTES_MAX, conn.bulk_frame_bytes)
                size = min(len(view), self.send_window, limit)
                if not size:
                    await self._wait_credit()
                    continue
                self.send_window -= size
                if not conn.send_now(self.stream_id, view[:size], priority):
                    await conn.send_later(self, view[:size], priority)
                elif priority is Priority.BULK:
                    await trio.lowlevel.checkpoint()
                view = view[size:]
        finally:
            self._sending = False
            if view:
                self.abort()

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, at most ``max_bytes``; ``b""`` after the peer's end of file."""
        if self._buffer or self._error is not None or self.eof or self.done:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._buffer:
                return self._take(max_bytes)
            if self._error is not None and not self.eof:
                raise PeerLost(self._error)
            return b""
        if self._reader is not None:
            raise LocalProtocolError("two tasks receive on one stream")
        self._reader = trio.lowlevel.current_task()
        self._reader_max = max_bytes

        def forget(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        data: bytes = await trio.lowlevel.wait_task_rescheduled(forget)
        return data

    async def aclose(self) -> None:
        """Send what is queued and the end of file; what the peer still sends is dropped."""
        self.done = True
        self._buffer.clear()
        with trio.CancelScope(shield=True):
            await self.close()
            await self.conn.flush()

    def abort(self) -> None:
        """Reset the stream, unless both ends have closed it or it is lost already."""
        self.done = True
        if self._error is None and not (self.fin_sent and self.eof):
            self.conn.control(WINDOW_UPDATE, RST, self.stream_id, 0)
        self.lose("the stream was aborted here")

    # --- libp2p's interface, for its own protocols ---

    async def read(self, n: int | None = -1) -> bytes:
        """At most ``n`` bytes; MuxedStreamEOF at the end, MuxedStreamReset when lost."""
        if n == 0:
            return b""
        try:
            data = await self.receive_some(65536 if n is None or n < 0 else n)
        except PeerLost as exc:
            raise MuxedStreamReset(str(exc)) from exc
        if not data:
            raise MuxedStreamEOF("the peer closed its side")
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.send_all(data)
        except PeerLost as exc:
            raise MuxedStreamReset(str(exc)) from exc

    async def close(self) -> None:
        """Half-close: the peer sees end of file, we may read on."""
        if not self.fin_sent and self._error is None:
            self.fin_sent = True
            self.conn.control(WINDOW_UPDATE, FIN, self.stream_id, 0)
            self.touched_at = trio.current_time()
            self._retire()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def reset(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint_if_cancelled()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are trio cancel scopes; this exists for the interface."""
        raise LocalProtocolError("a stream has no deadline of its own: use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.conn.get_remote_address()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- what the connection calls ---

    def deliver(self, data: bytes) -> None:
        """Bytes arrived, within the window."""
        self.touched_at = trio.current_time()
        if self.done:
            self._dropped += len(data)
            return self.abort() if self._dropped > DROPPED_BYTES_MAX else self._consumed(len(data))
        reader = self._reader
        if reader is None:
            self._buffer += data
        elif len(data) <= self._reader_max:
            self._reader = None
            self._consumed(len(data))
            trio.lowlevel.reschedule(reader, outcome.Value(data))
        else:
            self._buffer += data
            self._reader = None
            trio.lowlevel.reschedule(reader, outcome.Value(self._take(self._reader_max)))

    def end(self) -> None:
        """The peer will send no more."""
        self.eof = True
        self._wake_reader(outcome.Value(b""))
        self._retire()

    def credit(self, more: int) -> None:
        """The peer lets us send more."""
        self.send_window += more
        if self._credit is not None:
            self._credit.set()

    def lose(self, why: str) -> None:
        """The stream is over; what was received stays readable."""
        if self._error is None:
            self._error = why
        if self._credit is not None:
            self._credit.set()
        self._wake_reader(outcome.Error(PeerLost(self._error)))
        self.conn.forget(self)

    @property
    def lost(self) -> str | None:
        """Why the stream is dead; None while it lives."""
        return self._error

    @property
    def idle(self) -> bool:
        """Closed here, and nobody waits for the peer's half."""
        return self.fin_sent and self._reader is None

    # --- inside ---

    def _retire(self) -> None:
        if self.fin_sent and self.eof:
            self.conn.forget(self)

    def _wake_reader(self, result: outcome.Outcome[bytes]) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            trio.lowlevel.reschedule(reader, result)

    def _check_sendable(self) -> None:
        if self._error is not None:
            raise PeerLost(self._error)
        if self.fin_sent:
            raise PeerLost("the stream was closed here")

    async def _wait_credit(self) -> None:
        self._credit = trio.Event()
        timeout_s = self.conn.config.send_timeout_s
        with trio.move_on_after(timeout_s) as scope:
            await self._credit.wait()
        self._credit = None
        if scope.cancelled_caught:
            raise PeerLost(f"the peer took no data for {timeout_s:g} s")

    def _take(self, max_bytes: int) -> bytes:
        buffer = self._buffer
        if len(buffer) <= max_bytes:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:max_bytes])
            del buffer[:max_bytes]
        self._consumed(len(data))
        return data

    def _consumed(self, size: int) -> None:
        """Return credit in halves of the window; a window that is used up within four round trips is too small."""
        self._released += size
        if self._released < self._target // 2 or self.eof or self._error is not None:
            return
        now = trio.current_time()
        more, self._released = self._released, 0
        if self._target < WINDOW_BYTES_MAX and now - self._updated_at < 4 * max(self.conn.rtt(), 0.001):
            more += self._grow()
        self._updated_at = now
        self.recv_window += more
        self.conn.control(WINDOW_UPDATE, 0, self.stream_id, more)

    def _grow(self) -> int:
        more = self.conn.lend_window(min(self._target, WINDOW_BYTES_MAX - self._target))
        self._target += more
        return more

    @property
    def borrowed_window(self) -> int:
        """Window beyond the initial one, to be returned to the connection's pool."""
        return self._target - WINDOW_BYTES_INITIAL
