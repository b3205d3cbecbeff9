"""A connection between two hosts, as bytes below encryption: what a socket is to the product, in virtual time.

Bytes wait in the sender's buffer, leave by its uplink in turn with its other connections, travel for the path's
delay, and pass the receiver's downlink. Each of these is a call of ``sim.timers``: no task waits but the reader's.

Invariants: order is kept, nothing is lost without an error, and errors are those of a socket. What meets a cut waits
there, as TCP's retransmissions do, and nobody is told. A buffer takes ``BUFFER_BYTES``, and is ready for more while
less than ``UNSENT_BYTES`` of it have not left, as the product demands of its sockets.
"""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from functools import partial
from typing import NamedTuple, Protocol

import outcome
import trio

from p2pllm.net.link import NOTSENT_BYTES_MAX, Link
from sim.libp2p.access import Downlink, Uplink
from sim.links import Links, retransmission_s
from sim.timers import Timers

BUFFER_BYTES = 4 * 1024 * 1024
"""Sent and not acknowledged: what Linux lets a connection have by itself."""
UNSENT_BYTES = NOTSENT_BYTES_MAX


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
        self._ended = False
        self._reset = False
        self._unsent = bytearray()
        self._offered = False
        self._flying = 0
        self._acks: deque[tuple[float, int]] = deque()
        self._arrives_at = 0.0
        self._held: deque[tuple[bytes | None, float]] = deque()
        """Arrived where nothing passes; None is a reset."""

    # -- at the sender

    def put(self, data: bytes | memoryview) -> int:
        """Take what fits; how many bytes."""
        size = min(len(data), BUFFER_BYTES - self.queued())
        if size <= 0:
            return 0
        data = data if size == len(data) else memoryview(data)[:size]
        uplink = self._between.uplink(self.source)
        if uplink.unlimited and not self._unsent:
            self._flying += size
            self.leave(bytes(data), 0.0)
        else:
            self._unsent += data
            if not self._offered:
                self._offered = True
                uplink.offer(self)
        return size

    def queued(self) -> int:
        """Bytes taken that are not acknowledged."""
        now = trio.current_time()
        while self._acks and self._acks[0][0] <= now:
            self._flying -= self._acks.popleft()[1]
        return len(self._unsent) + self._flying

    @property
    def ready(self) -> bool:
        """Whether the sender should put more."""
        return self.queued() < BUFFER_BYTES and len(self._unsent) < UNSENT_BYTES

    @property
    def acknowledged_at(self) -> float:
        """When the next acknowledgement comes, as far as it is known."""
        return self._acks[0][0] if self._acks else math.inf

    def take(self, size_max: int) -> bytes:
        """See ``access.Sender``."""
        piece = bytes(self._unsent[:size_max])
        del self._unsent[:size_max]
        self._offered = bool(piece)
        self._flying += len(piece)
        return piece

    def leave(self, piece: bytes, took_s: float) -> None:
        """See ``access.Sender``."""
        if self._reset:
            return
        self._send(piece, took_s)
        if self._ended and not self._unsent:
            self._send(b"", 0.0)
        self.far.other.wake_sender()

    def end(self) -> None:
        """Send the end of the file after everything else."""
        if not self._ended:
            self._ended = True
            if not self._unsent and not self._offered:
                self._send(b"", 0.0)

    def reset(self) -> None:
        """Drop what has not left, and tell the other end that the connection is gone."""
        if not self._reset:
            self._reset = True
            self._unsent.clear()
            self._send(None, 0.0)

    def _send(self, piece: bytes | None, took_s: float) -> None:
        delay_s = self._between.links.delay(self.source, self.target, len(piece or b""))
        self._arrives_at = max(self._arrives_at, trio.current_time() + delay_s)
        self._between.timers.at(self._arrives_at, lambda: self._arrive(piece, took_s))

    # -- at the receiver

    def _arrive(self, piece: bytes | None, took_s: float) -> None:
        self._held.append((piece, took_s))
        if len(self._held) == 1:
            self.let_through()

    def let_through(self) -> None:
        """What has arrived goes on, as far as a cut and a full queue let it."""
        downlink = self._between.downlink(self.target)
        while self._held and not self._between.cut(self.source, self.target):
            if downlink.full:
                rtt_s = self._between.links.latency(self.source, self.target) + self._back_s()
                self._between.timers.after(retransmission_s(1, rtt_s), self.let_through)
                return
            piece, took_s = self._held.popleft()
            passed_at = downlink.pass_at(len(piece or b""), took_s)
            if passed_at <= trio.current_time():
                self._deliver(piece)
            else:
                self._between.timers.at(passed_at, partial(self._deliver, piece))

    def _deliver(self, piece: bytes | None) -> None:
        if piece is None:
            self.far.broken(errno.ECONNRESET)
            return
        if piece:
            ack_at = trio.current_time() + self._back_s()
            self._acks.append((ack_at, len(piece)))
            if self.far.other.waits_to_send:
                self._between.timers.at(ack_at, self.far.other.wake_sender)
        self.far.arrived(piece)

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
