"""The forward and backward protocols: whole sequences through a span, and gradients back, without a cache.

Invariants: requests of one stream are computed side by side up to a bound, and answered as they finish; what is beyond
the bound stays unread, so a client that sends faster than we compute is slowed down, not stored. A refused request
harms neither the stream nor its neighbours; a bad byte ends the stream.
"""

from __future__ import annotations

import logging

import trio

from p2pllm.config import Config
from p2pllm.errors import P2PLLMError, PeerLost, RemoteProtocolError, SessionGone
from p2pllm.ports import Stream
from p2pllm.server.backend import SpanTask
from p2pllm.server.channel import Channel
from p2pllm.server.engine import Engine
from p2pllm.server.faults import fault_of
from p2pllm.server.offer import Offer, inner_points
from p2pllm.types import PeerId, Priority, WorkKind
from p2pllm.wire.messages import Backward, Backwarded, Forward, Forwarded
from p2pllm.wire.session import Payload

log = logging.getLogger(__name__)

Asked = Forward | Backward


class Forwards:
    """Serves both protocols."""

    def __init__(self, offer: Offer, engine: Engine, config: Config) -> None:
        self._offer = offer
        self._engine = engine
        self._config = config
        self._scopes: dict[Channel, trio.CancelScope] = {}
        self._under_way = 0
        self._idle = trio.Event()
        self.draining = False

    async def handle(self, stream: Stream) -> None:
        """Serve one stream until it ends; work for a stream that was lost is given up."""
        channel = Channel(stream, self._config.wire)
        places = trio.Semaphore(self._config.server.forwards_per_stream_max)
        try:
            async with trio.open_nursery() as nursery:
                self._scopes[channel] = nursery.cancel_scope
                try:
                    await self._read(channel, places, nursery)
                except (PeerLost, RemoteProtocolError) as exc:
                    log.info("forward stream of %s ended: %s", channel.peer, exc)
                    channel.abort()
                    nursery.cancel_scope.cancel()
            await channel.aclose()
        finally:
            self._scopes.pop(channel, None)
            channel.abort()

    async def drain(self) -> None:
        """Take no new work, and wait for what is under way."""
        self.draining = True
        while self._under_way:
            await self._idle.wait()

    def shut(self) -> None:
        """Give up all streams and their work."""
        self.draining = True
        for scope in self._scopes.values():
            scope.cancel()

    async def _read(self, channel: Channel, places: trio.Semaphore, nursery: trio.Nursery) -> None:
        while True:
            await places.acquire()
            channel.expect_by(trio.current_time() + self._config.server.stream_idle_s)
            got = await channel.receive()
            if got is None:
                return
            message, payload = got
            if not isinstance(message, Forward | Backward):
                raise RemoteProtocolError(f"{type(message).__name__} on a forward stream")
            nursery.start_soon(self._serve, channel, message, payload, places)

    async def _serve(self, channel: Channel, asked: Asked, payload: Payload, places: trio.Semaphore) -> None:
        self._under_way += 1
        try:
            error, task = self._task(channel.peer, asked, payload)
            if error is None:
                await self._engine.run(task)
                error = task.error
            if error is not None:
                channel.post(fault_of(error, step=asked.request))
            else:
                assert task.answer is not None
                tensor, out = task.answer
                answer = Backwarded if isinstance(asked, Backward) else Forwarded
                channel.post(answer(asked.request, tensor, task.queue_s, task.compute_s), out, Priority.BULK)
            await channel.flush()
        finally:
            places.release()
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
                self._idle = trio.Event()

    def _task(self, peer: PeerId, asked: Asked, payload: Payload) -> tuple[P2PLLMError | None, SpanTask]:
        kind, returns, gradient = WorkKind.FORWARD, asked.activations, None
        if isinstance(asked, Backward):
            kind, returns = WorkKind.BACKWARD, asked.gradient.codec
            view = memoryview(payload)
            payload, gradient = view[: asked.tensor.size], (asked.gradient, view[asked.tensor.size :])
        task = SpanTask(
            peer, object(), kind, asked.counts, span=asked.span, tensor=asked.tensor, payload=payload,
            codec=asked.activations, returns=returns, points=inner_points(asked.codec_points, asked.span),
            positions=(0,) * len(asked.counts), gradient=gradient,
        )  # fmt: skip
        if self.draining:
            return SessionGone("this server is leaving"), task
        return self._offer.refuse(asked) or self._engine.refuse(task), task
