"""Simulated streams: ordered bytes between two hosts, delivered by virtual time.

Invariants: no task per message: a piece of data carries its time of arrival, and the reader sleeps until then. A
writer waits while the reader's window is full. What the real arm forbids, this one punishes: a stream whose sender was
cancelled is dead. An idle stream costs nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import trio

from p2pllm.errors import LocalProtocolError, PeerLost
from p2pllm.ports import Buffer
from p2pllm.types import PeerId, Priority
from sim.credit import Credit
from sim.queues import Piece
from sim.route import Route

if TYPE_CHECKING:
    from sim.host import SimNetwork

PIECE_BYTES = 16 * 1024
"""Data leaves in such pieces, so that steps get in between bulk."""
RECORD_BYTES = {Priority.STEP: 65507, Priority.BULK: PIECE_BYTES}
"""What the product seals as one: it is read when its last byte is there, and credit comes back for it as a whole."""
RECORD_HEADERS_BYTES = 30
"""Of yamux and Noise."""


class Pipe:
    """One direction of a stream: what was sent, when it arrives, and what is left to read.

    Each end fails for itself: a reset takes its latency like everything else.
    """

    __slots__ = (
        "_pieces", "_reader", "_reader_lost", "_sender_lost", "_writer", "closed", "credit", "ignored", "receiver",
        "route", "sender", "turn",
    )  # fmt: skip

    def __init__(self, sender: SimNetwork, receiver: SimNetwork, route: Route) -> None:
        self.sender = sender
        self.receiver = receiver
        self.route = route
        self.closed = False
        self.ignored = False
        self.credit = Credit(trio.current_time(), route.pools[receiver.name], sender.world.links.window_bytes)
        self.turn: trio.Event | None = None
        """Of a piece that waits for the uplink."""
        self._sender_lost: str | None = None
        self._reader_lost: str | None = None
        self._pieces: deque[Piece] = deque()
        self._reader: trio.CancelScope | None = None
        """Of a reader that waits: it looks again at the scope's deadline."""
        self._writer: trio.CancelScope | None = None
        """Of a writer that waits for credit, likewise."""

    # -- what the way asks

    @property
    def cut(self) -> bool:
        """Whether nothing passes now."""
        return self.route.cut

    def fits(self, piece: Piece, now: float) -> bool:
        """Whether TCP lets ``piece`` leave now (what is lost anyway need not wait)."""
        window = self.route.congestion(self.sender, self.receiver)
        return window is None or self._sender_lost is not None or window.fits(piece.size, now)

    @property
    def fits_at(self) -> float:
        """The earliest moment at which that may change."""
        window = self.route.congestion(self.sender, self.receiver)
        return trio.current_time() if window is None else window.next_s

    def coming(self, piece: Piece) -> None:
        """A piece is on the last part of its way."""
        if self._reader is not None and self._pieces and self._pieces[0] is piece:
            self._reader.deadline = piece.arrival

    def wake(self) -> None:
        """Let whoever waits look again."""
        for scope in (self._reader, self._writer):
            if scope is not None:
                scope.cancel()

    # -- ends

    def fail_sender(self, reason: str) -> None:
        """The sending end is lost; a later reason does not replace the first."""
        self._sender_lost = self._sender_lost or reason
        if self.turn is not None:
            self.turn.set()
        self.wake()

    def fail_reader(self, reason: str, keep: bool) -> None:
        """The reading end is lost; with ``keep``, what has arrived can still be read."""
        self._reader_lost = self._reader_lost or reason
        now, arrived = trio.current_time(), deque[Piece]()
        while keep and self._pieces and (self.ignored or not self.cut) and self._pieces[0].arrived(now):
            arrived.append(self._pieces.popleft())
        self._pieces = arrived
        self.credit.close()
        self.wake()

    def ignore(self) -> None:
        """The reader has left: whatever comes is dropped, and nobody waits for room."""
        self.ignored = True
        end = Piece(self, b"", 0, Priority.STEP)
        end.arrival, end.settled, end.final = 0.0, True, True
        self._pieces = deque([end])
        self.credit.close()
        self.wake()

    def check_sender(self) -> None:
        """Raise PeerLost when the stream is gone, LocalProtocolError when we closed it."""
        if self._sender_lost is not None:
            raise PeerLost(self._sender_lost)
        if self.closed:
            raise LocalProtocolError("the stream was closed on this side")

    # -- the sender

    def push(self, piece: Piece) -> None:
        """A piece begins to leave its sender; one of no bytes is the end of the file."""
        if self._sender_lost is not None:
            return
        if not self.ignored:
            self._pieces.append(piece)
        if piece.data or not piece.size:
            self.sender.world.note("send" if piece.data else "eof", self.sender.name, self.receiver.name, piece.data)
        self.route.leave(piece, self.sender)

    async def take_room(self, wanted: int) -> int:
        """Wait until the window lets at least one byte leave; how many do, of ``wanted``.

        Raises:
            PeerLost: the reader took no data within the deadline.
        """
        now = trio.current_time()
        if not self.cut:
            self.credit.collect(now)
        if self.credit.room <= 0 and not self.ignored:
            await self._wait_room(now + self.sender.world.config.send_timeout_s)
        if self.ignored:
            return wanted
        limit = min(wanted, self.credit.room)
        self.credit.room -= limit
        return limit

    def piece_bytes(self, wanted: int) -> int:
        """How much of ``wanted`` leaves at once."""
        limit = min(wanted, PIECE_BYTES)
        window = None if self.ignored else self.route.congestion(self.sender, self.receiver)
        return limit if window is None else min(limit, window.piece_bytes(trio.current_time()))

    async def _wait_room(self, until: float) -> None:
        while self.credit.room <= 0 and not self.ignored:
            now = trio.current_time()
            if now >= until:
                timeout_s = self.sender.world.config.send_timeout_s
                raise PeerLost(f"{self.receiver.name} took no data for {timeout_s:g} s")
            next_s = math.inf if self.cut else self.credit.next_s
            with trio.CancelScope(deadline=min(until, next_s)) as self._writer:
                try:
                    await trio.sleep_forever()
                finally:
                    self._writer = None
            self.check_sender()
            if not self.cut:
                self.credit.collect(trio.current_time())

    # -- the reader

    async def pull(self, max_bytes: int) -> bytes:
        """Wait for data that has arrived and take some of it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            until = math.inf
            if self._pieces and (self._reader_lost is not None or self.ignored or not self.cut):
                now, piece = trio.current_time(), self._pieces[0]
                if piece.arrived(now):
                    if piece.data or not piece.size:
                        return self._take(piece, max_bytes, now)
                    self._pieces.popleft()  # a part of a record: its last piece has the data
                    continue
                until = piece.arrival if piece.final else math.inf
            elif self._reader_lost is not None:
                raise PeerLost(self._reader_lost)
            # A writer moves the deadline: nobody is woken before there is something to read.
            with trio.CancelScope(deadline=until) as self._reader:
                try:
                    await trio.sleep_forever()
                finally:
                    self._reader = None

    def _take(self, piece: Piece, max_bytes: int, now: float) -> bytes:
        data = piece.data
        if not data:
            return data  # the end of the file stays for whoever asks again
        if len(data) > max_bytes:
            piece.data, data = data[max_bytes:], data[:max_bytes]
        else:
            self._pieces.popleft()
        if self._reader_lost is None:
            route = self.route
            latency_s = route.latency(self.receiver.name)
            if self.credit.consumed(len(data), now, latency_s, route.rtt_s) and self._writer is not None:
                self._writer.deadline = min(self._writer.deadline, self.credit.next_s)
        return data


class SimStream:
    """One end of a simulated stream; see ``ports.Stream``."""

    __slots__ = ("_in", "_link", "_mine", "_number", "_other", "_out", "_receiving", "_sending", "lost", "other_end")

    other_end: SimStream

    def __init__(self, mine: SimNetwork, other: SimNetwork, outgoing: Pipe, incoming: Pipe) -> None:
        self._mine = mine
        self._other = other
        self._out = outgoing
        self._in = incoming
        self.lost = False
        self._link: dict[int, SimStream] = {}
        self._number = 0
        self._sending = False
        self._receiving = False

    @property
    def peer(self) -> PeerId:
        return self._other.me

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the hosts on this side and on the other."""
        return self._mine.name, self._other.name

    async def send_all(self, data: Buffer, priority: Priority = Priority.STEP) -> None:
        """See ``ports.Stream.send_all``."""
        if self._sending:
            raise LocalProtocolError("two tasks send on a stream at once")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._out.check_sender()
            data = bytes(data)
            if self._mine.world.tap is not None:
                data = self._mine.world.tap(self, data)
            await self._send(data, priority)
        except trio.Cancelled:
            self.abort()
            raise
        finally:
            self._sending = False

    async def _send(self, data: bytes, priority: Priority) -> None:
        start, most = 0, RECORD_BYTES[priority]
        while start < len(data):
            try:
                size = await self._out.take_room(min(most, len(data) - start))
            except PeerLost:
                self.abort()
                raise
            await self._send_record(data if size == len(data) else data[start : start + size], priority)
            start += size

    async def _send_record(self, record: bytes, priority: Priority) -> None:
        out, carried, left = self._out, self._mine.world.links.carried, len(record)
        while left:
            size = out.piece_bytes(left)
            left -= size
            if left:
                piece = Piece(out, b"", carried(size), priority)
            else:
                piece = Piece(out, record, carried(size + RECORD_HEADERS_BYTES), priority)
            await self._mine.uplink.carry(piece)
            out.check_sender()

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See ``ports.Stream.receive_some``."""
        if self._receiving:
            raise LocalProtocolError("two tasks receive on a stream at once")
        self._receiving = True
        try:
            return await self._in.pull(max_bytes)
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """See ``ports.Stream.aclose``."""
        self.finish()
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """Send the end of the file and read no more."""
        if not self.lost and not self._out.closed:
            end = Piece(self._out, b"", 0, Priority.STEP)
            end.left_at = end.ends_at = trio.current_time()
            self._out.push(end)
            self._out.closed = True
        self._in.ignore()
        self._link.pop(self._number, None)

    def attach(self, link: dict[int, SimStream], number: int) -> None:
        """List this end among those of its connection, until it ends."""
        self._link, self._number = link, number
        link[number] = self

    def wake(self) -> None:
        """Let whoever waits at this end look again."""
        self._in.wake()
        self._out.wake()

    def abort(self) -> None:
        """See ``ports.Stream.abort``."""
        if self.lost:
            return
        self._mine.world.note("abort", self._mine.name, self._other.name, b"")
        self.fail("the stream was aborted on this side", keep=False)
        other_end, reason = self.other_end, f"{self._mine.name} reset the stream"
        self._out.route.later(self._mine.name, lambda: other_end.fail(reason))

    def fail(self, reason: str, keep: bool = True) -> None:
        """This end is lost, both directions; with ``keep``, what has arrived can still be read."""
        self.lost = True
        self._link.pop(self._number, None)
        self._in.fail_reader(reason, keep)
        self._out.fail_sender(reason)

    def fail_both(self, reason: str) -> None:
        """See ``sim.world.TappedStream``."""
        self.other_end.fail(reason, keep=False)
        self.fail(reason, keep=False)


def stream_pair(opener: SimNetwork, server: SimNetwork, route: Route) -> tuple[SimStream, SimStream]:
    """Both ends of a new stream."""
    there, back = Pipe(opener, server, route), Pipe(server, opener, route)
    near, far = SimStream(opener, server, there, back), SimStream(server, opener, back, there)
    near.other_end, far.other_end = far, near
    return near, far
