"""A connection between two hosts, as bytes below encryption: what a socket is to the product, in virtual time.

Bytes wait in the sender's buffer, and pass the same uplinks, ways and downlinks, under the same congestion window, as
those of the other stack (``sim.queues``, ``sim.congestion``). Each of these is a call of ``sim.timers``: no task waits
but the reader's.

Invariants: order is kept, nothing is lost without an error, and errors are those of a socket. What meets a cut waits
there, as TCP's retransmissions do, and nobody is told. A buffer takes ``BUFFER_BYTES``, of which ``UNSENT_BYTES`` may
not have left, as the product demands of its sockets.
"""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import outcome
import trio

from p2pllm.net.link import NOTSENT_BYTES_MAX, Link
from p2pllm.types import Priority
from sim.congestion import Congestion
from sim.links import Links
from sim.queues import Downlink, Piece, Uplink
from sim.timers import Timers

if TYPE_CHECKING:
    from sim.stream import Pipe

BUFFER_BYTES = 4 * 1024 * 1024
"""Sent and not acknowledged: what Linux lets a connection have by itself."""
UNSENT_BYTES = NOTSENT_BYTES_MAX
PIECE_BYTES = 16 * 1024 + 64
"""Connections take turns on a limited uplink by such pieces; four hold a full record of Noise."""


class Between(Protocol):
    """What lies between two hosts: the world, as a wire sees it."""

    links: Links
    timers: Timers

    def cut(self, a: str, b: str) -> bool:
        """Whether nothing passes now."""
        ...

    def uplink(self, name: str) -> Uplink: ...

    def downlink(self, name: str) -> Downlink: ...


class Place(NamedTuple):
    """One end's address."""

    host: str
    ip: str
    port: int


class Way:
    """One direction of a connection."""

    far: Wire
    """The end at which bytes arrive."""

    def __init__(self, between: Between, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self._between = between
        self._uplink, self._downlink = between.uplink(source), between.downlink(target)
        self._congestion = self._window()
        self._ended = False
        self._reset = False
        self._unsent = bytearray()
        self._offering = False
        self._turn: Piece | None = None
        """Waits for the uplink, or is leaving."""
        self._flying: deque[Piece] = deque()
        self._last: Piece | None = None
        """The end of the file or a reset, once it is on its way."""
        self._unacknowledged = 0
        self._acks: deque[tuple[float, int]] = deque()
        self._first_at = 0.0
        self._look_at = math.inf

    def _window(self) -> Congestion | None:
        links = self._between.links
        needed = links.slow_start or self._downlink.lossy or links.loss(self.source, self.target) > 0
        return Congestion(self._back_s()) if needed else None

    # -- at the sender

    def put(self, data: bytes | memoryview) -> int:
        """Take what fits; how many bytes."""
        size = max(0, min(len(data), BUFFER_BYTES - self.queued(), UNSENT_BYTES - len(self._unsent)))
        if size:
            self._unsent += data if size == len(data) else memoryview(data)[:size]
            self._unacknowledged += size
            self._offer()
        return size

    def queued(self) -> int:
        """Bytes taken that are not acknowledged."""
        now = trio.current_time()
        while self._acks and self._acks[0][0] <= now:
            self._unacknowledged -= self._acks.popleft()[1]
        return self._unacknowledged

    @property
    def ready(self) -> bool:
        """Whether the sender should put more."""
        return self.queued() < BUFFER_BYTES and len(self._unsent) < UNSENT_BYTES

    @property
    def acknowledged_at(self) -> float:
        """When the next acknowledgement comes, as far as it is known."""
        return self._acks[0][0] if self._acks else math.inf

    def end(self) -> None:
        """Send the end of the file after everything else."""
        self._ended = True
        self._offer()

    def reset(self) -> None:
        """Drop what has not left, and tell the other end that the connection is gone."""
        if not self._reset:
            self._reset = True
            self._unsent.clear()
            self._finish()

    def _offer(self) -> None:
        """Let the next bytes wait for their turn, unless others of this connection do already."""
        while self._turn is None and self._unsent:
            size = len(self._unsent) if self._uplink.bytes_per_s is None else PIECE_BYTES
            if self._congestion is not None:
                size = min(size, PIECE_BYTES, self._congestion.piece_bytes(trio.current_time()))
            data = bytes(self._unsent[:size])
            del self._unsent[:size]
            size = self._between.links.carried(len(data))
            self._turn = piece = Piece(cast("Pipe", self), data, size, Priority.STEP)
            self._offering = True
            self._uplink.forward(piece)
            self._offering = False
        if self._ended and self._turn is None and self._last is None:
            self._finish()

    def launched(self, piece: Piece) -> None:
        """The uplink carries ``piece`` from now on."""
        if self._offering and piece.ends_at <= trio.current_time():
            self._turn = None  # at once, and whoever offers goes on
        else:
            self._between.timers.at(piece.ends_at, self._left)
        if not self._reset:
            self._travel(piece)
            if self._congestion is not None:
                self._congestion.sent(piece, piece.left_at)

    def _left(self) -> None:
        self._turn = None
        self._offer()
        self.far.other.wake_sender()

    def _finish(self) -> None:
        self._last = Piece(cast("Pipe", self), b"", 0, Priority.STEP)
        self._last.left_at = self._last.ends_at = trio.current_time()
        self._travel(self._last)

    def _travel(self, piece: Piece) -> None:
        delay_s, losses = self._between.links.journey(self.source, self.target, piece.size)
        first_at = self._first_at = max(piece.left_at + delay_s, self._first_at)
        piece.losses, piece.rtt_s = losses, delay_s + self._back_s()
        piece.final = True
        self._downlink.take(piece, first_at, first_at + piece.ends_at - piece.left_at)
        self._flying.append(piece)
        if len(self._flying) == 1:
            self._plan()

    # -- what the uplink asks of a flow

    @property
    def cut(self) -> bool:
        """Whether nothing passes now."""
        return self._between.cut(self.source, self.target)

    def fits(self, piece: Piece, now: float) -> bool:
        """Whether TCP lets ``piece`` leave now (what is lost anyway need not wait)."""
        return self._congestion is None or self._reset or self._congestion.fits(piece.size, now)

    @property
    def fits_at(self) -> float:
        """The earliest moment at which that may change."""
        return trio.current_time() if self._congestion is None else self._congestion.next_s

    # -- at the receiver

    def look(self) -> None:
        """Hand over what has arrived; nothing does while the way is cut."""
        now = trio.current_time()
        if self._look_at <= now:
            self._look_at = math.inf
        while self._flying and not self.cut and self._flying[0].arrived(now):
            self._deliver(self._flying.popleft(), now)
        if self._flying and not self.cut:
            self._plan()

    def _plan(self) -> None:
        due = self._flying[0].arrival
        if due < self._look_at:
            self._look_at = due
            self._between.timers.at(due, self.look)

    def _deliver(self, piece: Piece, now: float) -> None:
        if piece is not self._last:
            ack_at = now + self._back_s()
            self._acks.append((ack_at, len(piece.data)))
            if self.far.other.waits_to_send:
                self._between.timers.at(ack_at, self.far.other.wake_sender)
            self.far.arrived(piece.data)
        elif self._reset:
            self.far.broken(errno.ECONNRESET)
        else:
            self.far.arrived(b"")

    def _back_s(self) -> float:
        return self._between.links.latency(self.target, self.source)


class Wire(Link):
    """One end of a connection."""

    other: Wire

    def __init__(self, out: Way, into: Way, remote: tuple[str, int]) -> None:
        super().__init__()
        self.out = out
        self.into = into
        self._remote = remote
        self._inbox: list[bytes] = []
        self._ended = False
        self._error = 0
        self._reader: trio.lowlevel.Task | None = None
        self._sender: trio.Event | None = None
        into.far = self

    # -- for the product

    async def receive(self) -> bytes:
        if not (self._inbox or self._ended or self.over):
            self._reader = trio.lowlevel.current_task()

            def forget(_: object) -> trio.lowlevel.Abort:
                self._reader = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(forget)
        else:
            await trio.lowlevel.checkpoint()
        if self.closed.is_set():
            raise trio.ClosedResourceError("this socket was closed")
        if not self._inbox and self._error:
            raise self._failure()
        data = self._inbox[0] if len(self._inbox) == 1 else b"".join(self._inbox)
        self._inbox.clear()
        return data

    def try_send(self, data: bytes | memoryview) -> int:
        if self.over:
            raise self._failure()
        return self.out.put(data)

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while True:
            view = view[self.try_send(view) :]
            if not view:
                return
            while not self.out.ready and not self.over:
                self._sender = trio.Event()
                with trio.move_on_at(self.out.acknowledged_at):
                    await self._sender.wait()
                self._sender = None

    def queued(self) -> int | None:
        return self.out.queued()

    async def close(self) -> None:
        if not self.closed.is_set():
            if not self._error:
                self.out.end()
            self.closed.set()
            self._wake()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._remote

    # -- for the ways and the world

    @property
    def over(self) -> bool:
        """Closed here, or gone."""
        return self._error != 0 or self.closed.is_set()

    @property
    def waits_to_send(self) -> bool:
        """Whether somebody waits for room."""
        return self._sender is not None

    def wake_sender(self) -> None:
        """There may be room."""
        if self._sender is not None:
            self._sender.set()

    def arrived(self, piece: bytes) -> None:
        """Bytes, or ``b""`` for the end of the file, are there to be read."""
        if not self.over:
            self._ended = self._ended or not piece
            if piece:
                self._inbox.append(piece)
            self._wake_reader()
        elif piece:  # nobody is left to read it
            self.out.reset()

    def broken(self, error: int) -> None:
        """The connection is gone; what has arrived can still be read."""
        if not self.over:
            self._error = error
            self._wake()

    def crash(self) -> None:
        """The host of this end is down: its system, or whoever asks for it next, resets the connection."""
        self.out.reset()
        self.broken(errno.ECONNRESET)

    def _failure(self) -> OSError:
        error = self._error or errno.EBADF
        return OSError(error, os.strerror(error))  # OSError makes itself the right subclass

    def _wake(self) -> None:
        self._wake_reader()
        self.wake_sender()

    def _wake_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader, outcome.Value(None))


def connection(between: Between, a: Place, b: Place) -> tuple[Wire, Wire]:
    """Both ends of a new connection."""
    there, back = Way(between, a.host, b.host), Way(between, b.host, a.host)
    near, far = Wire(there, back, (b.ip, b.port)), Wire(back, there, (a.ip, a.port))
    near.other, far.other = far, near
    return near, far
