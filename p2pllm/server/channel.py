"""Messages over one incoming stream.

Invariants: one task receives; anybody posts, and what was posted is sent in that order, each message whole, by
whichever task flushes first. Every wait has a deadline. Whatever goes wrong leaves as PeerLost (the world) or
RemoteProtocolError (the peer's bytes) at the receiver, and the channel is dead from then on. A peer that does not read
what it asked for holds up its own channel only, at a bounded backlog.
"""

from __future__ import annotations

import logging
import math
from collections import deque

import trio

from p2pllm.config import WireLimits
from p2pllm.errors import LocalProtocolError, PeerLost, RemoteProtocolError
from p2pllm.ports import Stream
from p2pllm.types import PeerId, Priority
from p2pllm.wire.frame import MessageReader, encode_frames, encode_message
from p2pllm.wire.messages import Message
from p2pllm.wire.session import Payload

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024

BACKLOG_MAX = 64
"""Posted messages that are not sent yet before a task that flushes has to wait."""


class Channel:
    """One peer's stream, as messages."""

    def __init__(self, stream: Stream, limits: WireLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._reader = MessageReader(limits)
        self._inbox: deque[tuple[Message, Payload]] = deque()
        self._outbox: deque[tuple[Message, Payload, Priority]] = deque()
        self._flushing = False
        self._drained = trio.Event()
        self._patience = trio.CancelScope()
        self._deadline = math.inf
        self._ended = False
        self.dead = False

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    @property
    def backlog(self) -> int:
        """Messages that are posted and not sent."""
        return len(self._outbox)

    def expect_by(self, deadline: float) -> None:
        """When the next message has to be complete, also for a ``receive`` that waits already."""
        self._deadline = self._patience.deadline = deadline

    async def receive(self) -> tuple[Message, Payload] | None:
        """The next message; None once the peer has closed its side after a whole one.

        Raises:
            PeerLost: the stream is gone, or no message was complete in time.
            RemoteProtocolError: the peer sent what the protocol forbids.
        """
        await self.peek()
        return self._inbox.popleft() if self._inbox else None

    async def peek(self) -> bool:
        """Wait for the next message and leave it there; False once the peer has closed its side.

        Raises:
            PeerLost, RemoteProtocolError: as ``receive``.
        """
        if self._inbox or self._ended:
            return bool(self._inbox)
        if self.dead:
            raise PeerLost(f"the stream to {self.peer} is gone")
        try:
            with trio.CancelScope(deadline=self._deadline) as self._patience:
                while not self._inbox:
                    data = await self._stream.receive_some(READ_BYTES)
                    if not data:
                        self._reader.eof()
                        self._ended = True
                        return False
                    self._inbox.extend(self._reader.feed(data))
        except (PeerLost, RemoteProtocolError):
            self.abort()
            raise
        if not self._inbox:
            self.abort()
            raise PeerLost(f"{self.peer} sent no whole message in time")
        return True

    def post(self, message: Message, payload: Payload = b"", priority: Priority = Priority.STEP) -> None:
        """Put a message behind those that are to be sent; somebody has to ``flush`` soon."""
        if not self.dead:
            self._outbox.append((message, payload, priority))

    async def flush(self) -> None:
        """Send what was posted. While another task does, return at once, unless the backlog is long.

        A lost stream is not this caller's news: the channel is dead, and whoever receives hears of it.
        """
        if self._flushing:
            if len(self._outbox) > BACKLOG_MAX:
                await self._drained.wait()
            return
        self._flushing = True
        try:
            while self._outbox and not self.dead:
                await self._send(*self._outbox.popleft())
        except PeerLost:
            self.abort()
        except LocalProtocolError:
            log.exception("a message to %s breaks the protocol", self.peer)
            self.abort()
        except trio.Cancelled:
            self.abort()  # a message that was cut off leaves a stream that nobody can use
            raise
        finally:
            self._flushing = False
            self._drained.set()
            self._drained = trio.Event()

    async def send(self, message: Message, payload: Payload = b"", priority: Priority = Priority.STEP) -> None:
        """``post`` and ``flush``."""
        self.post(message, payload, priority)
        await self.flush()

    async def _send(self, message: Message, payload: Payload, priority: Priority) -> None:
        """A step in one write; bulk frame by frame, so that others' steps get in between."""
        if priority is Priority.STEP:
            await self._stream.send_all(encode_message(message, payload, self._limits), priority)
        else:
            for frame in encode_frames(message, payload, self._limits):
                await self._stream.send_all(frame, priority)

    def abort(self) -> None:
        """Drop the stream at once. Idempotent."""
        self.dead = True
        self._outbox.clear()
        self._stream.abort()

    async def aclose(self) -> None:
        """Close the stream politely; it is dead afterwards."""
        if not self.dead:
            self.dead = True
            await self._stream.aclose()
