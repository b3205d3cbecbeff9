"""All sessions of a server, and the conversation on a session stream.

Invariants: one task per incoming stream. A bad byte, a silent peer or a lost connection ends that stream only; the
session behind it lingers for its opener. Nobody holds more sessions than the quota, waits for cache room beyond the
deadline, or keeps a session that nobody steps.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from p2pllm.config import Config
from p2pllm.errors import Overloaded, PeerLost, RemoteFault, RemoteProtocolError, SessionGone
from p2pllm.ports import Stream
from p2pllm.server.backend import SpanTask
from p2pllm.server.channel import Channel
from p2pllm.server.engine import Engine
from p2pllm.server.faults import fault_of
from p2pllm.server.hosted import Hosted
from p2pllm.server.offer import Offer
from p2pllm.server.room import CacheRoom
from p2pllm.types import PeerId, SessionId, WorkKind
from p2pllm.wire.messages import Attach, Close, FaultKind, Message, Open, Rewire, Step
from p2pllm.wire.session import Payload, Send, no_session
from p2pllm.wire.session_server import ServerSession

log = logging.getLogger(__name__)

CREDIT_SHARES = 16
"""A new session's credit for kept answers is at most this part of what is not granted yet."""

CARE_INTERVAL_S = 1.0
"""How often lingering and idle sessions are looked at."""


@dataclass(eq=False, slots=True)
class _Conversation:
    """One session stream: usually of one session, at times of several, one after the other or side by side."""

    channel: Channel
    bound: dict[SessionId, Hosted] = field(default_factory=dict)


class Sessions:
    """Opens, finds and ends sessions; serves the session protocol."""

    def __init__(
        self,
        offer: Offer,
        engine: Engine,
        room: CacheRoom,
        config: Config,
        nursery: trio.Nursery,
        push: Callable[[Hosted, Send], None],
    ) -> None:
        self._offer = offer
        self._engine = engine
        self._room = room
        self._config = config
        self._nursery = nursery
        self._push = push
        self._sessions: dict[SessionId, Hosted] = {}
        self._opening: set[SessionId] = set()
        self._held: Counter[PeerId] = Counter()
        self._conversations: dict[Channel, _Conversation] = {}
        self._changed = trio.Event()
        self.draining = False
        self._shut = False

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, session: SessionId) -> Hosted | None:
        return self._sessions.get(session)

    # -- the protocol ----------------------------------------------------------------------------------------------

    async def handle(self, stream: Stream) -> None:
        """Serve one session stream until it ends."""
        if self._shut:
            stream.abort()
            return
        channel = Channel(stream, self._config.wire)
        conversation = self._conversations[channel] = _Conversation(channel)
        self._rest(conversation)
        try:
            while (got := await channel.receive()) is not None:
                await self._take(conversation, *got)
                self._rest(conversation)
                await channel.flush()
            await channel.aclose()
        except PeerLost as exc:
            log.info("session stream lost: %s", exc)
        except RemoteProtocolError as exc:
            log.warning("session stream of %s ended: %s", channel.peer, exc)
        finally:
            channel.abort()
            del self._conversations[channel]
            for hosted in list(conversation.bound.values()):
                if hosted.channel is channel:
                    hosted.lost(trio.current_time())

    async def _take(self, conversation: _Conversation, message: Message, payload: Payload) -> None:
        channel = conversation.channel
        match message:
            case Open():
                await self._open(conversation, message)
            case Step() | Attach() | Rewire() | Close():
                hosted = self._sessions.get(message.session)
                if hosted is None:
                    channel.post(no_session(message))
                else:
                    await self._deliver(conversation, hosted, message, payload)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} on a session stream")

    async def _deliver(self, conversation: _Conversation, hosted: Hosted, message: Message, payload: Payload) -> None:
        channel = conversation.channel
        tasks = hosted.receive(channel, message, payload)
        if hosted.channel is channel and self._sessions.get(hosted.id) is hosted:
            conversation.bound[hosted.id] = hosted
        if not tasks:
            return
        hosted.used_s = trio.current_time()
        (task,) = tasks
        if task.kind is WorkKind.STEP and hosted.busy == 1 and len(conversation.bound) == 1:
            # Somebody's next token, and nothing else to read before its answer: no task in between.
            await self._drive(hosted, task)
        else:
            self._nursery.start_soon(self._drive, hosted, task)

    def deliver_pushed(self, channel: Channel, message: Step, payload: Payload) -> None:
        """A step that another server pushes to us."""
        if self._shut:
            channel.abort()
            return
        hosted = self._sessions.get(message.session)
        if hosted is None:
            channel.post(no_session(message))
            return
        for task in hosted.receive(channel, message, payload):
            hosted.used_s = trio.current_time()
            self._nursery.start_soon(self._drive, hosted, task)
        if hosted.channel is not None and hosted.channel.backlog:
            # Not here: a slow opener must not hold up the other sessions of this push stream.
            self._nursery.start_soon(hosted.channel.flush)

    async def _drive(self, hosted: Hosted, task: SpanTask) -> None:
        await self._engine.wait(task)
        if hosted.channel is not None:
            await hosted.channel.flush()

    def _rest(self, conversation: _Conversation) -> None:
        """A stream with sessions waits as long as they live; one without has to say something soon."""
        idle_s = self._config.server.stream_idle_s
        conversation.channel.expect_by(math.inf if conversation.bound else trio.current_time() + idle_s)

    # -- opening ---------------------------------------------------------------------------------------------------

    async def _open(self, conversation: _Conversation, asked: Open) -> None:
        channel = conversation.channel
        known = self._sessions.get(asked.session)
        if known is not None:
            await self._deliver(conversation, known, asked, b"")
            if self._sessions.get(asked.session) is known or channel.peer != known.opener:
                return
        refusal = self._refuse(channel.peer, asked)
        if refusal is None:
            refusal = await self._admit(conversation, asked)
        if refusal is not None:
            channel.post(fault_of(refusal, asked.session, asked.epoch))

    def _refuse(self, peer: PeerId, asked: Open) -> RemoteFault | None:
        server = self._config.server
        if self.draining:
            return SessionGone("this server is leaving")
        if (refusal := self._offer.refuse(asked)) is not None:
            return refusal
        if asked.session in self._opening:
            return Overloaded("this session is being opened on another stream", server.busy_retry_s)
        if self._held[peer] >= server.sessions_per_peer_max:
            return Overloaded(f"{self._held[peer]} sessions of yours are open already", server.busy_retry_s)
        if len(self._sessions) + len(self._opening) >= server.sessions_max:
            return Overloaded("too many sessions are open", server.busy_retry_s)
        if not self._room.cache.could_fit(asked.rows, asked.max_length):
            tokens = self._room.cache.tokens
            reason = f"{asked.rows} rows of {asked.max_length} tokens; the whole cache holds {tokens}"
            return Overloaded(reason, self._config.wire.retry_after_s_max)
        return None

    async def _admit(self, conversation: _Conversation, asked: Open) -> RemoteFault | None:
        """Reserve cache, and begin the session on this stream."""
        channel, peer = conversation.channel, conversation.channel.peer
        server = self._config.server
        self._opening.add(asked.session)
        self._held[peer] += 1
        reservation, waited = None, False
        try:
            timeout_s = min(server.alloc_timeout_s, asked.alloc_timeout_s)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, channel, nursery.cancel_scope)
                reservation = await self._room.reserve(asked.session, asked.rows, asked.max_length, timeout_s)
                nursery.cancel_scope.cancel()
            waited = True
        finally:
            self._opening.discard(asked.session)
            if reservation is None or not waited:
                self._room.release(asked.session)
                self._release(peer)
        if reservation is None:
            return Overloaded("no cache room became free in time", server.busy_retry_s)
        credit = self._credit()
        automaton = ServerSession(
            asked, peer, hidden=self._offer.hidden, limits=self._config.wire,
            answer_bytes_max=credit, linger_s=server.linger_s,
        )  # fmt: skip
        hosted = Hosted(asked, automaton, reservation, self._engine, push=self._push, ended=self._forget)
        hosted.used_s = trio.current_time()
        hosted.credit_bytes = credit
        self._sessions[asked.session] = hosted
        conversation.bound[asked.session] = hosted
        hosted.bind(channel)
        hosted.perform(automaton.opened(self._offer.numerics.tag()), channel)
        if self.draining:
            hosted.end(FaultKind.GONE, "this server is leaving")
        return None

    def _credit(self) -> int:
        """Bytes of answers that one more session may make us keep: a share of what is left for all."""
        server = self._config.server
        granted = sum(hosted.credit_bytes for hosted in self._sessions.values())
        share = (server.answers_total_bytes - granted) // CREDIT_SHARES
        return max(server.answer_bytes_min, min(server.answer_bytes_max, share))

    async def _watch(self, channel: Channel, waiting: trio.CancelScope) -> None:
        """Whoever hangs up while waiting in line gives up the place."""
        try:
            if not await channel.peek():
                waiting.cancel()
        except (PeerLost, RemoteProtocolError):
            waiting.cancel()

    # -- ending ----------------------------------------------------------------------------------------------------

    def _forget(self, hosted: Hosted) -> None:
        if self._sessions.get(hosted.id) is not hosted:
            return
        del self._sessions[hosted.id]
        self._room.release(hosted.id)
        self._release(hosted.opener)
        conversation = self._conversations.get(hosted.channel) if hosted.channel is not None else None
        if conversation is not None:
            conversation.bound.pop(hosted.id, None)
            self._rest(conversation)
        self._changed.set()
        self._changed = trio.Event()

    def _release(self, peer: PeerId) -> None:
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]

    async def care(self) -> None:
        """End sessions whose opener stayed away, or that nobody steps; for ever."""
        while True:
            await trio.sleep(CARE_INTERVAL_S)
            now = trio.current_time()
            for hosted in list(self._sessions.values()):
                if hosted.automaton.expired(now):
                    hosted.end(FaultKind.GONE, "the opener stayed away too long")
                elif not hosted.busy and now - hosted.used_s > self._config.server.idle_timeout_s:
                    await self._end(hosted, "nobody stepped this session for too long")

    async def drain(self, timeout_s: float) -> None:
        """Take no new session, and wait until the others are over; end what is left after ``timeout_s``."""
        self.draining = True
        with trio.move_on_after(timeout_s):
            while self._sessions:
                await self._changed.wait()
        for hosted in list(self._sessions.values()):
            await self._end(hosted, "this server is leaving")

    def shut(self) -> None:
        """Drop every stream and take no more; the last thing before the server's tasks end."""
        self._shut = True
        for channel in list(self._conversations):
            channel.abort()

    async def _end(self, hosted: Hosted, reason: str) -> None:
        channel = hosted.channel
        hosted.end(FaultKind.GONE, reason)
        if channel is not None:
            with trio.move_on_after(CARE_INTERVAL_S):
                await channel.flush()
