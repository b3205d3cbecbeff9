"""Record exchange, ``/p2pllm/1/records``: asking a member what is new, answering, and gossip.

Invariants: every record is verified before it enters the view; a member that hands on a forged one is not asked again
for a while; what one peer may ask or send is budgeted; every wait has a deadline.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager

import trio

from p2pllm.config import WireLimits
from p2pllm.dht.budget import Budget
from p2pllm.dht.record import Announcement, unpack_entry, verify
from p2pllm.dht.view import Outcome, SwarmView
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Ports, Stream
from p2pllm.types import ModelId, PeerId
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Fault, FaultKind, Message, RecordsOffer, RecordsPage, RecordsRequest

log = logging.getLogger(__name__)

PROTOCOL = "/p2pllm/1/records"
PAGE_RECORDS = 128
PAGES_MAX = 128
"""Pages asked of one member at once: a view of ``peers_per_model_max`` several times over."""
ASK_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 120.0
ASKS_PER_S, ASKS_BURST = 8.0, 160.0
OFFERS_PER_S, OFFERS_BURST = 32.0, 512.0
"""Records of gossip that one peer may send."""
CURSORS_MAX = 1024
NO_MODEL = ModelId("-")
"""Asked about by a node that follows no model: the answer is an empty page."""


class Exchange:
    """Both sides of the conversation, around one view."""

    def __init__(
        self, ports: Ports, limits: WireLimits, view: SwarmView, on_news: Callable[[Announcement, PeerId], None]
    ) -> None:
        self._ports = ports
        self._limits = limits
        self._view = view
        self._on_news = on_news
        self._asks = Budget(ASKS_PER_S, ASKS_BURST)
        self._offers = Budget(OFFERS_PER_S, OFFERS_BURST)
        self._cursors: OrderedDict[tuple[PeerId, ModelId], tuple[int, int]] = OrderedDict()

    # -- asking

    async def ask(self, peer: PeerId, models: Collection[ModelId], mine: tuple[bytes, ...]) -> None:
        """Tell ``peer`` our own records, and take over what changed there since we last asked.

        Without ``models`` it is only asked whether it is there.

        Raises:
            PeerLost: it does not answer.
            RemoteProtocolError: it answers with what no member may send.
        """
        async with self._conversation(peer) as (stream, reader):
            if mine:
                await stream.send_all(encode_message(RecordsOffer(mine), limits=self._limits))
            if not models:
                await self._ask_page(stream, reader, RecordsRequest(NO_MODEL, limit=1))
            for model in models:
                if not await self._ask_model(stream, reader, model):
                    break
        self._view.mark_reached(peer)

    async def _ask_model(self, stream: Stream, reader: MessageReader, model: ModelId) -> bool:
        """All pages of one model; False when the peer wants to be left alone."""
        for _ in range(PAGES_MAX):
            log_id, cursor = self._cursors.get((stream.peer, model), (0, 0))
            page = await self._ask_page(stream, reader, RecordsRequest(model, log_id, cursor, PAGE_RECORDS))
            if page is None:
                return False
            for entry in page.records:
                if self._merge(entry, stream.peer).model != model:
                    raise RemoteProtocolError("a record of another model than was asked for")
            self._cursors[stream.peer, model] = (page.log, page.cursor)
            self._cursors.move_to_end((stream.peer, model))
            if len(self._cursors) > CURSORS_MAX:
                self._cursors.popitem(last=False)
            if not page.more:
                break
        return True

    async def _ask_page(self, stream: Stream, reader: MessageReader, request: RecordsRequest) -> RecordsPage | None:
        """One question, one answer; None when the peer wants to be left alone."""
        await stream.send_all(encode_message(request, limits=self._limits))
        answer = await _next_message(stream, reader)
        if isinstance(answer, Fault):
            log.debug("%s refuses to tell records: %s", stream.peer, answer.reason)
            return None
        if not isinstance(answer, RecordsPage):
            raise RemoteProtocolError(f"{type(answer).__name__} in answer to a request for records")
        return answer

    async def offer(self, peer: PeerId, entries: tuple[bytes, ...]) -> None:
        """Gossip.

        Raises:
            PeerLost: it cannot be reached.
        """
        async with self._conversation(peer) as (stream, _):
            size = self._limits.records_per_page_max
            for start in range(0, len(entries), size):
                await stream.send_all(encode_message(RecordsOffer(entries[start : start + size]), limits=self._limits))
        self._view.mark_reached(peer)

    @asynccontextmanager
    async def _conversation(self, peer: PeerId) -> AsyncGenerator[tuple[Stream, MessageReader]]:
        with trio.move_on_after(ASK_TIMEOUT_S) as patience:
            stream = await self._ports.network.open_stream(peer, PROTOCOL)
            try:
                yield stream, MessageReader(self._limits)
            except BaseException:
                stream.abort()
                raise
            await stream.aclose()
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
                for entry in message.records:
                    self._merge(entry, stream.peer)
        return True

    def _page(self, request: RecordsRequest, now: float) -> RecordsPage:
        limit = min(request.limit, self._limits.records_per_page_max)
        page, entries = self._view.page(request.model, request.log, request.cursor, limit, now)
        return RecordsPage(self._view.log_id, page.cursor, page.more, entries)

    async def _fault(self, stream: Stream, kind: FaultKind, reason: str, retry_after_s: float) -> None:
        fault = Fault(kind, reason, retry_after_s=min(retry_after_s, self._limits.retry_after_s_max))
        await stream.send_all(encode_message(fault, limits=self._limits))

    # -- both

    def _merge(self, entry: bytes, source: PeerId) -> Announcement:
        """Take in what ``source`` handed us.

        Raises:
            RemoteProtocolError: forged or malformed.
        """
        record, age_s = unpack_entry(entry)
        ann = verify(record)
        if self.take(record, source, age_s) is Outcome.NEWS:
            self._on_news(ann, source)
        return ann

    def take(self, record: bytes, source: PeerId, age_s: float = 0.0) -> Outcome:
        """Merge a record into the view, and remember where its server lives."""
        network = self._ports.network
        outcome = self._view.merge(record, trio.current_time(), self._ports.wall_time(), age_s=age_s, source=source)
        if outcome is Outcome.NEWS:
            ann = verify(record)
            if ann.peer != network.me and ann.addrs:
                network.learn(ann.peer, ann.addrs)
        return outcome


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
