"""A real stream with a tap on it: what the product writes can be seen, changed and broken.

Invariants: nothing is added to what the stream underneath promises; reading goes straight to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pllm.net.yamux import YamuxStream
from p2pllm.ports import Buffer
from p2pllm.types import PeerId, Priority

if TYPE_CHECKING:
    from sim.libp2p.host import Libp2pHost


class Libp2pStream:
    """One end of a stream; see ``ports.Stream`` and ``sim.world.TappedStream``."""

    def __init__(self, mine: Libp2pHost, other: str, inner: YamuxStream) -> None:
        self._mine = mine
        self._other = other
        self.inner = inner
        self.receive_some = inner.receive_some

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    @property
    def ends(self) -> tuple[str, str]:
        """See ``TappedStream.ends``."""
        return self._mine.name, self._other

    async def send_all(self, data: Buffer, priority: Priority = Priority.STEP) -> None:
        """See ``ports.Stream.send_all``."""
        world = self._mine.world
        if self.inner.lost is None and not self.inner.fin_sent:
            data = bytes(data)
            if world.tap is not None:
                data = world.tap(self, data)
            if data:
                world.note("send", self._mine.name, self._other, data)
        await self.inner.send_all(data, priority)

    async def aclose(self) -> None:
        """See ``ports.Stream.aclose``."""
        if self.inner.lost is None and not self.inner.fin_sent:
            self._mine.world.note("eof", self._mine.name, self._other, b"")
        await self.inner.aclose()

    def abort(self) -> None:
        """See ``ports.Stream.abort``."""
        if self.inner.lost is None:
            self._mine.world.note("abort", self._mine.name, self._other, b"")
        self.inner.abort()

    def fail_both(self, reason: str) -> None:
        """See ``TappedStream.fail_both``."""
        other_end = self._mine.world.other_end(self)
        if other_end is None:  # it has not heard of this stream yet, or no more
            self.inner.abort()
            return
        for end in (other_end, self):
            end.inner.lose(reason)
            end.inner._buffer.clear()  # what is under way is lost, and so is what just came
