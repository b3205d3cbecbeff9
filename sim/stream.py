"""Simulated streams: ordered bytes between two hosts, delivered by virtual time.

Invariants: no task per message: a piece of data carries its time of arrival, and the reader sleeps until then. A
writer waits while the reader's window is full. What the real arm forbids, this one punishes: a stream whose sender was
cancelled is dead.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import trio

from p2pllm.errors import LocalProtocolError, PeerLost
from p2pllm.ports import Buffer
from p2pllm.types import PeerId, Priority

if TYPE_CHECKING:
    from sim.host import SimNetwork

WINDOW_BYTES = 256 * 1024
"""Unread bytes per direction of a stream, as in yamux."""
PIECE_BYTES = 16 * 1024
"""Data leaves in such pieces, so that steps get in between bulk."""


class Uplink:
    """A host's sending side: one piece at a time, steps before bulk, each for as long as its bytes take."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self._busy = False
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._arrivals = 0

    async def carry(self, size: int, priority: Priority) -> None:
        """Wait for the turn of ``size`` bytes and for the time that they occupy the link."""
        if self.bytes_per_s is None:
            return
        if self._busy:
            turn = trio.Event()
            self._arrivals += 1
            entry = (int(priority), self._arrivals, turn)
            heappush(self._waiting, entry)
            try:
                await turn.wait()
            except trio.Cancelled:
                if turn.is_set():
                    self._pass_on()
                else:
                    self._waiting = sorted(other for other in self._waiting if other is not entry)
                raise
        self._busy = True
        try:
            await trio.sleep(size / self.bytes_per_s)
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        self._busy = bool(self._waiting)
        if self._waiting:
            heappop(self._waiting)[2].set()


class Pipe:
    """One direction of a stream: what was sent, when it arrives, and what is left to read.

    Each end fails for itself: a reset takes its latency like everything else.
    """

    def __init__(self, sender: SimNetwork, receiver: SimNetwork) -> None:
        self.sender = sender
        self.receiver = receiver
        self.closed = False
        self.ignored = False
        self._sender_lost: str | None = None
        self._reader_lost: str | None = None
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._buffered = 0
        self._last_arrival = 0.0
        self._changed = trio.Event()
        self._reader: trio.CancelScope | None = None
        """Of a reader that waits: it looks again at the scope's deadline."""

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()
        self._changed = trio.Event()
        if self._reader is not None:
            self._reader.cancel()

    def fail_sender(self, reason: str) -> None:
        """The sending end is lost; a later reason does not replace the first."""
        self._sender_lost = self._sender_lost or reason
        self.wake()

    def fail_reader(self, reason: str, keep: bool) -> None:
        """The reading end is lost; with ``keep``, what has arrived can still be read."""
        self._reader_lost = self._reader_lost or reason
        now, cut = trio.current_time(), self.sender.world.cut(self.sender.name, self.receiver.name)
        arrived = [piece for piece in self._pieces if keep and not cut and piece[0] <= now]
        self._pieces = deque(arrived)
        self.wake()

    def ignore(self) -> None:
        """The reader has left: whatever comes is dropped, and nobody waits for room."""
        self.ignored = True
        self._pieces = deque([(0.0, b"")])
        self._buffered = 0
        self.wake()

    def check_sender(self) -> None:
        """Raise PeerLost when the stream is gone, LocalProtocolError when we closed it."""
        if self._sender_lost is not None:
            raise PeerLost(self._sender_lost)
        if self.closed:
            raise LocalProtocolError("the stream was closed on this side")

    def push(self, data: bytes) -> None:
        """Put a piece on its way; ``b""`` is the end of the file."""
        world = self.sender.world
        arrival = max(self._last_arrival, trio.current_time() + world.latency(self.sender.name, self.receiver.name))
        self._last_arrival = arrival
        if not self.ignored:
            self._pieces.append((arrival, data))
            self._buffered += len(data)
            if self._reader is not None and len(self._pieces) == 1:
                self._reader.deadline = arrival
        world.note("send" if data else "eof", self.sender.name, self.receiver.name, data)

    @property
    def full(self) -> bool:
        """Whether the reader has left too much unread."""
        return self._buffered >= WINDOW_BYTES

    async def wait_room(self) -> None:
        """Wait until the reader has taken enough."""
        while self._sender_lost is None and self.full:
            await self._changed.wait()
        self.check_sender()

    async def pull(self, max_bytes: int) -> bytes:
        """Wait for data that has arrived and take some of it."""
        world, waited = self.sender.world, False
        while True:
            until = math.inf
            if self._pieces and (self._reader_lost or not world.cut(self.sender.name, self.receiver.name)):
                until, data = self._pieces[0]
                if until <= trio.current_time():
                    if not waited:
                        await trio.lowlevel.checkpoint()
                    return self._take(data, until, max_bytes)
            elif self._reader_lost is not None:
                await trio.lowlevel.checkpoint_if_cancelled()
                raise PeerLost(self._reader_lost)
            # A writer moves the deadline: nobody is woken before there is something to read.
            with trio.CancelScope(deadline=until) as self._reader:
                try:
                    await trio.sleep_forever()
                finally:
                    self._reader = None
            waited = True

    def _take(self, data: bytes, arrival: float, max_bytes: int) -> bytes:
        if not data:
            return data  # the end of the file stays for whoever asks again
        self._pieces.popleft()
        if len(data) > max_bytes:
            self._pieces.appendleft((arrival, data[max_bytes:]))
            data = data[:max_bytes]
        self._buffered -= len(data)
        self.wake()
        return data


class SimStream:
    """One end of a simulated stream; see ``ports.Stream``."""

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
            if self._mine.world.tap is not None:
                data = self._mine.world.tap(self, bytes(data))
            view = memoryview(data).cast("B")
            for start in range(0, len(view), PIECE_BYTES):
                await self._send_piece(bytes(view[start : start + PIECE_BYTES]), priority)
        except trio.Cancelled:
            self.abort()
            raise
        finally:
            self._sending = False

    async def _send_piece(self, piece: bytes, priority: Priority) -> None:
        if self._out.full:
            timeout_s = self._mine.world.config.send_timeout_s
            with trio.move_on_after(timeout_s) as patience:
                await self._out.wait_room()
            if patience.cancelled_caught:
                self.abort()
                raise PeerLost(f"{self._other.name} took no data for {timeout_s:g} s")
        await self._mine.uplink.carry(len(piece), priority)
        self._out.check_sender()
        self._out.push(piece)

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
            self._out.push(b"")
            self._out.closed = True
        self._in.ignore()
        self._link.pop(self._number, None)

    def attach(self, link: dict[int, SimStream], number: int) -> None:
        """List this end among those of its connection, until it ends."""
        self._link, self._number = link, number
        link[number] = self

    def wake(self) -> None:
        """Let a waiting reader look again."""
        self._in.wake()

    def abort(self) -> None:
        """See ``ports.Stream.abort``."""
        if self.lost:
            return
        self._mine.world.note("abort", self._mine.name, self._other.name, b"")
        self.fail("the stream was aborted on this side", keep=False)
        other_end, reason = self.other_end, f"{self._mine.name} reset the stream"
        self._mine.world.later(self._mine.name, self._other.name, lambda: other_end.fail(reason))

    def fail(self, reason: str, keep: bool = True) -> None:
        """This end is lost, both directions; with ``keep``, what has arrived can still be read."""
        self.lost = True
        self._link.pop(self._number, None)
        self._in.fail_reader(reason, keep)
        self._out.fail_sender(reason)


def stream_pair(opener: SimNetwork, server: SimNetwork) -> tuple[SimStream, SimStream]:
    """Both ends of a new stream."""
    there, back = Pipe(opener, server), Pipe(server, opener)
    near, far = SimStream(opener, server, there, back), SimStream(server, opener, back, there)
    near.other_end, far.other_end = far, near
    return near, far
