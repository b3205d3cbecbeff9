"""Steps that servers push along the chain: the client feeds the first one and hears from the last.

The other servers' outputs reach us, too, as copies behind more urgent traffic: they are the history. A link over which
nothing can be pushed is relayed by us, and the chain falls into segments; most have one, with all servers.

Invariants: whatever goes wrong is settled without pushes: every server is rewired to answer us alone, which tells who
is there; what is unfinished is relayed, with replacements where they are needed; then pushing begins anew. So a server
is blamed only for what it does to us, never for what another one did to it. History lags behind by a bounded number of
steps: a copy that is missing is asked for again before anything is replayed.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Sequence

import trio

from p2pllm.client.chunks import ALL, Chunk
from p2pllm.client.context import HOP_ERRORS, Context
from p2pllm.client.edge import Packed
from p2pllm.client.failover import Failover
from p2pllm.client.flow import Flow, Sink, Source, first_of
from p2pllm.client.link import PeerSilent
from p2pllm.client.past import Entry
from p2pllm.client.talk import Unpushed
from p2pllm.errors import LocalProtocolError, P2PLLMError, PeerLost
from p2pllm.types import PeerId

log = logging.getLogger(__name__)

LAG_MAX = 8
"""Steps whose copies may be outstanding at a server: with those in flight they fit a session's limit of 16."""


class _Trouble(Exception):
    """Something keeps this wiring from working."""


class Pusher:
    """Steps of one session, pushed where that is wanted and works, relayed otherwise."""

    def __init__(self, context: Context, live: Failover) -> None:
        self._context = context
        self._live = live
        self._chain = live.chain
        self._history = live.history
        self._end = context.whole.end

    async def run(self, entries: Sequence[Entry], source: Source, sink: Sink) -> None:
        """One step.

        Raises:
            SwarmError: a server failed and cannot be replaced.
        """
        if self._interrupted():
            await self.calm()
        if not self._chain.wired:
            await self._wire()
        if not self._chain.wired:
            await self._flow().run(entries, source, sink)
            return
        wave = _Wave(self._context, self._live, self._end)
        try:
            await wave.run(entries, source, sink)
        except _Trouble:
            left = [entry for entry in entries if entry.number not in wave.given]
            await self._relay(left, source, sink, wave.taken)
        except BaseException:
            for leg in self._chain.legs:
                leg.hop.abandon()
            raise

    async def calm(self) -> None:
        """Let all servers and the history stand where the session does.

        Raises:
            SwarmError: a server failed and cannot be replaced.
        """
        if self._chain.wired or self._interrupted():
            await self._relay((), _nothing, _ignored, {})

    def _interrupted(self) -> bool:
        """Whether a step was left in the middle, so that servers stand at different places."""
        legs = self._chain.legs
        if self._chain.wired:
            return not all(leg.ready for leg in legs)
        return any(leg.hop.unsettled or leg.due for leg in legs if leg.lost is None)

    def _flow(self) -> Flow:
        return Flow(self._context, self._chain.legs, self._end, self._history, self._live)

    # -- wiring ----------------------------------------------------------------------------------------------------

    async def _wire(self) -> None:
        """Begin to push, if that is wanted, possible, and nothing is unfinished."""
        if self._context.config.client.push == "off" or len(self._chain.legs) < 2:
            return
        legs = self._chain.legs
        first = legs[0]
        if not all(leg.ready and not leg.due and leg.rows == first.rows for leg in legs):
            return
        links = self._wanted()
        if not any(links):
            return
        number = max(leg.hop.next_step for leg in legs)
        if await self._rewire(links, number):
            self._chain.wired = links
        else:
            await self._rewire([False] * len(links))  # those who agreed must not push to who did not

    def _wanted(self) -> tuple[bool, ...]:
        links = self._chain.links(trio.current_time())
        if self._context.config.client.push == "on":
            return links
        return tuple(
            able and self._worth(one.place.peer_id, two.place.peer_id)
            for able, (one, two) in zip(links, itertools.pairwise(self._chain.legs), strict=True)
        )

    def _worth(self, one: PeerId, two: PeerId) -> bool:
        """Whether the straight way is not known to be longer than the detour through us."""
        peers = self._context.peers
        there, back = peers.rtt_s(two), peers.rtt_s(one)
        announced = next((server for server in self._context.view.servers() if server.peer == one), None)
        straight = dict(announced.pings).get(two) if announced is not None else None
        return straight is None or there is None or back is None or straight <= there + back

    async def _rewire(self, links: Sequence[bool], number: int = -1) -> bool:
        """A new epoch, in which outputs are pushed over ``links``; whether all agreed. Who did not is doubted."""
        self._chain.epoch += 1
        epoch, legs, client = self._chain.epoch, list(self._chain.legs), self._context.config.client
        agreed = []

        async def rewire(index: int, doubt: P2PLLMError | None) -> None:
            leg = legs[index]
            # Who was silent has had its time.
            within_s = client.step_timeout_min_s / 2 if isinstance(doubt, PeerSilent) else client.reattach_timeout_s
            before = legs[index - 1].place.peer_id if index and links[index - 1] else None
            after = legs[index + 1].place.peer_id if index < len(links) and links[index] else None
            step = number if number >= 0 and leg.hop.next_step != number else -1
            try:
                await leg.hop.rewire(epoch, before, after, step=step, within_s=within_s)
                agreed.append(leg)
            except HOP_ERRORS as exc:
                leg.doubt = doubt if isinstance(doubt, PeerLost) else exc

        async with trio.open_nursery() as nursery:
            for index, leg in enumerate(legs):
                if leg.lost is not None or (leg.doubt is not None and leg.hop.over):
                    continue
                doubt, leg.doubt = leg.doubt, None
                nursery.start_soon(rewire, index, doubt)
        return len(agreed) == len(legs)

    async def _relay(self, entries: Iterable[Entry], source: Source, sink: Sink, taken: dict[int, Packed]) -> None:
        """Finish whatever is unfinished, without any pushes."""
        self._chain.wired = ()
        for leg in self._chain.legs:
            if leg.hop.over and leg.doubt is None:
                leg.doubt = PeerLost("it ended the session")
        await self._rewire([False] * (len(self._chain.legs) - 1))
        now = {entry.number for entry in entries}
        # What a failed step asked of servers that are gone is nobody's business; the others have to get it done.
        for leg in self._chain.legs:
            if leg.lost is not None or leg.doubt is not None:
                leg.due = deque(entry for entry in leg.due if entry.number not in self._history.void)
        waiting = {entry.number: entry for leg in self._chain.legs for entry in leg.due}
        waiting.update((entry.number, entry) for entry in entries)

        async def sink_now(entry: Entry, packed: Packed) -> None:
            if entry.number in now:
                await sink(entry.chunk, packed)

        ordered = [waiting[number] for number in sorted(waiting)]
        doubted = [leg for leg in self._chain.legs if leg.lost is None and leg.doubt is not None]
        if len(doubted) > 1 and ordered:  # several replays at once take no longer than one
            try:
                async with trio.open_nursery() as nursery:
                    for leg in doubted:
                        assert leg.doubt is not None
                        nursery.start_soon(self._live.mend, leg, leg.doubt, ordered[0].before)
            except BaseExceptionGroup as group:
                raise first_of(group) from None
        await self._flow().finish(ordered, source, sink_now, taken)
        self._history.void.clear()


async def _nothing(chunk: Chunk) -> Packed:
    raise LocalProtocolError("there is no step")


async def _ignored(chunk: Chunk, packed: Packed) -> None:
    await trio.lowlevel.checkpoint()


class _Wave:
    """One step on its way along a chain that pushes."""

    def __init__(self, context: Context, live: Failover, end: int) -> None:
        self.taken: dict[int, Packed] = {}
        """Outputs that came, but were not given to the sink, by entry."""
        self.given: set[int] = set()
        """Entries whose outputs were."""
        self._context = context
        self._chain = live.chain
        self._history = live.history
        self._legs = list(live.chain.legs)
        self._pushed = live.chain.wired
        self._end = end
        self._live = live
        self._changed = trio.Event()
        self._idle = [trio.CancelScope() for _ in self._legs]
        """Waits for word from servers that owe us nothing."""

    async def run(self, entries: Sequence[Entry], source: Source, sink: Sink) -> None:
        """Bring the step through.

        Raises:
            _Trouble: this wiring does not work (any more).
        """
        try:
            async with trio.open_nursery() as nursery:
                for index in range(len(self._legs)):
                    nursery.start_soon(self._follow, index)
                nursery.start_soon(self._feed, entries, source)
                for entry in entries:
                    while entry.number not in self.taken:
                        await self._changed.wait()
                    await sink(entry.chunk, self.taken[entry.number])
                    del self.taken[entry.number]
                    self.given.add(entry.number)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from None

    async def _feed(self, entries: Sequence[Entry], source: Source) -> None:
        client, wire = self._context.config.client, self._context.config.wire
        window = min(client.steps_in_flight, wire.steps_in_flight_max - LAG_MAX)
        start = self._legs[0].span.start
        for entry in entries:
            packed = await source(entry.chunk)
            self._history.record(start, entry, packed)
            while len(self._legs[-1].due) >= window:
                await self._changed.wait()
            await self._start(0, entry, packed)

    async def _start(self, index: int, entry: Entry, packed: Packed) -> None:
        """Send a step to a segment: to its first server, the others will have it pushed."""
        stop = index + 1
        while stop < len(self._legs) and self._pushed[stop - 1]:
            stop += 1
        segment = self._legs[index:stop]
        while any(len(leg.due) >= LAG_MAX for leg in segment):
            await self._changed.wait()
        for number in range(index, stop):
            self._idle[number].cancel()
        tail = entry.tail if segment[-1].span.end == self._end else ALL
        try:
            for leg in segment:
                if not leg.holds(entry.before):
                    raise _Trouble
            acked = min(leg.hop.acked for leg in segment)
            for leg in segment[1:]:
                leg.expect(entry, tail)
            await segment[0].send(entry, packed, tail, acked)
        finally:
            self._wake()

    async def _follow(self, index: int) -> None:
        """Take one server's answers: history, the next segment's input, or the step's output."""
        leg = self._legs[index]
        border = leg.span.end
        while True:
            try:
                if not leg.due:
                    # Nothing is awaited from it, but what it pushed may never have arrived: hear of its end.
                    with trio.CancelScope() as self._idle[index]:
                        await leg.hop.watch()
                    continue
                entry, packed = await leg.receive(mend=False)
            except HOP_ERRORS as exc:
                raise self._trouble(index, exc) from None
            except Unpushed:
                raise self._trouble(index, None) from None
            if leg.accuser is not None:
                self._live.answered(leg)
            if border == self._end:
                self.taken[entry.number] = packed
            else:
                self._history.record(border, entry, packed)
                if not self._pushed[index]:
                    await self._start(index + 1, entry, packed)
            self._wake()

    def _trouble(self, index: int, cause: P2PLLMError | None) -> _Trouble:
        leg = self._legs[index]
        if cause is None:
            pair = (leg.place.peer_id, self._legs[index + 1].place.peer_id)
            log.warning("server %s cannot push to %s: relaying between them", *pair)
            self._chain.unpushed[pair] = trio.current_time()
        else:
            log.info("no more pushes for now, since server %s: %s", leg.place.peer_id, cause)
            leg.doubt = cause
        return _Trouble()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
