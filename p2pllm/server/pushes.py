"""Pushes: outputs go straight to the next hop of a chain, without a detour through the client.

Invariants: one stream and one task per next hop, for all sessions that go there; what is posted for a session arrives
in order or not at all. A next hop that cannot be reached, or that knows nothing of a session, costs no step: the
session's opener is told, relays from then on, and can ask for every answer again.
"""

from __future__ import annotations

import logging
from collections import deque

import trio

from p2pllm.config import Config
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Network, Stream
from p2pllm.server.channel import Channel
from p2pllm.server.hosted import Hosted
from p2pllm.server.sessions import Sessions
from p2pllm.types import PeerId
from p2pllm.wire import PUSH
from p2pllm.wire.messages import Fault, Step
from p2pllm.wire.session import Send

log = logging.getLogger(__name__)


class _Link:
    """What waits for one next hop, and whose steps went there."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Hosted, Send]] = deque()
        self.users: dict[Hosted, None] = {}
        self.more = trio.Event()


class Pushes:
    """Sends and receives pushed steps."""

    def __init__(self, network: Network, config: Config, nursery: trio.Nursery) -> None:
        self._network = network
        self._config = config
        self._nursery = nursery
        self._links: dict[PeerId, _Link] = {}
        self._over = False

    def shut(self) -> None:
        """The server ends: nothing is pushed any more, its connections tell the openers."""
        self._over = True

    # -- out -------------------------------------------------------------------------------------------------------

    def post(self, hosted: Hosted, push: Send) -> None:
        """Let a step go to the next hop; never blocks."""
        if self._over:
            return
        link = self._links.get(push.to)
        if link is None:
            link = self._links[push.to] = _Link()
            self._nursery.start_soon(self._push, push.to, link)
        link.queue.append((hosted, push))
        link.users[hosted] = None
        link.more.set()

    async def _push(self, peer: PeerId, link: _Link) -> None:
        """One next hop's task: lives for as long as there is something to push now and then."""
        channel: Channel | None = None
        try:
            timeout_s = self._config.net.dial_timeout_s + self._config.net.stream_timeout_s
            channel = Channel(await self._network.open_stream(peer, PUSH, timeout_s=timeout_s), self._config.wire)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, channel, link, nursery.cancel_scope)
                await self._send_queue(peer, link, channel)
                nursery.cancel_scope.cancel()
        except PeerLost as exc:
            log.info("cannot push to %s: %s", peer, exc)
        finally:
            self._leave(peer, link)
            if channel is not None:
                channel.abort()
        for hosted in list(link.users):
            self._give_up(hosted, peer)

    async def _send_queue(self, peer: PeerId, link: _Link, channel: Channel) -> None:
        """Send until the stream is lost, or nothing came for long; in the latter case nobody uses the link any more."""
        while not channel.dead:
            while link.queue and not channel.dead:
                _, push = link.queue.popleft()
                await channel.send(push.message, push.payload, push.priority)
            for hosted in [h for h in link.users if h.automaton.push_to != peer or h.over]:
                del link.users[hosted]
            link.more = trio.Event()
            with trio.move_on_after(self._config.server.stream_idle_s) as idle:
                await link.more.wait()
            if idle.cancelled_caught and not link.queue:
                self._leave(peer, link)
                link.users.clear()
                return

    def _leave(self, peer: PeerId, link: _Link) -> None:
        if self._links.get(peer) is link:
            del self._links[peer]

    async def _listen(self, channel: Channel, link: _Link, sending: trio.CancelScope) -> None:
        """Back come only faults: the next hop does not take this session's steps from us."""
        try:
            while (got := await channel.receive()) is not None:
                message, _ = got
                if not isinstance(message, Fault):
                    raise RemoteProtocolError(f"{type(message).__name__} in answer to a push")
                for hosted in [h for h in link.users if h.id == message.session]:
                    if hosted.automaton.epoch == message.epoch:
                        log.info("%s does not take our push: %s", channel.peer, message.reason)
                        self._give_up(hosted, channel.peer)
        except (PeerLost, RemoteProtocolError) as exc:
            log.info("push stream to %s ended: %s", channel.peer, exc)
        sending.cancel()

    def _give_up(self, hosted: Hosted, peer: PeerId) -> None:
        """From here on the opener relays, if the session still pushes there at all."""
        if hosted.automaton.push_to == peer and not self._over:
            hosted.perform(hosted.automaton.unpushed(), None)
            if hosted.channel is not None:
                self._nursery.start_soon(hosted.channel.flush)

    # -- in --------------------------------------------------------------------------------------------------------

    async def handle(self, stream: Stream, sessions: Sessions) -> None:
        """Take another server's pushes until its stream ends."""
        channel = Channel(stream, self._config.wire)
        try:
            while True:
                channel.expect_by(trio.current_time() + 2 * self._config.server.stream_idle_s)
                got = await channel.receive()
                if got is None:
                    break
                message, payload = got
                if not isinstance(message, Step):
                    raise RemoteProtocolError(f"{type(message).__name__} on a push stream")
                sessions.deliver_pushed(channel, message, payload)
                await channel.flush()
            await channel.aclose()
        except (PeerLost, RemoteProtocolError) as exc:
            log.info("push stream of %s ended: %s", channel.peer, exc)
        finally:
            channel.abort()
