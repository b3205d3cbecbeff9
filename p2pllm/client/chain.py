"""Whole sequences through all blocks, without caches: batches are cut into parts that overlap across the hops.

Invariants: every part walks the chain on its own, by the plan of its time; a bounded number of parts is under way. A
part whose server fails goes on from the border that it had reached, through a new plan, while patience lasts: nothing
that was computed is lost. A part holds whole sequences only. How a batch is cut follows from the batch alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from p2pllm.client.context import HOP_ERRORS, Context, HopLost
from p2pllm.client.edge import Packed
from p2pllm.client.flow import first_of
from p2pllm.client.planner import Wish
from p2pllm.client.route import Hop, Plan
from p2pllm.client.servers import Servers, open_servers
from p2pllm.errors import SessionGone, SwarmError
from p2pllm.types import Span
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


@dataclass(frozen=True, slots=True)
class Passed:
    """What one server did for a part: the blocks, and the inputs that it got."""

    hop: Hop
    inputs: Packed


class ForwardPass:
    """One pass of a batch through ``span``; made for one ``run``.

    Attributes:
        points: codec points of the pass, once it runs: the borders of its first plan.
        passed: per part, its way through the span; kept where ``keep`` says so, for a way back.
    """

    def __init__(self, context: Context, codec: str, span: Span | None = None, *, keep: bool = False) -> None:
        self.points: tuple[int, ...] = ()
        self.passed: dict[Part, list[Passed]] = {}
        self._context = context
        self._codec = codec
        self._span = span or context.whole
        self._keep = keep
        self._plan: Plan
        self._servers: Servers

    async def run(self, counts: Sequence[int], source: PartSource, sink: PartSink) -> None:
        """Bring sequences of ``counts`` tokens through; parts reach ``sink`` in any order.

        Raises:
            CoverageError: nobody serves some of the blocks.
            HopLost: servers failed for longer than our patience.
        """
        context = self._context
        parts = parts_of(counts, context.config.client.forward_chunk_tokens, context.config.wire.rows_max)
        wish = wish_for(context, self._span, parts)
        self._plan = await context.planner.wait_plan(wish, patience_end(context))
        self.points = self._plan.borders
        places = trio.Semaphore(context.config.client.steps_in_flight + len(self._plan.hops))
        async with open_servers(context, FORWARD) as self._servers:
            await spread(parts, places, lambda part: self._walk(part, source, sink))

    async def _walk(self, part: Part, source: PartSource, sink: PartSink) -> None:
        """One part from border to border."""
        packed = await source(part)
        border, plan = self._span.start, self._plan
        deadline: float | None = None
        passed: list[Passed] = []
        while border < self._span.end:
            hop = next(hop for hop in plan.hops if hop.span.start == border)
            try:
                output = await self._through(hop, part, packed)
            except HOP_ERRORS as exc:
                lost = self._context.lost(hop, exc)
                deadline = deadline or patience_end(self._context)
                plan = await replan(self._context, Span(border, self._span.end), part, deadline, lost)
                if border == self._span.start:
                    self._plan = plan
            else:
                if self._keep:
                    passed.append(Passed(hop, packed))
                border, packed = hop.span.end, output
        if self._keep:
            self.passed[part] = passed
        await sink(part, packed)

    async def _through(self, hop: Hop, part: Part, packed: Packed) -> Packed:
        return await self._servers.ask(
            hop.peer_id, lambda requests: requests.ask(hop.span, part.counts, packed, self._codec, self.points)
        )


async def spread(parts: Sequence[Part], places: trio.Semaphore, walk: Callable[[Part], Awaitable[None]]) -> None:
    """Let every part walk, as many at a time as there are ``places``."""

    async def one(part: Part) -> None:
        try:
            await walk(part)
        finally:
            places.release()

    try:
        async with trio.open_nursery() as walks:
            for part in parts:
                await places.acquire()
                walks.start_soon(one, part)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


async def replan(context: Context, span: Span, part: Part, deadline: float, lost: HopLost) -> Plan:
    """Another way for one part, after ``lost``.

    Raises:
        HopLost: our patience is at its end, or nobody else serves these blocks.
    """
    if trio.current_time() >= deadline:
        raise lost
    if isinstance(lost.cause, SessionGone):
        await context.planner.refresh()
    try:
        return await context.planner.wait_plan(wish_for(context, span, [part]), deadline)
    except SwarmError:
        raise lost from lost.cause


def wish_for(context: Context, span: Span, parts: Sequence[Part]) -> Wish:
    """What a pass of these parts needs: throughput more than round trips."""
    tokens = max((part.tokens for part in parts), default=1)
    return Wish(span, tokens=max(2, tokens), exact=context.config.client.exact)


def patience_end(context: Context) -> float:
    """When a pass that finds no way gives up."""
    client = context.config.client
    return trio.current_time() + max(client.patience_s, client.gap_grace_s)
