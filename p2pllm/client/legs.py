"""The chain of a session as it stands: one leg per server, and what all of its life stays fixed.

Invariants: legs cover the model's blocks in order, without gaps or overlap. Codec points are the borders of the chain
that opened first, for good: a replacement with other borders rounds there inside its span, and answers without loss
where it ends elsewhere. A server that is met twice has a session of its own for each leg.
"""

from __future__ import annotations

import itertools
from collections import deque
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
from p2pllm.wire.tensor import plain

SESSION_BYTES = 16
UNPUSHED_S = 300.0
"""A link over which a push failed is left alone for so long."""


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
        due: entries whose answers were not taken yet, in order.
        begun: all entries of lower numbers were sent to this server, or were over before it came.
        doubt: why the server may be of no use any more; whoever needs it next decides.
        lost: why it is of no use any more; None while it is.
        accuser: the server that this one replaces, which said that we are at fault.
    """

    def __init__(self, hop: HopSession, rows: Rows) -> None:
        self.hop = hop
        self.rows = rows
        self.due: deque[Entry] = deque()
        self._given: dict[int, tuple[int, ...]] = {}  # sources as they were sent
        self.begun = 0
        self.doubt: P2PLLMError | None = None
        self.lost: P2PLLMError | None = None
        self.accuser: Hop | None = None

    @property
    def place(self) -> Hop:
        return self.hop.hop

    @property
    def span(self) -> Span:
        return self.hop.span

    @property
    def ready(self) -> bool:
        """Whether nothing is known against it, and nobody was interrupted while using it."""
        return self.lost is None and self.doubt is None and not self.hop.unsettled

    def holds(self, rows: Rows) -> bool:
        """Whether a step that stands on ``rows`` can follow at once: perhaps after a roll-back or a change of rows."""
        return self.rows is rows or covering(self.rows, rows)[1] == lengths(rows)

    async def send(self, entry: Entry, packed: Packed, tail: int, acked: int | None = None) -> None:
        """Send a step; the caches hold what it stands on."""
        sources = self._sources(entry)
        self._began(entry)
        await self.hop.send(entry.positions, entry.counts, packed, tail=tail, sources=sources, acked=acked)

    def expect(self, entry: Entry, tail: int) -> None:
        """A neighbour will push a step."""
        sources = self._sources(entry)
        self._began(entry)
        self.hop.expect(entry.positions, entry.counts, tail=tail, sources=sources)

    async def supply(self, entry: Entry, packed: Packed, tail: int) -> None:
        """Send a step that is due, but perhaps was never pushed."""
        sources = self._given[entry.number]
        await self.hop.supply(self.due.index(entry), entry.positions, entry.counts, packed, tail=tail, sources=sources)

    async def receive(self, *, mend: bool = True) -> tuple[Entry, Packed]:
        """The next answer, and what it answers.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault, Unpushed: see ``HopSession.receive``.
        """
        packed = await self.hop.receive(mend=mend)
        if packed.tensor.zstd:
            plain(packed.tensor, packed.payload)  # whoever sent what does not unpack is to blame, not who gets it
        entry = self.due.popleft()
        self._given.pop(entry.number, None)
        return entry, packed

    def _began(self, entry: Entry) -> None:
        self.rows = entry.after
        self.begun = max(self.begun, entry.number + 1)
        self.due.append(entry)

    def _sources(self, entry: Entry) -> tuple[int, ...]:
        """Which row's cache each row of a step continues here, where rows may stand otherwise than in the entry."""
        sources = entry.sources
        if self.rows is not entry.before:
            picks, known = covering(self.rows, entry.before)
            if known != lengths(entry.before):
                raise LocalProtocolError("a step was sent to caches that lack what it stands on")
            gathered = tuple(picks[source] for source in sources) if sources else picks
            sources = () if gathered == tuple(range(len(picks))) else gathered
        self._given[entry.number] = sources
        return sources


class Chain:
    """The legs of one session, in order."""

    def __init__(self, context: Context, terms: Terms) -> None:
        self.terms = terms
        self.fixed = bool(terms.codec_points)
        """Whether codec points and numerics class are settled; if not, the first plan settles them."""
        self.legs: list[Leg] = []
        self.wired: tuple[bool, ...] = ()
        """Per link, whether outputs are pushed over it in this epoch; empty: we relay them all."""
        self.unpushed: dict[tuple[PeerId, PeerId], float] = {}
        """Pairs of servers of which the first could not push to the second, and when that was."""
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

    def make(self, plan: Plan, line_s: float = 0.0) -> list[Leg]:
        """Legs for servers that are to be opened; say ``opened`` when that is decided, whether they could or not.

        Where servers are full, they stand in line for ``line_s``.
        """
        if not self.legs and not self.fixed:
            self.terms = replace(self.terms, codec_points=plan.borders, numerics=plan.numerics)
        self.epoch += 1
        self._choose_codecs(plan.hops)
        return [self._leg(hop, line_s) for hop in plan.hops]

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

    def links(self, now: float) -> tuple[bool, ...]:
        """Per link, whether outputs can be pushed over it, as far as is known."""
        able = []
        for one, two in itertools.pairwise(self.legs):
            since = self.unpushed.get((one.place.peer_id, two.place.peer_id))
            tried = since is not None and now - since < UNPUSHED_S
            able.append(one.hop.session == two.hop.session and not tried)
        return tuple(able)

    def inner(self, legs: Sequence[Leg]) -> list[int]:
        """The borders between some legs that follow each other."""
        return [leg.span.start for leg in legs[1:]]

    async def aclose(self) -> None:
        """Free all caches, within a bound."""
        await close_all([leg for leg in self.legs if leg.lost is None])

    def _leg(self, hop: Hop, line_s: float) -> Leg:
        context, terms = self._context, self.terms
        # The server would take a second Open of one session id for the end of the first.
        taken = hop.peer_id in self.peers
        session = SessionId(context.ports.token_bytes(SESSION_BYTES)) if taken else self._session
        self._opening.add(hop.peer_id)
        returns = self._codecs.get(hop.span.end, "")
        open_ = Open(
            session, self.epoch, context.model, hop.span, terms.rows, terms.max_length, terms.codec,
            codec_points=terms.codec_points, numerics=terms.numerics,
            alloc_timeout_s=line_s, returns=returns,
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
