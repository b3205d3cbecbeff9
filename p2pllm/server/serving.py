"""A loaded span at work: engine, cache, and the protocols that lead to them.

Invariants: everything here runs in one nursery, which ends when the server does. Made of a model and an offer; knows
neither checkpoints nor announcements.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from p2pllm.config import Config
from p2pllm.ports import Compute, Network, Stream
from p2pllm.server.backend import SpanBackend
from p2pllm.server.engine import Engine
from p2pllm.server.forwards import Forwards
from p2pllm.server.kvcache import KVCache
from p2pllm.server.offer import Offer
from p2pllm.server.pushes import Pushes
from p2pllm.server.room import CacheRoom
from p2pllm.server.sessions import Sessions

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

LONGEST_ITEM_BYTES = 4
"""Of a number on the wire: fp32."""


class Serving:
    """Serves sessions and forwards of one span; ``run`` has to run for as long as streams are handled."""

    def __init__(
        self, offer: Offer, backend: SpanBackend, network: Network, compute: Compute, config: Config, device: str
    ) -> None:
        server = config.server
        # No message of this model is longer, so nobody needs to be trusted with more memory per stream.
        longest = LONGEST_ITEM_BYTES * offer.hidden * config.wire.step_tokens_max + config.wire.frame_bytes_max
        config = replace(
            config, wire=replace(config.wire, payload_bytes_max=min(longest, config.wire.payload_bytes_max))
        )
        pages = backend.arena.pages if backend.arena is not None else 0
        self.room = CacheRoom(KVCache(pages, server.page_tokens))
        self.engine = Engine(backend, compute, self.room, server, device)
        self.forwards = Forwards(offer, self.engine, config)
        self._offer = offer
        self._network = network
        self._config = config
        self._sessions: Sessions | None = None
        self._pushes: Pushes | None = None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Compute what the conversations bring, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._pushes = Pushes(self._network, self._config, nursery)
            self._sessions = Sessions(self._offer, self.engine, self.room, self._config, nursery, self._pushes.post)
            nursery.start_soon(self.engine.serve)
            nursery.start_soon(self._sessions.care)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._pushes.shut()
                self._sessions.shut()
                self.forwards.shut()

    async def handle_session(self, stream: Stream) -> None:
        """Serve a stream of the session protocol."""
        if self._sessions is None:
            stream.abort()
            return
        await self._sessions.handle(stream)

    async def handle_push(self, stream: Stream) -> None:
        """Take a stream of steps that another server pushes."""
        if self._sessions is None or self._pushes is None:
            stream.abort()
            return
        await self._pushes.handle(stream, self._sessions)

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return len(self._sessions) if self._sessions is not None else 0

    async def drain(self, timeout_s: float) -> None:
        """Take no new work and let what is under way end, within a bound."""
        with trio.move_on_after(timeout_s):
            await self.forwards.drain()
        if self._sessions is not None:
            await self._sessions.drain(timeout_s)
