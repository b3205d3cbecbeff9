"""Gradients of a batch back through the blocks that it went forward through.

Invariants: servers keep nothing, the client kept each server's inputs (``chain.Passed``) and sends them with the
gradient. A part goes back through the servers that took it forward while they live; whoever fails is replaced for its
blocks only, and where several servers stand in for one, the inputs between them are computed first. Parts are those of
the way forward, so gradients do not depend on who answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from p2pllm.client.chain import Part, PartSink, PartSource, Passed, patience_end, replan, spread
from p2pllm.client.context import HOP_ERRORS, Context
from p2pllm.client.edge import Packed
from p2pllm.client.route import Hop
from p2pllm.client.servers import Servers, open_servers
from p2pllm.wire import BACKWARD, FORWARD


class BackwardPass:
    """One way back; made for one ``run``. ``codec`` and ``points`` are those of the way forward."""

    def __init__(self, context: Context, codec: str, points: tuple[int, ...]) -> None:
        self._context = context
        self._codec = codec
        self._points = points
        self._back: Servers
        self._forward: Servers

    async def run(self, passed: Mapping[Part, Sequence[Passed]], source: PartSource, sink: PartSink) -> None:
        """Bring the gradient of every part, made by ``source``, to its inputs; ``sink`` gets them in any order.

        Raises:
            HopLost: servers failed for longer than our patience.
        """
        context = self._context
        hops = max((len(ways) for ways in passed.values()), default=0)
        places = trio.Semaphore(context.config.client.steps_in_flight + hops)

        async def walk(part: Part) -> None:
            gradient = await source(part)
            for way in reversed(passed[part]):
                gradient = await self._through(part, way, gradient)
            await sink(part, gradient)

        async with open_servers(context, FORWARD) as self._forward, open_servers(context, BACKWARD) as self._back:
            await spread(list(passed), places, walk)

    async def _through(self, part: Part, way: Passed, gradient: Packed) -> Packed:
        """One part back through what one server did; through others when that one fails."""
        hop, deadline = way.hop, None
        while True:
            try:
                return await self._ask_back(hop, part, way.inputs, gradient)
            except HOP_ERRORS as exc:
                lost = self._context.lost(hop, exc)
            deadline = deadline or patience_end(self._context)
            plan = await replan(self._context, way.hop.span, part, deadline, lost)
            if len(plan.hops) == 1:
                hop = plan.hops[0]
                continue
            for middle in reversed(await self._again(plan.hops, part, way.inputs)):
                gradient = await self._through(part, middle, gradient)
            return gradient

    async def _again(self, hops: Sequence[Hop], part: Part, inputs: Packed) -> list[Passed]:
        """The inputs of several servers that stand in for one: forward through all of them but the last."""
        passed, deadline = [Passed(hops[0], inputs)], None
        while passed[-1].hop.span.end < hops[-1].span.end:
            hop, packed = passed[-1].hop, passed[-1].inputs
            try:
                output = await self._ask(hop, part, packed)
            except HOP_ERRORS as exc:
                lost = self._context.lost(hop, exc)
                deadline = deadline or patience_end(self._context)
                plan = await replan(self._context, hop.span, part, deadline, lost)
                hops = (*plan.hops, *(other for other in hops if other.span.start >= hop.span.end))
                passed[-1] = Passed(plan.hops[0], packed)
            else:
                following = next(other for other in hops if other.span.start == hop.span.end)
                passed.append(Passed(following, output))
        return passed

    async def _ask(self, hop: Hop, part: Part, packed: Packed) -> Packed:
        return await self._forward.ask(
            hop.peer_id, lambda requests: requests.ask(hop.span, part.counts, packed, self._codec, self._points)
        )

    async def _ask_back(self, hop: Hop, part: Part, inputs: Packed, gradient: Packed) -> Packed:
        return await self._back.ask(
            hop.peer_id,
            lambda requests: requests.ask_back(hop.span, part.counts, inputs, gradient, self._codec, self._points),
        )
