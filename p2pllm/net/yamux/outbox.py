"""What waits to be sent on a connection, in order of urgency: control frames, steps, bulk.

Invariants: pure bookkeeping, no I/O. Within a class first come, first served; one stream has one frame here at a time,
so streams of one class take turns. ``take`` fills one record and never cuts a frame.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import outcome
import trio

from p2pllm.errors import PeerLost
from p2pllm.net.yamux.frames import DATA, HEADER_BYTES, header
from p2pllm.types import Priority

CONTROL_FRAMES_MAX = 4096
"""A peer that makes us answer (pings, resets) and does not read the answers is dropped beyond this."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A DATA frame and the task that wants it sent."""

    stream_id: int
    body: memoryview
    task: trio.lowlevel.Task

    def refuse(self, why: str) -> None:
        trio.lowlevel.reschedule(self.task, outcome.Error(PeerLost(why)))


class Outbox:
    """The three queues."""

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._queues: dict[Priority, deque[Waiting]] = {Priority.STEP: deque(), Priority.BULK: deque()}

    def __bool__(self) -> bool:
        return bool(self._control or self._queues[Priority.STEP] or self._queues[Priority.BULK])

    def before(self, priority: Priority) -> bool:
        """Whether something waits that goes before a new frame of ``priority``."""
        bulk = priority is Priority.BULK and self._queues[Priority.BULK]
        return bool(self._control or self._queues[Priority.STEP] or bulk)

    @property
    def only_bulk(self) -> bool:
        """Nothing urgent waits."""
        return bool(not self._control and not self._queues[Priority.STEP] and self._queues[Priority.BULK])

    @property
    def bulk_size(self) -> int:
        """Bytes of the first bulk frame."""
        queue = self._queues[Priority.BULK]
        return len(queue[0].body) if queue else 0

    def put_control(self, frame: bytes) -> bool:
        """False when the peer has too many unsent answers already."""
        self._control.append(frame)
        return len(self._control) <= CONTROL_FRAMES_MAX

    def put(self, waiting: Waiting, priority: Priority) -> None:
        self._queues[priority].append(waiting)

    def remove(self, waiting: Waiting, priority: Priority) -> None:
        """Its task was cancelled before a byte left."""
        self._queues[priority].remove(waiting)

    def take(self, size_max: int) -> bytes:
        """The most urgent frames that fit into one record; their senders go on."""
        parts: list[bytes | memoryview] = []
        size = 0
        while self._control and size + HEADER_BYTES <= size_max:
            parts.append(self._control.popleft())
            size += HEADER_BYTES
        for priority in (Priority.STEP, Priority.BULK):
            queue = self._queues[priority]
            if priority is Priority.BULK and parts:
                break  # bulk is paced: it travels alone, when its turn is decided
            while queue and size + HEADER_BYTES + len(queue[0].body) <= size_max:
                waiting = queue.popleft()
                parts += (header(DATA, 0, waiting.stream_id, len(waiting.body)), waiting.body)
                size += HEADER_BYTES + len(waiting.body)
                trio.lowlevel.reschedule(waiting.task)
        return b"".join(parts)

    def clear(self) -> list[Waiting]:
        """Everything goes; the senders that waited."""
        waiting = [*self._queues[Priority.STEP], *self._queues[Priority.BULK]]
        self._control.clear()
        for queue in self._queues.values():
            queue.clear()
        return waiting
