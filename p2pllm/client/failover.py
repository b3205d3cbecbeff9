"""How a session survives its servers: replacements for exactly the lost blocks, fed from the history.

Invariants: a server that failed is left alone at once, as long as its fault deserves; one that only says that we are
at fault is believed when a second one says the same. A replacement that fails, in whatever it does, is replaced as its
predecessor was. When nobody serves the blocks we wait, up to the client's patience; the leg then stays lost, the others
stay as they are, and the next step tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from p2pllm.client.chunks import Chunk, cut
from p2pllm.client.context import GONE_RETRY_S, HOP_ERRORS, Context, HopLost
from p2pllm.client.costs import Wish
from p2pllm.client.edge import Packed
from p2pllm.client.flow import Flow
from p2pllm.client.legs import Chain, Leg, close_all
from p2pllm.client.link import PeerSilent
from p2pllm.client.past import Rows, covering, lengths, replay_of
from p2pllm.client.replay import History
from p2pllm.client.route import Hop, Plan, changes
from p2pllm.client.vitals import Vitals
from p2pllm.errors import (
    ClientFault,
    CoverageError,
    LocalProtocolError,
    Overloaded,
    P2PLLMError,
    SessionGone,
)
from p2pllm.types import PeerId, Span

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One failure that a session survived.

    Attributes:
        at: when it was noticed, on trio's clock.
        peer_id: the server that failed; ``span``: the blocks that were lost with it.
        cause: what happened, in a line.
        replacement: who serves these blocks now.
        replayed: tokens that were fed to them from the history, summed over rows.
        seconds: from the moment when it was noticed until the step could go on.
    """

    at: float
    peer_id: PeerId
    span: Span
    cause: str
    replacement: tuple[Hop, ...]
    replayed: int
    seconds: float


class Failover:
    """Mends one session's chain; a ``flow.Mender``."""

    def __init__(self, context: Context, chain: Chain, history: History) -> None:
        self.recoveries: list[Recovery] = []
        self.tried = 0
        """Servers that failed before they held anything of ours; to be full is no failure."""
        self._context = context
        self._vitals = Vitals(
            context.config.client, context.ports, context.peers, context.planner, context.view, context.model,
            context.whole,
        )  # fmt: skip
        self._look_at = trio.current_time() + context.config.client.reroute_interval_s
        self.chain = chain
        self.history = history

    @property
    def count(self) -> int:
        """Failures of servers and streams that were survived."""
        return self.tried + len(self.recoveries) + self.chain.reattached

    # -- opening ---------------------------------------------------------------------------------------------------

    async def fill(self, old: Sequence[Leg], span: Span, rows: Rows, accuser: Hop | None = None) -> list[Leg]:
        """New legs for ``span`` whose caches hold ``rows``, in the place of ``old``.

        A server that failed or is full is passed by while there are others; then the full ones are waited for in line.

        Raises:
            CoverageError: nobody serves some of the blocks.
            HopLost: every server that was tried failed; tells of the last one.
        """
        deadline = self._deadline()
        last: HopLost | None = None
        full, tried = set[PeerId](), set[PeerId]()
        while True:
            try:
                plan = await self._plan(span, deadline, frozenset(tried))
            except CoverageError as gap:
                if old:
                    raise CoverageError(f"{gap}; {last or old[0].lost}", gap.missing) from last
                raise last or gap from None
            waits = any(hop.peer_id in full for hop in plan.hops)
            legs = self.chain.make(plan, self._context.config.client.line_timeout_s if waits else 0.0)
            try:
                await self.open(legs)
                self.history.forget(self.chain.inner(legs))
                await self.replay(legs, rows)
                self.chain.splice(old, legs)
                return self._blaming(legs, accuser)
            except HopLost as exc:
                last = exc
                await self._give_up(legs)
            except BaseException:  # cancelled: whoever has opened would keep the cache until it expires
                await self._give_up(legs)
                raise
            finally:
                self.chain.opened(legs)
            for leg in legs:
                if isinstance(leg.lost, HopLost):
                    tried.add(leg.place.peer_id)
                    if isinstance(leg.lost.cause, Overloaded):
                        full.add(leg.place.peer_id)
            if not isinstance(last.cause, Overloaded):
                self.tried += 1
            accuser = self._refused(last, accuser)
            if trio.current_time() >= deadline:
                if old:
                    raise CoverageError(f"{last}; others failed before, and patience is over", tuple(span)) from last
                raise last
            if isinstance(last.cause, SessionGone):
                await self._context.planner.refresh()

    async def open(self, legs: Sequence[Leg]) -> None:
        """Open all legs at once; where they may have to stand in line, one by one, in the order of blocks.

        Were it all lines at once, everybody would hold room in one while waiting in another, and nobody move.

        Raises:
            HopLost: a server cannot or will not.
        """
        losses: list[HopLost] = []
        for some in [[leg] for leg in legs] if any(leg.hop.queues for leg in legs) else [legs]:
            async with trio.open_nursery() as nursery:
                for leg in some:
                    nursery.start_soon(self._open_one, leg, losses)
            if losses:
                raise losses[0]

    async def _open_one(self, leg: Leg, losses: list[HopLost]) -> None:
        """Open a leg, for as long as its server is there."""
        error: P2PLLMError | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal error
                await self._vitals.wait_silence(leg.place.peer_id)
                error = PeerSilent("it answers neither us nor pings")
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                await leg.hop.open()
            except HOP_ERRORS as exc:
                error = exc
            nursery.cancel_scope.cancel()
        if error is None:
            self._context.reached(leg.place.peer_id)
            return
        if isinstance(error, PeerSilent):
            leg.hop.drop()
        if isinstance(error, Overloaded) and not leg.hop.queues:
            leg.lost = lost = HopLost(leg.place, error)  # it may have room the next moment, and others now
        else:
            leg.lost = lost = self._told(leg, error)
        losses.append(lost)

    async def replay(self, legs: Sequence[Leg], rows: Rows) -> int:
        """Feed legs that follow each other, and hold the same, what they lack of ``rows``; how many tokens it was.

        Raises:
            HopLost: a server failed.
        """
        held = legs[0].rows
        missing = [length - known for length, known in zip(lengths(rows), covering(held, rows)[1], strict=True)]
        if not any(missing):
            return 0
        chunks = cut(missing, self._context.config.client.prefill_chunk_tokens, 0)
        entries = replay_of(chunks, held, rows)
        runs = {entry.chunk: entry.runs for entry in entries}
        border = legs[0].span.start

        async def source(chunk: Chunk) -> Packed:
            return await self.history.packed(border, runs[chunk])

        flow = Flow(self._context, list(legs), legs[-1].span.end, self.history, _Strict(self))
        await flow.run(entries, source, _ignore)
        for leg in legs:
            leg.rows = rows
        return sum(missing)

    async def _plan(self, span: Span, deadline: float, tried: frozenset[PeerId]) -> Plan:
        """A chain for ``span``: through servers that hold nothing of ours, nor were tried, where there are any."""
        legs = self.chain.legs
        wish = replace(
            self._wish(span),
            avoid=self.chain.peers | tried,
            before=next((leg.place.peer_id for leg in legs if leg.span.end == span.start), None),
            after=next((leg.place.peer_id for leg in legs if leg.span.start == span.end), None),
        )
        try:
            return self._context.planner.plan(wish)
        except CoverageError:
            return await self._context.planner.wait_plan(replace(wish, avoid=frozenset()), deadline)

    def _wish(self, span: Span) -> Wish:
        terms, client = self.chain.terms, self._context.config.client
        return Wish(
            span, cache_tokens=terms.rows * terms.max_length, exact=client.exact, numerics=terms.numerics,
            push=client.push != "off",
        )  # fmt: skip

    async def _give_up(self, legs: Sequence[Leg]) -> None:
        await close_all(legs)
        self.history.forget(self.chain.inner(legs))

    def _deadline(self) -> float:
        client = self._context.config.client
        return trio.current_time() + max(client.patience_s, client.gap_grace_s)

    def better(self) -> Plan | None:
        """A chain that is clearly worth moving to; looked for now and then, when all is well."""
        now, client = trio.current_time(), self._context.config.client
        if now < self._look_at:
            return None
        self._look_at = now + client.reroute_interval_s
        if not all(leg.ready for leg in self.chain.legs):
            return None
        position = max(lengths(self.history.rows))
        hops = [leg.place for leg in self.chain.legs]
        wish = self._wish(self._context.whole)
        remaining = self.chain.terms.max_length - position
        return self._context.planner.better(hops, wish, position=position, remaining=remaining)

    async def reroute(self, plan: Plan) -> bool:
        """Move to the chain of ``plan``, between steps; whether it worked. If not, nothing has changed.

        Legs that are in it with the same blocks stay. The others' replacements are fed the history first, and only
        then take over.
        """
        began, legs, rows = trio.current_time(), self.chain.legs, self.history.rows
        moved = 0
        for first, last, hops in changes([leg.place for leg in legs], plan.hops):
            first, last = first + moved, last + moved
            old = legs[first:last]
            new = self.chain.make(Plan(tuple(hops), 0.0))
            kept = self.chain.inner(old)
            fresh = [border for border in self.chain.inner(new) if border not in kept]
            try:
                await self.open(new)
                self.history.forget(fresh)
                await self.replay(new, rows)
                self.chain.splice(old, new)
            except BaseException as exc:
                await close_all(new)
                self.history.forget(fresh)
                if isinstance(exc, HopLost):
                    return False
                raise
            finally:
                self.chain.opened(new)
            await close_all(leg for leg in old if leg.lost is None)
            self.history.forget(set(kept).difference(self.chain.inner(new)))
            moved += len(new) - len(old)
        log.info("moved to a better chain in %.2f s", trio.current_time() - began)
        return True

    # -- mending: see flow.Mender ----------------------------------------------------------------------------------

    async def mend(self, leg: Leg, cause: P2PLLMError, rows: Rows) -> list[Leg]:
        """See ``flow.Mender``."""
        began = trio.current_time()
        accuser = leg.accuser
        if leg.lost is None:
            lost = cause if isinstance(cause, HopLost) else self._told(leg, cause)
            leg.lost = lost
            accuser = self._refused(lost, accuser)
            if isinstance(lost.cause, ClientFault | Overloaded):
                await leg.hop.aclose()  # it is there, and would keep the cache for nothing
            leg.hop.drop()
            if isinstance(lost.cause, SessionGone):
                await self._context.planner.refresh()
        legs = await self.fill([leg], leg.span, rows, accuser)
        took = trio.current_time() - began
        replacement = tuple(new.place for new in legs)
        recovery = Recovery(began, leg.place.peer_id, leg.span, str(leg.lost), replacement, sum(lengths(rows)), took)
        self.recoveries.append(recovery)
        log.warning(
            "blocks %s went on at %s after %.2f s; %d tokens were replayed",
            leg.span, ", ".join(hop.peer_id for hop in replacement), took, recovery.replayed,
        )  # fmt: skip
        return legs

    async def prepare(self, leg: Leg, rows: Rows) -> None:
        """See ``flow.Mender``."""
        await self.replay([leg], rows)

    def answered(self, leg: Leg) -> None:
        """See ``flow.Mender``."""
        if leg.accuser is not None:
            log.warning("server %s refused what %s takes", leg.accuser.peer_id, leg.place.peer_id)
            self._context.peers.failed(leg.accuser.peer_id, trio.current_time())
            leg.accuser = None

    # -- blame -----------------------------------------------------------------------------------------------------

    def _told(self, leg: Leg, cause: P2PLLMError) -> HopLost:
        """Write a failure down."""
        if isinstance(cause, ClientFault):
            # Its word alone: it is left alone for a moment, and what a second server says decides.
            self._context.peers.busy(leg.place.peer_id, GONE_RETRY_S, trio.current_time())
            return HopLost(leg.place, cause)
        return self._context.lost(leg.place, cause)

    def _refused(self, lost: HopLost, accuser: Hop | None) -> Hop | None:
        """Who said that we are at fault, if anybody did.

        Raises:
            HopLost: a second server says so, too.
        """
        if not isinstance(lost.cause, ClientFault):
            return accuser
        if accuser is not None and accuser.peer_id != lost.hop.peer_id:
            raise lost
        log.warning("%s; asking another one", lost)
        return lost.hop

    def _blaming(self, legs: list[Leg], accuser: Hop | None) -> list[Leg]:
        for leg in legs:
            leg.accuser = accuser
        return legs


class _Strict:
    """During a replay nothing is mended: the replacement as a whole has failed."""

    def __init__(self, failover: Failover) -> None:
        self._failover = failover

    async def mend(self, leg: Leg, cause: P2PLLMError, rows: Rows) -> list[Leg]:
        if leg.lost is None:
            leg.lost = self._failover._told(leg, cause)
        raise leg.lost

    async def prepare(self, leg: Leg, rows: Rows) -> None:
        raise LocalProtocolError("a fresh server lacks what was replayed to it")

    def answered(self, leg: Leg) -> None:
        return


async def _ignore(chunk: Chunk, packed: Packed) -> None:
    await trio.lowlevel.checkpoint()
