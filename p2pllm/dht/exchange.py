"""Record exchange, ``/p2pllm/1/records``: asking a member what is new, answering, and gossip.

Invariants: every record is verified before it enters the view; a member that hands on a forged one is not asked again
for a while; what one peer may ask or send is budgeted; every wait has a deadline. Whom we ask again and again, we ask
over one stream, tell our own records once, and do not let repeat what others told us.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from p2pllm.config import WireLimits
from p2pllm.dht.budget import Budget
from p2pllm.dht.record import AGE_BYTES, Announcement, check, unpack_entry
from p2pllm.dht.view import Outcome, SwarmView
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Ports, Stream
from p2pllm.types import ModelId, PeerId
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Fault, FaultKind, Message, RecordsOffer, RecordsPage, RecordsRequest

log = logging.getLogger(__name__)

PROTOCOL = "/p2pllm/1/records"
PAGE_RECORDS = 256
PAGES_MAX = 64
"""Pages asked of one member at once: a view of ``peers_per_model_max`` several times over."""
ASK_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 120.0
ASKS_PER_S, ASKS_BURST = 8.0, 160.0
OFFERS_PER_S, OFFERS_BURST = 32.0, 512.0
"""Records of gossip that one peer may send."""
CURSORS_MAX = 1024
TURNS_BACK = 3
"""So many turns with a member does what we say we have go back: as long as news take to reach everybody."""
TALKS_MAX = 4
"""Members with whom a stream is kept open."""
NO_MODEL = ModelId("-")
"""Asked about by a node that follows no model: the answer is an empty page."""


OnNews = Callable[[Sequence[Announcement], PeerId], None]


@dataclass(frozen=True, slots=True)
class _Bookmark:
    """How far we got with one member and model: its log and cursor, and where our own log stood the last times."""

    log_id: int = 0
    cursor: int = 0
    mine: tuple[int, ...] = (0,)


@dataclass(slots=True)
class _Talk:
    """A stream on which we ask, and our own records as they were told on it."""

    stream: Stream
    reader: MessageReader
    told: tuple[bytes, ...] = ()


class Exchange:
    """Both sides of the conversation, around one view.

    ``on_news`` is called when the view has changed, with what says something new, or is of ours.
    """

    def __init__(self, ports: Ports, limits: WireLimits, view: SwarmView, on_news: OnNews) -> None:
        self._ports = ports
        self._me = ports.network.me
        self._limits = limits
        self._view = view
        self._on_news = on_news
        self._asks = Budget(ASKS_PER_S, ASKS_BURST)
        self._offers = Budget(OFFERS_PER_S, OFFERS_BURST)
        self._bookmarks: OrderedDict[tuple[PeerId, ModelId], _Bookmark] = OrderedDict()
        self._talks: OrderedDict[PeerId, _Talk] = OrderedDict()

    # -- asking

    async def ask(self, peer: PeerId, models: Collection[ModelId], mine: tuple[bytes, ...]) -> None:
        """Tell ``peer`` our own records, and take over what changed there since we last asked.

        Without ``models`` it is only asked whether it is there.

        Raises:
            PeerLost: it does not answer.
            RemoteProtocolError: it answers with what no member may send.
        """
        async with self._patience(peer):
            talk = self._talks.pop(peer, None)
            if talk is None or not await self._ask_again(talk, models, mine):
                stream = await self._ports.network.open_stream(peer, PROTOCOL)
                talk = _Talk(stream, MessageReader(self._limits))
                await self._ask_over(talk, models, mine)
            if models:
                await self._keep(talk)
            else:
                await talk.stream.aclose()
        self._view.mark_reached(peer)

    async def _ask_again(self, talk: _Talk, models: Collection[ModelId], mine: tuple[bytes, ...]) -> bool:
        """Ask over a stream of before; False when it was lost in the meantime."""
        try:
            await self._ask_over(talk, models, mine)
        except PeerLost:
            return False
        return True

    async def _ask_over(self, talk: _Talk, models: Collection[ModelId], mine: tuple[bytes, ...]) -> None:
        try:
            fresh = tuple(entry for entry in mine if entry[AGE_BYTES:] not in talk.told)
            talk.told = tuple(entry[AGE_BYTES:] for entry in mine)
            if fresh:
                await talk.stream.send_all(encode_message(RecordsOffer(fresh), limits=self._limits))
            if not models:
                await self._ask_page(talk, RecordsRequest(NO_MODEL, limit=1))
            for model in models:
                if not await self._ask_model(talk, model):
                    break
        except BaseException:
            talk.stream.abort()
            raise

    async def _keep(self, talk: _Talk) -> None:
        self._talks[talk.stream.peer] = talk
        if len(self._talks) > TALKS_MAX:
            _, oldest = self._talks.popitem(last=False)
            await oldest.stream.aclose()

    async def _ask_model(self, talk: _Talk, model: ModelId) -> bool:
        """All pages of one model; False when the peer wants to be left alone."""
        peer = talk.stream.peer
        last = self._bookmarks.get((peer, model), _Bookmark())
        # It may have learnt since then what we knew before: so this goes back further than its cursor.
        have = self._view.digests(model, last.mine[0], self._limits.digests_max)
        for _ in range(PAGES_MAX):
            request = RecordsRequest(model, last.log_id, last.cursor, PAGE_RECORDS, have)
            page = await self._ask_page(talk, request)
            if page is None:
                return False
            if any(ann.model != model for ann in self._merge(page.records, peer)):
                raise RemoteProtocolError("a record of another model than was asked for")
            last = _Bookmark(page.log, page.cursor, (*last.mine, self._view.cursor)[-TURNS_BACK:])
            self._bookmarks[peer, model] = last
            self._bookmarks.move_to_end((peer, model))
            if len(self._bookmarks) > CURSORS_MAX:
                self._bookmarks.popitem(last=False)
            if not page.more:
                break
        return True

    async def _ask_page(self, talk: _Talk, request: RecordsRequest) -> RecordsPage | None:
        """One question, one answer; None when the peer wants to be left alone."""
        await talk.stream.send_all(encode_message(request, limits=self._limits))
        answer = await _next_message(talk.stream, talk.reader)
        if isinstance(answer, Fault):
            log.debug("%s refuses to tell records: %s", talk.stream.peer, answer.reason)
            return None
        if not isinstance(answer, RecordsPage):
            raise RemoteProtocolError(f"{type(answer).__name__} in answer to a request for records")
        return answer

    async def offer(self, peer: PeerId, entries: tuple[bytes, ...]) -> None:
        """Gossip.

        Raises:
            PeerLost: it cannot be reached.
        """
        async with self._patience(peer):
            stream = await self._ports.network.open_stream(peer, PROTOCOL)
            try:
                size = self._limits.records_per_page_max
                for start in range(0, len(entries), size):
                    offer = RecordsOffer(entries[start : start + size])
                    await stream.send_all(encode_message(offer, limits=self._limits))
            except BaseException:
                stream.abort()
                raise
            await stream.aclose()
        self._view.mark_reached(peer)

    @asynccontextmanager
    async def _patience(self, peer: PeerId) -> AsyncGenerator[None]:
        with trio.move_on_after(ASK_TIMEOUT_S) as patience:
            yield
        if patience.cancelled_caught:
            raise PeerLost(f"{peer} did not finish a talk about records within {ASK_TIMEOUT_S:g} s")

    # -- answering

    async def handle(self, stream: Stream) -> None:
        """Serve one incoming stream; see ``ports.StreamHandler``."""
        reader = MessageReader(self._limits)
        try:
            while True:
                with trio.move_on_after(IDLE_TIMEOUT_S) as patience:
                    data = await stream.receive_some()
                if patience.cancelled_caught or not data:
                    break
                self._view.mark_reached(stream.peer)
                if not await self._answer_all(stream, reader, data):
                    break
            await stream.aclose()
        except PeerLost:
            stream.abort()
        except RemoteProtocolError as exc:
            log.debug("%s broke the record exchange: %s", stream.peer, exc)
            stream.abort()

    async def _answer_all(self, stream: Stream, reader: MessageReader, data: bytes) -> bool:
        """Answer what ``data`` asks; False when the conversation is over."""
        for message, _ in reader.feed(data):
            now = trio.current_time()
            if isinstance(message, RecordsRequest):
                wait = self._asks.take(stream.peer, 1, now)
            elif isinstance(message, RecordsOffer):
                wait = self._offers.take(stream.peer, len(message.records), now)
            else:
                await self._fault(stream, FaultKind.CLIENT, f"{type(message).__name__} does not belong here", 0.0)
                return False
            if wait:
                await self._fault(stream, FaultKind.BUSY, "too many records", wait)
                return False
            if isinstance(message, RecordsRequest):
                await stream.send_all(encode_message(self._page(message, now), limits=self._limits))
            else:
                self._merge(message.records, stream.peer)
        return True

    def _page(self, request: RecordsRequest, now: float) -> RecordsPage:
        limit = min(request.limit, self._limits.records_per_page_max)
        page, entries = self._view.page(request.model, request.log, request.cursor, limit, now, request.have)
        return RecordsPage(self._view.log_id, page.cursor, page.more, entries)

    async def _fault(self, stream: Stream, kind: FaultKind, reason: str, retry_after_s: float) -> None:
        fault = Fault(kind, reason, retry_after_s=min(retry_after_s, self._limits.retry_after_s_max))
        await stream.send_all(encode_message(fault, limits=self._limits))

    # -- both

    def _merge(self, entries: Collection[bytes], source: PeerId) -> list[Announcement]:
        """Take in what ``source`` handed us; what it says.

        Raises:
            RemoteProtocolError: forged or malformed.
        """
        said: list[Announcement] = []
        news: list[Announcement] = []
        version, now, wall = self._view.version, trio.current_time(), self._ports.wall_time()
        try:
            for entry in entries:
                record, age_s = unpack_entry(entry)
                checked = check(record)
                ann = checked.ann
                said.append(ann)
                outcome = self._view.take(checked, now, wall, age_s, source)
                if outcome is Outcome.NEWS:
                    self._learn(ann)
                    news.append(ann)
                elif outcome is Outcome.RENEWED and ann.peer == self._me:
                    news.append(ann)
        finally:
            if self._view.version != version:
                self._on_news(news, source)
        return said

    def take(self, record: bytes, source: PeerId, age_s: float = 0.0) -> Outcome:
        """Merge a record into the view, and remember where its server lives.

        Raises:
            RemoteProtocolError: forged or malformed.
        """
        outcome = self._view.merge(record, trio.current_time(), self._ports.wall_time(), age_s=age_s, source=source)
        if outcome is Outcome.NEWS:
            self._learn(check(record).ann)
        return outcome

    def _learn(self, ann: Announcement) -> None:
        if ann.peer != self._me and ann.addrs:
            self._ports.network.learn(ann.peer, ann.addrs)


async def _next_message(stream: Stream, reader: MessageReader) -> Message:
    """Wait for exactly one answer."""
    while True:
        data = await stream.receive_some()
        if not data:
            reader.eof()
            raise PeerLost(f"{stream.peer} hung up")
        messages = reader.feed(data)
        if len(messages) > 1:
            raise RemoteProtocolError("more answers than questions")
        if messages:
            return messages[0][0]
