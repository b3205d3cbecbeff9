"""A host's two queues: the uplink, where its own streams wait for their turn, and the downlink, where others' data do.

The uplink takes one piece at a time, steps before bulk; senders wait, so nothing is lost there. The downlink takes
pieces in the order in which they arrive; what finds more than ``queue_s`` of work before it is dropped, and comes again
when TCP would repeat it. A piece passes both links as a row of packets does: it occupies each for as long as that link
needs, and the slower one decides when its last byte is there. The two links pass on whole packets, as routers do, so
there is one packet more on the faster one.

Invariants: a link never carries more than its rate. The downlink has no task and no timer: whoever asks what has
arrived settles it up to now; until then a piece's arrival is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import trio

from p2pllm.types import Priority
from sim.links import PACKET_BYTES, RTO_MIN_S, retransmission_s
from sim.timers import Timers

if TYPE_CHECKING:
    from sim.stream import Pipe


class Piece:
    """Some bytes of one direction of a stream, on their way."""

    __slots__ = (
        "arrival", "data", "ends_at", "final", "left_at", "losses", "pipe", "priority", "rtt_s", "settled", "size",
        "where",
    )  # fmt: skip

    def __init__(self, pipe: Pipe, data: bytes, size: int, priority: Priority) -> None:
        self.pipe = pipe
        self.data = data
        self.size = size
        """As links carry it."""
        self.priority = priority
        self.left_at = self.ends_at = 0.0
        """When it began and ceased to occupy its sender's uplink."""
        self.arrival = math.inf
        """When its last byte is there; no earlier than that, until it is ``settled``."""
        self.settled = False
        self.final = False
        """Whether ``arrival`` is that at the receiver, not at a relay."""
        self.losses = 0
        self.rtt_s = 0.0
        self.where: Downlink | None = None
        """In whose queue it is."""

    def arrived(self, now: float) -> bool:
        """Whether the receiver has it."""
        if self.final and not self.settled and self.where is not None:
            self.where.settle(now)
        return self.settled and self.final and self.arrival <= now


class Turn:
    """A piece that waits to leave, and whoever waits with it (nobody at a relay)."""

    __slots__ = ("came", "piece")

    def __init__(self, piece: Piece, came: trio.Event | None) -> None:
        self.piece = piece
        self.came = came


class Uplink:
    """A host's sending side. ``launch`` is told of every piece that begins to leave."""

    def __init__(self, timers: Timers, launch: Callable[[Piece], None]) -> None:
        self.bytes_per_s: float | None = None
        self._timers = timers
        self._launch = launch
        self._free_at = 0.0
        self._lines: dict[Priority, list[Turn]] = {priority: [] for priority in sorted(Priority)}
        self._waiting = 0
        self._planned_at = math.inf

    async def carry(self, piece: Piece) -> None:
        """Wait for the piece's turn, and then for as long as it occupies the link."""
        now = trio.current_time()
        if not self._waiting and self._free_at <= now and piece.pipe.fits(piece, now):
            self._start(piece, now)
        else:
            await self._wait_turn(piece)
        if piece.ends_at > trio.current_time():
            await trio.sleep_until(piece.ends_at)

    def change(self, bytes_per_s: float | None) -> None:
        """Another rate from now on, also for who waits behind the piece that is leaving."""
        now, before = trio.current_time(), self.bytes_per_s
        if before is not None and self._free_at > now:
            left_s = (self._free_at - now) * before / bytes_per_s if bytes_per_s else 0.0
            self._free_at = now + left_s
        self.bytes_per_s = bytes_per_s
        self.advance()

    def forward(self, piece: Piece) -> None:
        """Let a relayed piece leave when its turn comes; nobody waits for it."""
        self._lines[piece.priority].append(Turn(piece, None))
        self._waiting += 1
        self.advance()

    def advance(self) -> None:
        """Let pieces leave whose turn has come, and plan the next look."""
        now = trio.current_time()
        if self._planned_at <= now:
            self._planned_at = math.inf
        while self._waiting and self._free_at <= now:
            turn = self._take(now)
            if turn is None:
                turns = [turn for line in self._lines.values() for turn in line]
                return self._plan(min(turn.piece.pipe.fits_at for turn in turns))
            self._start(turn.piece, now)
            if turn.came is not None:
                turn.came.set()
        if self._waiting:
            self._plan(self._free_at)

    def clear(self) -> None:
        """The host is down: nothing leaves any more."""
        for line in self._lines.values():
            line.clear()
        self._waiting = 0

    def _take(self, now: float) -> Turn | None:
        for line in self._lines.values():
            for index, turn in enumerate(line):
                if turn.piece.pipe.fits(turn.piece, now):
                    self._waiting -= 1
                    return line.pop(index)
        return None

    def _start(self, piece: Piece, now: float) -> None:
        piece.left_at = now
        piece.ends_at = self._free_at = now + piece.size / self.bytes_per_s if self.bytes_per_s else now
        self._launch(piece)

    def _plan(self, when_s: float) -> None:
        if when_s < self._planned_at:
            self._planned_at = when_s
            self._timers.at(when_s, self.advance)

    async def _wait_turn(self, piece: Piece) -> None:
        turn = Turn(piece, trio.Event())
        line = self._lines[piece.priority]
        line.append(turn)
        self._waiting += 1
        piece.pipe.turn = turn.came
        self.advance()
        assert turn.came is not None
        try:
            await turn.came.wait()
        finally:
            piece.pipe.turn = None
            if turn in line:  # cancelled, or the stream was lost
                line.remove(turn)
                self._waiting -= 1


class Downlink:
    """A host's receiving side."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self.queue_s = math.inf
        self._free_at = 0.0
        self._numbers = 0
        self._queue: list[tuple[float, int, Piece]] = []
        self._stuck: list[Piece] = []

    @property
    def lossy(self) -> bool:
        """Whether it may drop what comes."""
        return self.bytes_per_s is not None and self.queue_s < math.inf

    def take(self, piece: Piece, first_at: float, last_at: float) -> None:
        """A piece comes, its first and last byte at these times; they are not in the past."""
        if self.bytes_per_s is None:
            piece.arrival, piece.settled = last_at, True
        else:
            piece.where = self
            # Whole packets are passed on: the first one begins here when its last byte is there, and so does the last.
            packet = min(PACKET_BYTES, piece.size) / piece.size if piece.size else 0.0
            took_s = piece.size / self.bytes_per_s
            begins_at = max(first_at + packet * (last_at - first_at), last_at - (1 - packet) * took_s)
            self._push(piece, begins_at)

    def settle(self, now: float) -> None:
        """Decide about everything that has come by now."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            at, _, piece = heappop(queue)
            if piece.pipe.cut:  # it is lost, and repeated in vain until the way is free
                self._stuck.append(piece)
                self._push(piece, max(now, at) + RTO_MIN_S)
            elif self._free_at - at > self.queue_s:
                before = retransmission_s(piece.losses, piece.rtt_s)
                piece.losses += 1
                self._push(piece, at + retransmission_s(piece.losses, piece.rtt_s) - before)
            else:
                took_s = piece.size / self.bytes_per_s if self.bytes_per_s else 0.0
                self._free_at = piece.arrival = max(at, self._free_at) + took_s
                piece.settled = True

    def change(self, bytes_per_s: float | None, queue_s: float) -> None:
        """Another rate from now on, also for what is waiting."""
        now = trio.current_time()
        self.settle(now)
        self.bytes_per_s, self.queue_s = bytes_per_s, queue_s
        for at, _, piece in self._queue:
            piece.arrival = at + (piece.size / bytes_per_s if bytes_per_s else 0.0)

    def retry(self) -> None:
        """Ways are free again: what got stuck comes now."""
        if self._stuck:
            now, stuck, self._stuck = trio.current_time(), {id(piece) for piece in self._stuck}, []
            rest = [(now if id(piece) in stuck else at, number, piece) for at, number, piece in self._queue]
            self._queue = rest
            heapify(rest)
            for at, _, piece in rest:
                piece.arrival = at + (piece.size / self.bytes_per_s if self.bytes_per_s else 0.0)

    def _push(self, piece: Piece, at: float) -> None:
        self._numbers += 1
        heappush(self._queue, (at, self._numbers, piece))
        piece.arrival = at + (piece.size / self.bytes_per_s if self.bytes_per_s else 0.0)
