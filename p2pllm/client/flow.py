"""How the chunks of a step flow through the hops of a chain: what one server answers is what the next one gets.

Invariants: payload bytes travel unchanged from hop to hop. At every hop the chunks keep their order, and at most the
configured number of them is under way. The first failure ends the flow and leaves as ``HopLost``; nothing is left
running behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from p2pllm.client.chunks import ALL, Chunk
from p2pllm.client.context import HOP_ERRORS, Context
from p2pllm.client.edge import Packed
from p2pllm.client.hop import HopSession

Source = Callable[[Chunk], Awaitable[Packed]]
"""Makes a chunk's input."""
Sink = Callable[[Chunk, Packed], Awaitable[None]]
"""Takes a chunk's output."""

_Item = tuple[Chunk, Packed]


class Flow:
    """One step through ``hops``; ``base`` are the rows' positions before it, once they continue ``sources``."""

    def __init__(
        self, context: Context, hops: Sequence[HopSession], base: tuple[int, ...], sources: tuple[int, ...] = ()
    ) -> None:
        self._context = context
        self._hops = hops
        self._base = base
        self._sources = sources

    async def run(self, chunks: Sequence[Chunk], source: Source, sink: Sink) -> None:
        """Bring all chunks through the chain.

        Raises:
            HopLost: a server failed.
        """
        if len(chunks) == 1:
            packed = await source(chunks[0])
            for hop in self._hops:
                packed = await self._alone(hop, chunks[0], packed)
            await sink(chunks[0], packed)
            return
        try:
            async with trio.open_nursery() as nursery:
                outlet, inlet = trio.open_memory_channel[_Item](1)
                nursery.start_soon(_feed, chunks, source, outlet)
                for hop in self._hops:
                    outlet, following = trio.open_memory_channel[_Item](1)
                    nursery.start_soon(self._relay, hop, inlet, outlet)
                    inlet = following
                async for chunk, packed in inlet:
                    await sink(chunk, packed)
        except BaseExceptionGroup as group:
            raise first_of(group) from None

    async def _send(self, hop: HopSession, chunk: Chunk, packed: Packed) -> None:
        positions = tuple(position + start for position, start in zip(self._base, chunk.starts, strict=True))
        tail = chunk.tail if hop is self._hops[-1] else ALL
        sources = () if any(chunk.starts) else self._sources  # rows are reordered once, by the first chunk
        await hop.send(positions, chunk.counts, packed, tail=tail, sources=sources)

    async def _alone(self, hop: HopSession, chunk: Chunk, packed: Packed) -> Packed:
        try:
            await self._send(hop, chunk, packed)
            return await hop.receive()
        except HOP_ERRORS as exc:
            raise self._context.lost(hop.hop, exc) from exc

    async def _relay(
        self, hop: HopSession, inlet: trio.MemoryReceiveChannel[_Item], outlet: trio.MemorySendChannel[_Item]
    ) -> None:
        """All chunks through one hop: answers are fetched while further chunks are sent."""
        window = min(self._context.config.client.steps_in_flight, self._context.config.wire.steps_in_flight_max)
        # The chunk whose answer is awaited has left this buffer, so it holds one less than may be under way.
        under_way, sent = trio.open_memory_channel[Chunk](max(0, window - 1))

        async def send_all() -> None:
            async with under_way:
                async for chunk, packed in inlet:
                    await under_way.send(chunk)
                    await self._send(hop, chunk, packed)

        try:
            async with outlet, trio.open_nursery() as nursery:
                nursery.start_soon(send_all)
                async for chunk in sent:
                    await outlet.send((chunk, await hop.receive()))
        except BaseExceptionGroup as group:
            error = first_of(group)
            if isinstance(error, HOP_ERRORS):
                raise self._context.lost(hop.hop, error) from error
            raise error from None


async def _feed(chunks: Sequence[Chunk], source: Source, outlet: trio.MemorySendChannel[_Item]) -> None:
    async with outlet:
        for chunk in chunks:
            await outlet.send((chunk, await source(chunk)))


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first in a nursery; the group itself when it only holds cancellations."""
    for error in group.exceptions:
        leaf = first_of(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(leaf, trio.Cancelled | BaseExceptionGroup):
            return leaf
    return group
