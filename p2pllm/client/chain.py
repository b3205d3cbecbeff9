"""Whole sequences through all blocks, without caches: batches are cut into parts that overlap across the hops.

Invariants: every part walks the chain on its own, by the plan of its time; a bounded number of parts is under way. A
part whose server fails goes on from the border that it had reached, through a new plan, while patience lasts: nothing
that was computed is lost. A part holds whole sequences only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from p2pllm.client.context import HOP_ERRORS, Context, HopLost
from p2pllm.client.edge import Packed
from p2pllm.client.flow import first_of
from p2pllm.client.link import PeerSilent
from p2pllm.client.planner import Wish
from p2pllm.client.requests import ForwardRequests
from p2pllm.client.route import Hop, Plan
from p2pllm.errors import PeerLost, SessionGone, SwarmError
from p2pllm.types import PeerId, Span
from p2pllm.wire import FORWARD


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences ``first`` .. of a batch that travel together, ``counts`` tokens each."""

    first: int
    counts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.counts)


PartSource = Callable[[Part], Awaitable[Packed]]
PartSink = Callable[[Part, Packed], Awaitable[None]]


def parts_of(counts: Sequence[int], tokens_max: int, rows_max: int) -> list[Part]:
    """Cut a batch into parts of at most ``tokens_max`` tokens; a longer sequence is a part of its own."""
    parts: list[Part] = []
    first, held = 0, 0
    for index, count in enumerate(counts):
        if index > first and (held + count > tokens_max or index - first >= rows_max):
            parts.append(Part(first, tuple(counts[first:index])))
            first, held = index, 0
        held += count
    if first < len(counts):
        parts.append(Part(first, tuple(counts[first:])))
    return parts


class ForwardPass:
    """One pass of a batch through ``span``; made for one ``run``."""

    def __init__(self, context: Context, codec: str, span: Span | None = None) -> None:
        self._context = context
        self._codec = codec
        self._span = span or context.whole
        self._plan: Plan
        self._points: tuple[int, ...] = ()
        self._servers: dict[PeerId, ForwardRequests] = {}
        self._opening: dict[PeerId, trio.Lock] = {}
        self._nursery: trio.Nursery

    async def run(self, counts: Sequence[int], source: PartSource, sink: PartSink) -> None:
        """Bring sequences of ``counts`` tokens through; parts reach ``sink`` in any order.

        Raises:
            CoverageError: nobody serves some of the blocks.
            HopLost: servers failed for longer than our patience.
        """
        context = self._context
        parts = parts_of(counts, context.config.client.forward_chunk_tokens, context.config.wire.rows_max)
        self._plan = await context.planner.wait_plan(self._wish(self._span, parts), self._deadline())
        self._points = self._plan.borders
        places = trio.Semaphore(context.config.client.steps_in_flight + len(self._plan.hops))
        try:
            async with trio.open_nursery() as self._nursery:
                async with trio.open_nursery() as walks:
                    for part in parts:
                        await places.acquire()
                        walks.start_soon(self._walk, part, source, sink, places)
                self._nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        finally:
            for server in self._servers.values():
                if server.idle:
                    context.links.give(FORWARD, server.link)
                else:
                    server.link.abort()

    async def _walk(self, part: Part, source: PartSource, sink: PartSink, places: trio.Semaphore) -> None:
        """One part from border to border."""
        try:
            packed = await source(part)
            border, plan = self._span.start, self._plan
            deadline: float | None = None
            while border < self._span.end:
                hop = next(hop for hop in plan.hops if hop.span.start == border)
                try:
                    packed = await self._through(hop, part, packed)
                except HOP_ERRORS as exc:
                    lost = self._context.lost(hop, exc)
                    deadline = deadline or self._deadline()
                    plan = await self._replan(part, border, deadline, lost)
                else:
                    border = hop.span.end
            await sink(part, packed)
        finally:
            places.release()

    async def _replan(self, part: Part, border: int, deadline: float, lost: HopLost) -> Plan:
        if trio.current_time() >= deadline:
            raise lost
        if isinstance(lost.cause, SessionGone):
            await self._context.planner.refresh()
        try:
            wish = self._wish(Span(border, self._span.end), [part])
            plan = await self._context.planner.wait_plan(wish, deadline)
        except SwarmError:
            raise lost from lost.cause
        if border == self._span.start:
            self._plan = plan
        return plan

    async def _through(self, hop: Hop, part: Part, packed: Packed) -> Packed:
        """One part through one server, over the stream that all parts share; a stale kept stream is replaced once."""
        for fresh in (False, True):
            server, reused = await self._server(hop.peer_id, fresh=fresh)
            try:
                return await server.ask(hop.span, part.counts, packed, self._codec, self._points)
            except HOP_ERRORS as exc:
                if self._servers.get(hop.peer_id) is server and server.link.dead:
                    del self._servers[hop.peer_id]
                stale = reused and isinstance(exc, PeerLost) and not isinstance(exc, PeerSilent)
                if fresh or not stale:
                    raise
        raise AssertionError("the second round returns or raises")

    async def _server(self, peer: PeerId, *, fresh: bool) -> tuple[ForwardRequests, bool]:
        """The stream to a server, opened once; and whether it had been used before this pass."""
        lock = self._opening.setdefault(peer, trio.Lock())
        async with lock:
            known = self._servers.get(peer)
            if known is not None and not known.link.dead:
                return known, False
            config = self._context.config
            link, reused = await self._context.links.take(peer, FORWARD, fresh=fresh)
            server = ForwardRequests(link, self._context.model, config.wire, config.client.step_timeout_s)
            self._servers[peer] = server
            self._nursery.start_soon(server.serve)
            self._context.reached(peer)
            return server, reused

    def _wish(self, span: Span, parts: Sequence[Part]) -> Wish:
        tokens = max((part.tokens for part in parts), default=1)
        return Wish(span, tokens=max(2, tokens), exact=self._context.config.client.exact)

    def _deadline(self) -> float:
        client = self._context.config.client
        return trio.current_time() + max(client.patience_s, client.gap_grace_s)
