"""How the chunks of a step flow through the legs of a chain: what one server answers is what the next one gets.

Invariants: payload bytes travel unchanged from leg to leg, and are recorded in the history before they are sent. At
every leg the chunks keep their order, and at most the configured number of them is under way. A leg whose server fails
is mended where it is, while the others work on; what cannot be mended ends the flow, and nothing is left running
behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from p2pllm.client.chunks import ALL, Chunk
from p2pllm.client.context import HOP_ERRORS, Context
from p2pllm.client.edge import Packed
from p2pllm.client.legs import Leg
from p2pllm.client.past import Entry, Rows
from p2pllm.client.replay import History
from p2pllm.errors import P2PLLMError, PeerLost

Source = Callable[[Chunk], Awaitable[Packed]]
"""Makes a chunk's input."""
Sink = Callable[[Chunk, Packed], Awaitable[None]]
"""Takes a chunk's output."""

_Item = tuple[Entry, Packed | None]
"""An entry and its payload at some border; None: whoever needs it finds it in the history."""
_Inlet = trio.MemoryReceiveChannel[_Item]
_Outlet = trio.MemorySendChannel[_Item]


class Mender(Protocol):
    """Puts other legs in the place of one that failed."""

    async def mend(self, leg: Leg, cause: P2PLLMError, rows: Rows) -> list[Leg]:
        """The legs that stand in its place now, whose caches hold ``rows``.

        Raises:
            SwarmError: there are none.
        """
        ...

    async def prepare(self, leg: Leg, rows: Rows) -> None:
        """Bring the caches of a leg to ``rows``.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed.
        """
        ...

    def answered(self, leg: Leg) -> None:
        """A leg gave an answer that can be true."""
        ...


class Flow:
    """Steps through ``legs``, which lead to the border ``end``."""

    def __init__(self, context: Context, legs: Sequence[Leg], end: int, history: History, mender: Mender) -> None:
        self._context = context
        self._legs = legs
        self._end = end
        self._history = history
        self._mender = mender

    async def run(self, entries: Sequence[Entry], source: Source, sink: Sink) -> None:
        """Bring all entries through the chain.

        Raises:
            SwarmError: a server failed and cannot be replaced.
        """
        try:
            if len(entries) == 1:
                await self._alone(entries[0], source, sink)
            else:
                await self._pipeline(entries, source, sink)
        except BaseException as exc:
            for leg in self._legs:
                leg.hop.abandon()
            if isinstance(exc, BaseExceptionGroup):
                raise first_of(exc) from None
            raise

    async def _alone(self, entry: Entry, source: Source, sink: Sink) -> None:
        """One entry, without any task in between; ``legs`` changes under us when one is mended."""
        packed = await source(entry.chunk)
        at = 0
        while at < len(self._legs):
            leg = self._legs[at]
            self._history.record(leg.span.start, entry, packed)
            try:
                await self._fit(leg, entry)
                await leg.send(entry, packed, self._tail(leg, entry))
                _, packed = await self._receive(leg)
            except HOP_ERRORS as exc:
                async with trio.open_nursery() as nursery:
                    for later in self._legs[at + 1 :]:
                        nursery.start_soon(self._look_after, later, entry)
                    await self._mender.mend(leg, exc, entry.before)
            else:
                at += 1
        await sink(entry.chunk, packed)

    async def _look_after(self, leg: Leg, entry: Entry) -> None:
        """Mend a leg that the step has not reached, if it is dead too: several replays at once take no longer."""
        try:
            if leg.lost is None:
                await leg.hop.revive()
        except HOP_ERRORS as exc:
            await self._mender.mend(leg, exc, entry.before)

    async def _pipeline(self, entries: Sequence[Entry], source: Source, sink: Sink) -> None:
        wanted = {entry.number for entry in entries}

        async def feed(outlet: _Outlet) -> None:
            async with outlet:
                for entry in entries:
                    await outlet.send((entry, await source(entry.chunk)))

        async with trio.open_nursery() as nursery:
            outlet, inlet = trio.open_memory_channel[_Item](1)
            nursery.start_soon(feed, outlet)
            async for entry, packed in self._outputs(nursery, inlet):
                if packed is not None and entry.number in wanted:
                    await sink(entry.chunk, packed)

    def _outputs(self, nursery: trio.Nursery, inlet: _Inlet) -> _Inlet:
        outlet, outputs = trio.open_memory_channel[_Item](1)
        nursery.start_soon(self._line, list(self._legs), inlet, outlet)
        return outputs

    async def finish(
        self,
        entries: Sequence[Entry],
        source: Source,
        sink: Callable[[Entry, Packed], Awaitable[None]],
        taken: dict[int, Packed],
    ) -> None:
        """Bring entries through of which some legs have done, or begun, more than others.

        ``taken`` holds outputs that came already, by number.

        Raises:
            SwarmError: a server failed and cannot be replaced.
        """
        first = self._legs[0].span.start

        async def feed(outlet: _Outlet) -> None:
            async with outlet:
                for entry in entries:
                    packed = None if self._history.knows(first, entry) else await source(entry.chunk)
                    await outlet.send((entry, packed))

        try:
            async with trio.open_nursery() as nursery:
                outlet, inlet = trio.open_memory_channel[_Item](1)
                nursery.start_soon(feed, outlet)
                async for entry, packed in self._outputs(nursery, inlet):
                    output = taken.pop(entry.number, packed)
                    if output is not None:
                        await sink(entry, output)
        except BaseException as exc:
            for leg in self._legs:
                leg.hop.abandon()
            if isinstance(exc, BaseExceptionGroup):
                raise first_of(exc) from None
            raise

    async def _line(self, legs: Sequence[Leg], inlet: _Inlet, outlet: _Outlet) -> None:
        """All items through legs that follow each other."""
        async with trio.open_nursery() as nursery:
            for leg in legs[:-1]:
                out, following = trio.open_memory_channel[_Item](1)
                nursery.start_soon(self._stage, leg, inlet, out)
                inlet = following
            nursery.start_soon(self._stage, legs[-1], inlet, outlet)

    async def _stage(self, leg: Leg, inlet: _Inlet, outlet: _Outlet) -> None:
        """All items through one leg, or through those that replace it."""
        held: deque[_Item] = deque()  # taken in, not yet answered
        async with outlet:
            while True:
                try:
                    if not held:
                        held.append(self._recorded(leg, await inlet.receive()))
                    await self._fit(leg, held[0][0])
                    await self._through(leg, held, inlet, outlet)
                    return
                except trio.EndOfChannel:
                    return
                except HOP_ERRORS as exc:
                    cause: P2PLLMError = exc
                except BaseExceptionGroup as group:
                    error = first_of(group)
                    if not isinstance(error, HOP_ERRORS):
                        raise error from None
                    cause = error
                legs = await self._mender.mend(leg, cause, held[0][0].before)
                if len(legs) > 1:
                    async with trio.open_nursery() as nursery:
                        joined, both = trio.open_memory_channel[_Item](0)
                        nursery.start_soon(_join, held, inlet, joined)
                        await self._line(legs, both, outlet)
                    return
                leg = legs[0]

    async def _through(self, leg: Leg, held: deque[_Item], inlet: _Inlet, outlet: _Outlet) -> None:
        """Items through one leg: answers are fetched while further items are sent. What is in ``held`` goes first."""
        window = min(self._context.config.client.steps_in_flight, self._context.config.wire.steps_in_flight_max)
        # The entry whose answer is awaited has left this buffer, so it holds one less than may be under way.
        under_way, sent = trio.open_memory_channel[Entry](max(0, window - 1))

        async def send(item: _Item) -> None:
            await under_way.send(item[0])
            entry, packed = item
            done = 0 <= entry.number < leg.begun
            if done and entry not in leg.due:
                return
            if packed is None:
                packed = await self._history.packed(leg.span.start, entry.runs)
            await (leg.supply if done else leg.send)(entry, packed, self._tail(leg, entry))

        async def send_all() -> None:
            async with under_way:
                for item in list(held):
                    await send(item)
                async for item in inlet:
                    held.append(self._recorded(leg, item))
                    await send(item)

        first_due = leg.due[0].number if leg.due else leg.begun
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            async for entry in sent:
                packed: Packed | None = None
                if entry.number >= first_due or entry.number < 0:
                    _, packed = await self._receive(leg)
                held.popleft()
                await outlet.send((entry, packed))

    async def _fit(self, leg: Leg, entry: Entry) -> None:
        """See to it that a leg can take a step, unless it has it already."""
        if leg.lost is not None:
            raise PeerLost("the server was given up before")
        if leg.doubt is not None:
            raise leg.doubt
        if 0 <= entry.number < leg.begun:
            return
        if not leg.holds(entry.before):
            await self._mender.prepare(leg, entry.before)

    async def _receive(self, leg: Leg) -> tuple[Entry, Packed]:
        entry, packed = await leg.receive()
        if leg.accuser is not None:
            self._mender.answered(leg)
        return entry, packed

    def _recorded(self, leg: Leg, item: _Item) -> _Item:
        entry, packed = item
        if packed is not None:
            self._history.record(leg.span.start, entry, packed)
        return item

    def _tail(self, leg: Leg, entry: Entry) -> int:
        return entry.tail if leg.span.end == self._end else ALL


async def _join(held: Sequence[_Item], inlet: _Inlet, outlet: _Outlet) -> None:
    async with outlet:
        for item in list(held):
            await outlet.send(item)
        async for item in inlet:
            await outlet.send(item)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first in a nursery; the group itself when it only holds cancellations."""
    for error in group.exceptions:
        leaf = first_of(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(leaf, trio.Cancelled | BaseExceptionGroup):
            return leaf
    return group
