"""The chain of a session as it stands: one leg per server, and what all of its life stays fixed.

Invariants: legs cover the model's blocks in order, without gaps or overlap. Codec points are the borders of the chain
that opened first, for good: a replacement with other borders rounds there inside its span, and answers without loss
where it ends elsewhere. A server that is met twice has a session of its own for each leg.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import trio

from p2pllm.client.context import Context
from p2pllm.client.edge import TAGS, Packed
from p2pllm.client.hop import HopSession
from p2pllm.client.past import Entry, Rows, covering, lengths
from p2pllm.client.route import Hop, Plan
from p2pllm.errors import LocalProtocolError, P2PLLMError
from p2pllm.types import PeerId, SessionId, Span
from p2pllm.wire.messages import Open

SESSION_BYTES = 16


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session asks of every server, for its whole life.

    Attributes:
        codec: of activations at codec points.
        numerics: the class that every server has to be of; empty: any.
    """

    rows: int
    max_length: int
    codec: str
    codec_points: tuple[int, ...] = ()
    numerics: str = ""


class Leg:
    """One server's part of a chain.

    Attributes:
        rows: what the server's caches hold once everything that was sent has run.
        lost: why the server is of no use any more; None while it is.
        accuser: the server that this one replaces, which said that we are at fault.
    """

    def __init__(self, hop: HopSession, rows: Rows) -> None:
        self.hop = hop
        self.rows = rows
        self.lost: P2PLLMError | None = None
        self.accuser: Hop | None = None

    @property
    def place(self) -> Hop:
        return self.hop.hop

    @property
    def span(self) -> Span:
        return self.hop.span

    def holds(self, rows: Rows) -> bool:
        """Whether a step that stands on ``rows`` can follow at once: perhaps after a roll-back or a change of rows."""
        return self.rows is rows or covering(self.rows, rows)[1] == lengths(rows)

    async def send(self, entry: Entry, packed: Packed, tail: int) -> None:
        """Send a step; the caches hold what it stands on."""
        sources = entry.sources
        if self.rows is not entry.before:
            picks, known = covering(self.rows, entry.before)
            if known != lengths(entry.before):
                raise LocalProtocolError("a step was sent to caches that lack what it stands on")
            gathered = tuple(picks[source] for source in sources) if sources else picks
            sources = () if gathered == tuple(range(len(picks))) else gathered
        await self.hop.send(entry.positions, entry.counts, packed, tail=tail, sources=sources)
        self.rows = entry.after


class Chain:
    """The legs of one session, in order."""

    def __init__(self, context: Context, terms: Terms) -> None:
        self.terms = terms
        self.fixed = bool(terms.codec_points)
        """Whether codec points and numerics class are settled; if not, the first plan settles them."""
        self.legs: list[Leg] = []
        self.epoch = 0
        """The newest one that any server knows."""
        self._reattached = 0
        self._context = context
        self._session = SessionId(context.ports.token_bytes(SESSION_BYTES))
        self._codecs: dict[int, str] = {}
        self._opening: set[PeerId] = set()

    @property
    def peers(self) -> frozenset[PeerId]:
        """Servers that hold, or are asked to hold, caches of this session."""
        return frozenset(leg.place.peer_id for leg in self.legs if leg.lost is None) | self._opening

    @property
    def reattached(self) -> int:
        """Streams that broke and were replaced, also on legs that are no more."""
        return self._reattached + sum(leg.hop.reattached for leg in self.legs)

    def make(self, plan: Plan) -> list[Leg]:
        """Legs for servers that are to be opened; say ``opened`` when that is decided, whether they could or not."""
        if not self.legs and not self.fixed:
            self.terms = replace(self.terms, codec_points=plan.borders, numerics=plan.numerics)
        self.epoch += 1
        self._choose_codecs(plan.hops)
        return [self._leg(hop) for hop in plan.hops]

    def opened(self, legs: Iterable[Leg]) -> None:
        """These legs are part of the chain, or given up."""
        self._opening -= {leg.place.peer_id for leg in legs}

    def splice(self, old: Sequence[Leg], new: Sequence[Leg]) -> None:
        """Put legs in the place of others, which are neighbours; of none, where the chain begins."""
        if not old and not self.legs:
            self.legs[:] = new
            self.fixed = True
            return
        at = self.legs.index(old[0])
        if self.legs[at : at + len(old)] != list(old):
            raise LocalProtocolError("legs that are not neighbours cannot be replaced together")
        self.legs[at : at + len(old)] = new
        self._reattached += sum(leg.hop.reattached for leg in old)

    def inner(self, legs: Sequence[Leg]) -> list[int]:
        """The borders between some legs that follow each other."""
        return [leg.span.start for leg in legs[1:]]

    async def aclose(self) -> None:
        """Free all caches, within a bound."""
        await close_all([leg for leg in self.legs if leg.lost is None])

    def _leg(self, hop: Hop) -> Leg:
        context, terms = self._context, self.terms
        # The server would take a second Open of one session id for the end of the first.
        taken = hop.peer_id in self.peers
        session = SessionId(context.ports.token_bytes(SESSION_BYTES)) if taken else self._session
        self._opening.add(hop.peer_id)
        returns = self._codecs.get(hop.span.end, "")
        open_ = Open(
            session, self.epoch, context.model, hop.span, terms.rows, terms.max_length, terms.codec,
            codec_points=terms.codec_points, numerics=terms.numerics,
            alloc_timeout_s=context.config.client.open_timeout_s / 2, returns=returns,
        )  # fmt: skip
        session_hop = HopSession(context.links, context.peers, context.config, hop, open_, context.shape.hidden_size)
        return Leg(session_hop, (None,) * terms.rows)

    def _choose_codecs(self, hops: Sequence[Hop]) -> None:
        """The codec at each new border that is no codec point: the compute dtype's own, or fp32, which holds all."""
        dtypes = {s.peer: s.numerics.dtype for s in self._context.view.servers()}
        names = {str(dtype).removeprefix("torch."): tag for dtype, tag in TAGS.items()}
        for hop, after in itertools.pairwise(hops):
            border = hop.span.end
            if border not in self.terms.codec_points and border not in self._codecs:
                mine, theirs = dtypes.get(hop.peer_id), dtypes.get(after.peer_id)
                self._codecs[border] = names.get(mine or "", "fp32") if mine == theirs else "fp32"


async def close_all(legs: Iterable[Leg]) -> None:
    """Free the caches of some legs, within a bound, whatever their servers do."""
    async with trio.open_nursery() as nursery:
        for leg in legs:
            nursery.start_soon(leg.hop.aclose)
