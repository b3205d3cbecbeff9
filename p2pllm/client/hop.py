"""One server's half of a session: the automaton of ``wire.session_client`` over one link.

Invariants: steps go out in order, and ``receive`` returns their answers in that order. One task may send while another
receives. A stream that breaks is replaced once it can be: the session attaches again and repeats what is unanswered; a
server that is silent beyond the deadline is given up. What is wrong leaves as PeerLost, RemoteProtocolError or one of
the faults; the hop is of no use afterwards and only to be closed.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass

import trio

from p2pllm.client.edge import Packed
from p2pllm.client.link import Link, Links, PeerSilent
from p2pllm.client.patience import work
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop
from p2pllm.config import Config
from p2pllm.errors import LocalProtocolError, Overloaded, P2PLLMError, PeerLost
from p2pllm.types import PeerId, Span
from p2pllm.wire import SESSION
from p2pllm.wire.messages import Open
from p2pllm.wire.session import Answered, HopEvent, HopPhase, Over, Ready, Refused, Resumed
from p2pllm.wire.session_client import ClientHop

log = logging.getLogger(__name__)

REATTACHES_MAX = 3
"""Broken streams in a row, without an answer in between, before the server counts as lost."""
MEASURED_TOKENS_MAX = 8
"""Steps of at most so many tokens tell what a hop costs; longer ones tell of bandwidth and of others' prefills."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """When a step went out, how much it asks for, and whether its time says what the hop costs."""

    at: float
    work: float
    telling: bool


class HopSession:
    """A session's cache at one server. Made, then ``open``ed, used, and ``aclose``d."""

    def __init__(self, links: Links, peers: Peers, config: Config, hop: Hop, open_: Open, hidden: int) -> None:
        self.hop = hop
        self.reattached = 0
        """Broken streams that this hop has survived."""
        self._links = links
        self._peers = peers
        self._config = config
        self._wire = ClientHop(open_, hidden=hidden, limits=config.wire)
        self._link: Link | None = None
        self._sending = trio.Lock()
        self._sent: deque[tuple[int, _Sent]] = deque()  # ids whose answers were not fetched yet, in order
        self._answers: dict[int, Packed] = {}
        self._broken_in_a_row = 0
        self._unsettled = False
        self._answered_at = float("-inf")

    @property
    def peer_id(self) -> PeerId:
        return self.hop.peer_id

    @property
    def span(self) -> Span:
        return self.hop.span

    @property
    def numerics(self) -> str:
        """The server's numerics class."""
        return self._wire.numerics

    async def open(self) -> None:
        """Reserve the cache; a kept stream that turns out dead is replaced by a fresh one.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server cannot or will not.
        """
        for fresh in (False, True):
            self._link, reused = await self._links.take(self.peer_id, SESSION, fresh=fresh)
            try:
                await self._link.send(self._wire.open())
                await self._until(Ready, trio.current_time() + self._config.client.open_timeout_s)
            except PeerSilent:
                raise
            except PeerLost:
                self._wire.lost()
                if not reused:
                    raise
            else:
                return

    async def send(
        self,
        positions: tuple[int, ...],
        counts: tuple[int, ...],
        packed: Packed,
        *,
        tail: int = -1,
        sources: tuple[int, ...] = (),
    ) -> None:
        """Send one step; what goes wrong meanwhile is ``receive``'s business: it repeats the step, or says why not."""
        await self._take_turn()
        try:
            if self._wire.phase is not HopPhase.READY:
                return
            step = self._wire.step(positions, counts, packed.tensor, packed.payload, sources=sources, tail=tail)
            telling = not self._sent and packed.tokens <= MEASURED_TOKENS_MAX
            size = work(packed.tokens, max(positions))
            self._sent.append((step.step, _Sent(trio.current_time(), size, telling)))
            await self._current.send(step, packed.payload)
        except PeerLost as exc:
            log.debug("step to %s was not sent: %s", self.peer_id, exc)
        finally:
            self._sending.release()

    async def receive(self) -> Packed:
        """The answer to the oldest step whose answer was not fetched yet.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed; say so and find another one.
        """
        last = trio.current_time() + self._config.client.step_timeout_s
        while True:
            if self._sent and (packed := self._answers.pop(self._sent[0][0], None)) is not None:
                self._sent.popleft()
                return packed
            size = self._sent[0][1].work if self._sent else math.inf
            await self._take(last, trio.current_time() + self._peers.step_timeout_s(self.peer_id, size))

    def abandon(self) -> None:
        """Nobody waits any more for what is under way, and whoever did may have been interrupted anywhere."""
        self._sent.clear()
        self._answers.clear()
        self._unsettled = True

    async def settle(self) -> None:
        """After ``abandon``: let what was under way come to its end, so that the rows are where they were sent to.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: as ``receive``.
        """
        if not self._unsettled:
            return
        last = trio.current_time() + self._config.client.step_timeout_s
        if self._wire.phase is not HopPhase.READY or self._current.dead:
            await self._reattach(PeerLost("its stream was lost"))
        while self._wire.unanswered:
            await self._take(last)
        self._answers.clear()
        self._unsettled = False

    def drop(self) -> None:
        """Give the server up at once: it forgets the session by itself."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    async def aclose(self) -> None:
        """Free the cache at the server and keep the stream, within a bound; never raises what a server can cause.

        Idempotent.
        """
        if self._link is None:
            await trio.lowlevel.checkpoint()
            return
        bound = trio.current_time() + self._config.net.close_timeout_s
        with trio.CancelScope(deadline=bound, shield=True):
            try:
                await self._close(self._link, bound)
            except P2PLLMError as exc:
                log.debug("session at %s was not closed cleanly: %s", self.peer_id, exc)
        link, self._link = self._link, None
        if self._wire.phase is HopPhase.OVER:
            self._links.give(SESSION, link)
        else:
            link.abort()

    async def _close(self, link: Link, deadline: float) -> None:
        if self._wire.phase in (HopPhase.NEW, HopPhase.OVER):
            return
        if link.dead:
            # The stream broke, perhaps because we were cancelled: the cache would stay until the session expires there.
            if self._wire.phase is HopPhase.OPENING or not self._links.connected(self.peer_id):
                return
            self._wire.lost()
            self._link, _ = await self._links.take(self.peer_id, SESSION)
        await self._current.send(self._wire.close())
        await self._until(Over, deadline)

    @property
    def _current(self) -> Link:
        if self._link is None:
            raise LocalProtocolError("the session was never opened")
        return self._link

    async def _take_turn(self) -> None:
        try:
            self._sending.acquire_nowait()  # a step's time is spent in turns of the scheduler: save one
        except trio.WouldBlock:
            await self._sending.acquire()

    async def _take(self, last: float, deadline: float | None = None) -> None:
        """Wait for an answer until ``deadline``; what can be mended is, until ``last``."""
        try:
            await self._until(Answered, last if deadline is None else deadline)
        except PeerSilent:
            raise
        except PeerLost as exc:
            await self._reattach(exc)
        except Overloaded as busy:
            await self._repeat_later(busy, last)

    async def _until(self, wanted: type[HopEvent], deadline: float) -> None:
        """Take messages until an event of the wanted kind; answers are put aside for ``receive`` in any case."""
        while True:
            message, payload = await self._current.receive(max(0.0, deadline - trio.current_time()))
            try:
                events = self._wire.receive(message, payload)
            except P2PLLMError:
                self._current.abort()
                raise
            done = False
            for event in events:
                if isinstance(event, Answered):
                    self._answered(event)
                elif isinstance(event, Refused):
                    raise event.error
                done = done or isinstance(event, wanted)
            if done:
                return

    def _answered(self, event: Answered) -> None:
        answer = event.answer
        self._broken_in_a_row = 0
        self._answers[answer.step] = Packed(answer.tensor, event.payload)
        sent = next((s for step, s in self._sent if step == answer.step), None)
        if sent is None:
            return
        now = trio.current_time()
        wall_s = now - sent.at
        # Of steps under way together each began when the one before it was done.
        self._peers.took(self.peer_id, sent.work, now - max(sent.at, self._answered_at))
        self._answered_at = now
        if sent.telling:
            spent_s, blocks = answer.compute_s, len(self.span)
            self._peers.answered(self.peer_id, wall_s=wall_s, compute_s=spent_s, blocks=blocks, now=now)

    async def _reattach(self, cause: PeerLost) -> None:
        """Back to the same session over a new stream."""
        await self._take_turn()
        try:
            self._wire.lost()
            self._broken_in_a_row += 1
            if self._wire.phase is not HopPhase.DETACHED or self._broken_in_a_row > REATTACHES_MAX:
                raise cause
            with trio.move_on_after(self._config.client.reattach_timeout_s) as patience:
                deadline = patience.deadline
                try:
                    self._link, _ = await self._links.take(self.peer_id, SESSION, fresh=True)
                    await self._link.send(self._wire.attach())
                    await self._until(Resumed, deadline)
                    for step, payload in self._wire.resend():
                        await self._current.send(step, payload)
                except PeerLost as exc:
                    raise cause from exc
            if patience.cancelled_caught:
                raise cause
        finally:
            self._sending.release()
        self.reattached += 1
        log.warning("the stream to server %s broke (%s); the session went on over a new one", self.peer_id, cause)

    async def _repeat_later(self, busy: Overloaded, deadline: float) -> None:
        """The server had no room for a step: repeat everything unanswered after a while."""
        if trio.current_time() + busy.retry_after_s >= deadline or self._wire.phase is not HopPhase.READY:
            raise busy
        await trio.sleep(max(busy.retry_after_s, 0.01))
        await self._take_turn()
        try:
            for step, payload in self._wire.resend():
                await self._current.send(step, payload)
        except PeerLost as exc:
            log.debug("steps to %s were not repeated: %s", self.peer_id, exc)
        finally:
            self._sending.release()
