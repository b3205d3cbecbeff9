"""The stream to one server of a session's chain, through all that may happen to it.

Invariants: one task may send while another receives; sends take turns. A stream that breaks is replaced once it can be,
and every wait has a deadline. What is wrong leaves as PeerLost, RemoteProtocolError or one of the faults.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from p2pllm.client.link import Link, Links, PeerSilent
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop
from p2pllm.config import Config
from p2pllm.errors import ClientFault, LocalProtocolError, Overloaded, P2PLLMError, PeerLost
from p2pllm.types import PeerId, SessionId, Span
from p2pllm.wire import SESSION
from p2pllm.wire.messages import Open
from p2pllm.wire.session import Answered, Fallback, HopEvent, HopPhase, Over, Ready, Refused, Resumed
from p2pllm.wire.session_client import ClientHop

log = logging.getLogger(__name__)

REATTACHES_MAX = 3
"""Broken streams in a row, without an answer in between, before the server counts as lost."""
STALE_S = 2.0
"""A kept stream that is dead shows it in a round trip; one that is lost later was lost to silence."""


class Unpushed(Exception):
    """The server cannot reach the next hop: its answers are ours to relay."""


class Talk(ABC):
    """Opening, wiring, mending and closing; what goes to and fro in between is the heir's."""

    def __init__(self, links: Links, peers: Peers, config: Config, hop: Hop, open_: Open, hidden: int) -> None:
        self.hop = hop
        self.reattached = 0
        """Broken streams that this hop has survived."""
        self._links = links
        self._peers = peers
        self._config = config
        self._open = open_
        self._wire = ClientHop(open_, hidden=hidden, limits=config.wire)
        self._link: Link | None = None
        self._sending = trio.Lock()
        self._broken_in_a_row = 0
        self._unsettled = False
        self._refusal: PeerLost | None = None

    @property
    def peer_id(self) -> PeerId:
        return self.hop.peer_id

    @property
    def span(self) -> Span:
        return self.hop.span

    @property
    def session(self) -> SessionId:
        """The id under which the server knows the session."""
        return self._open.session

    @property
    def queues(self) -> bool:
        """Whether it stands in line at a server that is full, instead of hearing so at once."""
        return self._open.alloc_timeout_s > 0

    @property
    def numerics(self) -> str:
        """The server's numerics class."""
        return self._wire.numerics

    async def open(self) -> None:
        """Reserve the cache; a kept stream that turns out dead is replaced by a fresh one.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server cannot or will not.
        """
        wait_s = self._config.client.open_timeout_s + self._open.alloc_timeout_s
        for fresh in (False, True):
            connect_s = self._peers.connect_timeout_s(self.peer_id, trio.current_time())
            self._link, reused = await self._links.take(self.peer_id, SESSION, fresh=fresh, connect_s=connect_s)
            began = trio.current_time()
            try:
                await self._link.send(self._wire.open())
                await self._until(Ready, began + wait_s)
            except PeerSilent:
                raise
            except PeerLost:
                self._wire.lost()
                if not reused or trio.current_time() - began > STALE_S:
                    raise
            else:
                return

    async def rewire(
        self,
        epoch: int,
        push_from: PeerId | None,
        push_to: PeerId | None,
        *,
        step: int,
        within_s: float,
    ) -> None:
        """Begin an epoch with other neighbours, over a new stream where the old one is gone.

        What is unanswered is to be supplied, unless ``step`` gives the next step a new number: then nothing may be.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed.
        """
        await self._take_turn()
        try:
            self._refusal = None
            self._unsettled = False
            deadline = trio.current_time() + within_s
            for fresh in (self._current.dead, True):
                try:
                    if fresh:
                        self._wire.lost()
                        with trio.fail_at(deadline):
                            self._link, _ = await self._links.take(self.peer_id, SESSION, fresh=True)
                    if self._wire.unconfirmed:  # perhaps an older one, whose sender was interrupted
                        if fresh:
                            await self._current.send(self._wire.attach())
                        await self._resumed(deadline)
                    if self._wire.epoch < epoch:
                        await self._current.send(self._wire.rewire(epoch, push_from, push_to, step=step))
                        await self._resumed(deadline)
                    return
                except PeerSilent:
                    raise
                except trio.TooSlowError:
                    raise PeerSilent("it cannot be reached in time") from None
                except PeerLost:
                    if fresh:
                        raise
        finally:
            self._sending.release()

    async def _resumed(self, deadline: float) -> None:
        while True:
            try:
                await self._until(Resumed, deadline)
                return
            except (Overloaded, ClientFault, Unpushed):
                if self._wire.phase is HopPhase.OVER:
                    raise
                continue  # what was refused is sent again

    @property
    def over(self) -> bool:
        """Whether the server ended the session."""
        return self._wire.phase is HopPhase.OVER

    def abandon(self) -> None:
        """Whoever used the hop may have been interrupted anywhere."""
        self._unsettled = True

    @property
    def unsettled(self) -> bool:
        """Whether ``abandon`` was called, and nothing since."""
        return self._unsettled

    async def revive(self) -> None:
        """Where the stream or the connection is lost, open another one.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server is gone, or the session.
        """
        if self._current.dead or not self._links.connected(self.peer_id):
            await self._reattach(PeerLost("its connection was lost"))

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

    async def _until(self, wanted: type[HopEvent], deadline: float, more_s: Callable[[], float] = lambda: 0.0) -> None:
        """Take messages until an event of the wanted kind; answers are put aside for ``receive`` in any case."""
        while True:
            message, payload = await self._current.receive(max(0.0, deadline - trio.current_time()), more_s)
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
                elif isinstance(event, Fallback):
                    raise Unpushed
                done = done or isinstance(event, wanted)
            if done:
                return

    @abstractmethod
    def _answered(self, event: Answered) -> None:
        """A step was answered, perhaps while something else was waited for."""

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
