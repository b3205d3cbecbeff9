"""One stream that speaks messages, and the idle ones kept for the next user.

Invariants: every wait on the peer has a deadline; whatever goes wrong leaves as PeerLost (the world) or
RemoteProtocolError (the peer's bytes), and the link is dead from then on. One task may send while another receives.
A link goes back to the pool only by ``give``, which its user calls when nothing of its conversation is under way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio

from p2pllm.config import Config, WireLimits
from p2pllm.errors import P2PLLMError, PeerLost
from p2pllm.ports import Buffer, Network, Stream
from p2pllm.types import PeerId, Priority
from p2pllm.wire.frame import MessageReader, Payload, encode_frames, encode_message
from p2pllm.wire.messages import Message
from p2pllm.wire.session import priority_of

READ_BYTES = 256 * 1024
IDLE_LINKS_MAX = 128
"""Over all peers and protocols; beyond it the one idle for longest is closed."""


class PeerSilent(PeerLost):
    """A deadline passed while the stream itself seemed fine: the peer hangs, or works longer than we may wait."""


class Link:
    """Messages over one ``Stream``."""

    def __init__(self, stream: Stream, limits: WireLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._reader = MessageReader(limits)
        self._inbox: deque[tuple[Message, Payload]] = deque()
        self.dead = False

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    async def send(self, message: Message, payload: Buffer = b"") -> None:
        """Send one message: in one write as a step, or frame by frame as bulk, so that others' steps get in between.

        Raises:
            PeerLost: the stream is gone.
        """
        try:
            if priority_of(payload) is Priority.STEP:
                await self._stream.send_all(encode_message(message, payload, self._limits), Priority.STEP)
            else:
                for frame in encode_frames(message, payload, self._limits):
                    await self._stream.send_all(frame, Priority.BULK)
        except BaseException:  # a message that was cut off, by whatever, leaves a stream that nobody can use
            self.abort()
            raise

    async def receive(self, timeout_s: float, more_s: Callable[[], float] = lambda: 0.0) -> tuple[Message, Payload]:
        """The peer's next message. When time is up, ``more_s`` says how much longer to wait for it.

        Raises:
            PeerLost: the stream is gone; PeerSilent: nothing complete came within ``timeout_s``.
            RemoteProtocolError: bytes that are no message.
        """
        if self._inbox:
            await trio.lowlevel.checkpoint()
            return self._inbox.popleft()
        try:
            waited_s = 0.0
            while True:
                waited_s += timeout_s
                with trio.move_on_after(timeout_s):
                    await self._fill()
                if self._inbox or (timeout_s := more_s()) <= 0:
                    break
        except P2PLLMError:
            self.abort()
            raise
        if not self._inbox:
            self.abort()
            raise PeerSilent(f"no answer within {waited_s:.1f} s")
        return self._inbox.popleft()

    async def _fill(self) -> None:
        while not self._inbox:
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                self._reader.eof()
                raise PeerLost("it closed the stream")
            self._inbox.extend(self._reader.feed(data))

    @property
    def quiet(self) -> bool:
        """Whether the link may serve somebody else: alive, with no message waiting."""
        return not self.dead and not self._inbox

    def abort(self) -> None:
        """Drop the stream at once. Idempotent."""
        self.dead = True
        self._stream.abort()

    async def aclose(self) -> None:
        """Close the stream politely; it is dead afterwards."""
        self.dead = True
        await self._stream.aclose()


class Links:
    """Opens links, and keeps those that are given back."""

    def __init__(self, network: Network, config: Config) -> None:
        self._network = network
        self._config = config
        self._idle: deque[tuple[str, Link]] = deque()

    async def take(
        self, peer: PeerId, protocol: str, *, fresh: bool = False, connect_s: float = math.inf
    ) -> tuple[Link, bool]:
        """A link to ``peer``, and whether it was used before.

        One that was may turn out to be dead at its first use: ask again with ``fresh`` then, before blaming the peer.
        To reach it takes at most ``connect_s``, and never longer than the network's own limits.

        Raises:
            PeerLost: the peer cannot be reached.
        """
        if not fresh:
            for index in range(len(self._idle) - 1, -1, -1):
                kept, link = self._idle[index]
                if kept == protocol and link.peer == peer:
                    del self._idle[index]
                    if link.quiet:
                        await trio.lowlevel.checkpoint()
                        return link, True
        timeout_s = min(connect_s, self._config.net.dial_timeout_s + self._config.net.stream_timeout_s)
        stream = await self._network.open_stream(peer, protocol, timeout_s=timeout_s)
        return Link(stream, self._config.wire), False

    def connected(self, peer: PeerId) -> bool:
        """Whether there is a connection to ``peer`` now."""
        return self._network.path(peer) is not None

    def give(self, protocol: str, link: Link) -> None:
        """Keep a link whose conversation has ended; a dead or surplus one is dropped."""
        same = sum(1 for kept, other in self._idle if kept == protocol and other.peer == link.peer)
        if not link.quiet or same >= self._config.client.idle_streams_max:
            link.abort()
            return
        self._idle.append((protocol, link))
        if len(self._idle) > IDLE_LINKS_MAX:
            self._idle.popleft()[1].abort()

    async def aclose(self) -> None:
        """Close every idle link."""
        while self._idle:
            await self._idle.pop()[1].aclose()
