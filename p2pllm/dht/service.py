"""The directory: who serves what, kept fresh, for servers, clients and bootstrap nodes alike.

Invariants: the one place of this package that runs tasks. It works with whatever still answers: members it knows, the
DHT, the bootstrap addresses, in this order; while nobody answers it keeps trying, ever less often, and says so through
``lonely``. All peers are equal here: nothing is taken on anybody's word but that a record exists.

    directory = Directory(ports, config, [model])
    await nursery.start(directory.run)
    directory.announce(announcement)          # a server
    directory.view.servers(model)             # anybody
    await directory.withdraw()
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from p2pllm.config import Config
from p2pllm.dht.exchange import PROTOCOL, Exchange
from p2pllm.dht.pace import Pace, pace
from p2pllm.dht.partners import Partners
from p2pllm.dht.publish import Publisher
from p2pllm.dht.record import Announcement, model_key, record_key, verify
from p2pllm.dht.view import Outcome, SwarmView
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

log = logging.getLogger(__name__)

ANNOUNCE_PAUSE_S = 0.5
"""Changes that follow each other closely are published together."""
GOSSIP_FANOUT = 3
WITHDRAW_FANOUT = 16
WITHDRAW_TIMEOUT_S = 4.0
GOSSIP_PAUSE_S = 0.5
"""News of so long travel together."""
ASKED_AT_ONCE = 4
OPEN_PEERS_PER_MODEL_MAX = 512
"""Of a bootstrap node, which keeps records of every model."""
BACKOFF_MAX = 4
BACK_PAUSE_MAX_S = 60


class Directory:
    """See the module's docstring. ``models`` None: of every model (bootstrap nodes).

    Args:
        members: who was there last time, with addresses; see ``members``.
        state_path: file (in ``ports.storage``) of the last sequence number; None: the clock alone counts.
    """

    def __init__(
        self,
        ports: Ports,
        config: Config,
        models: Collection[ModelId] | None = None,
        *,
        members: Sequence[tuple[PeerId, Sequence[str]]] = (),
        state_path: str | None = None,
    ) -> None:
        records = config.records
        if models is None:
            room = min(records.peers_per_model_max, OPEN_PEERS_PER_MODEL_MAX)
            records = replace(records, peers_per_model_max=room)
        log_id = int.from_bytes(ports.token_bytes(8), "big") | 1
        self.view = SwarmView(records, models, log_id=log_id, me=ports.network.me)
        self.lonely = True
        """Nobody answered the last time we asked around, or we have not yet."""
        self._ports = ports
        self._config = records
        self._exchange = Exchange(ports, config.wire, self.view, self._on_news)
        self._publisher = Publisher(ports, records, state_path)
        self._partners = Partners(ports.network.me, ports.rng, members)
        self._gossip: OrderedDict[tuple[ModelId, PeerId], PeerId] = OrderedDict()
        self._changed = trio.Event()
        self._announce_now = trio.Event()
        self._ask_now = trio.Event()
        self._gossip_now = trio.Event()
        self._asked = trio.Event()
        self._joined = trio.Event()  # the first peer has connected, or the bootstrap is over
        self._found_at = -math.inf
        self._meet_at = -math.inf
        self._announced_at = -math.inf

    # -- for everybody

    @property
    def pace(self) -> Pace:
        """How often we do what we do again and again, in a swarm of this size."""
        return pace(self._config, self.view.count())

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the view fresh and our own records known, until cancelled."""
        network = self._ports.network
        await self._publisher.load()
        network.serve(PROTOCOL, self._exchange.handle)
        for peer, addrs in self._partners.remembered():
            network.learn(peer, addrs)
        async with network.peer_events() as events, trio.open_nursery() as nursery:
            nursery.start_soon(self._join)
            nursery.start_soon(self._ask_loop)
            nursery.start_soon(self._announce_loop)
            nursery.start_soon(self._gossip_loop)
            nursery.start_soon(self._expire_loop)
            task_status.started()
            async for event in events:
                if event.connected:
                    self._partners.met(event.peer)
                    self._joined.set()
                    if self.lonely:
                        self._ask_now.set()

    async def wait_changed(self) -> None:
        """Wait until the view is another one than at the time of the call."""
        version = self.view.version
        while self.view.version == version:
            await self._changed.wait()

    async def refresh(self) -> None:
        """Ask around now; returns when somebody answered, or nobody did."""
        asked = self._asked
        self._ask_now.set()
        await asked.wait()

    def mark_reached(self, peer: PeerId) -> None:
        """A session or a ping got through to ``peer``: its record deserves to be kept and spread."""
        self.view.mark_reached(peer)

    def members(self) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Members worth remembering for the next start, the best first."""
        servers = [ann for ann in self.view.peers() if ann.addrs and ann.peer != self._ports.network.me]
        found = {ann.peer: ann.addrs for ann in servers if self.view.reached(ann.peer)}
        for peer in self._partners.answering():
            path = self._ports.network.path(peer)
            if peer not in found and path is not None and path.direct:
                address = path.address if "/p2p/" in path.address else f"{path.address}/p2p/{peer}"
                found[peer] = (address,)
        for ann in servers:
            found.setdefault(ann.peer, ann.addrs)
        return list(found.items())[:64]

    # -- for servers

    def announce(self, ann: Announcement) -> None:
        """Publish this now, and again and again until the next call; peer, addresses and times are filled in.

        When only the load is another one than before, and the last record is young, it goes out with the next one.

        Raises:
            ValueError: a field breaks a bound.
        """
        stale = trio.current_time() - self._announced_at > self.pace.announce_s / 2
        if self._publisher.want(ann) or stale:
            self._announce_now.set()

    def record(self, model: ModelId) -> bytes:
        """Our current signed record, empty when there is none."""
        return self._publisher.records.get(model, b"")

    async def withdraw(self) -> None:
        """Tell the swarm that we leave, as far as it can be told within a few seconds."""
        if not self._publisher.wanted:
            return
        self._publisher.leave()
        await self._renew()
        with trio.move_on_after(WITHDRAW_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._publisher.store)
                for peer in self._choose(WITHDRAW_FANOUT):
                    nursery.start_soon(self._offer, peer, self._mine())

    # -- tasks

    async def _announce_loop(self) -> None:
        pause, retry_s = 0.0, self._config.rebootstrap_interval_s
        while True:
            with trio.move_on_after(pause):
                await self._announce_now.wait()
            self._announce_now = trio.Event()
            if not self._publisher.wanted:
                pause = math.inf
                continue
            news = await self._renew()
            self._announced_at = trio.current_time()
            await self._joined.wait()
            async with trio.open_nursery() as nursery:
                for peer in self._choose(self.pace.fanout) if news else ():
                    nursery.start_soon(self._offer, peer, self._mine())
                stored = await self._publisher.store()
            # A steady beat, so that one who is late is known to be late.
            pause = self._jitter(self.pace.announce_s, 0.1) if stored else self._jitter(retry_s)
            await trio.sleep(ANNOUNCE_PAUSE_S)

    async def _renew(self) -> bool:
        """Sign our records anew; whether they say more than the last ones."""
        self._publisher.correct(self.view.time.offset_s())
        self._publisher.ttl_s = self.pace.ttl_s
        news = await self._publisher.renew()
        for record in self._publisher.records.values():
            self._exchange.take(record, self._ports.network.me)
        self._tell_changed()
        return news

    async def _join(self) -> None:
        await self._ports.network.bootstrap()
        self._joined.set()
        self._ask_now.set()

    async def _ask_loop(self) -> None:
        failures = 0
        if not self._partners.remembered():
            await self._joined.wait()
        while True:
            self._ask_now = trio.Event()
            answered = await self._ask_around()
            if (answered and self._publisher.correct(self.view.time.offset_s())) or self._publisher.moved():
                self._announce_now.set()
            self.lonely = not answered
            self._asked.set()
            self._asked = trio.Event()
            if answered:
                failures = 0
                pause = self.pace.exchange_s
            else:
                pause = await self._rejoin(failures)
                failures += 1
            with trio.move_on_after(self._jitter(pause)):
                await self._ask_now.wait()

    async def _rejoin(self, failures: int) -> float:
        """Nobody answers: perhaps we are cut off, perhaps all that we know have left. How long to wait then."""
        if await self._ports.network.bootstrap():
            # Back, and the swarm may have forgotten us, as we it.
            self._publisher.forget_provided()
            self._partners.forgive()
            self._announce_now.set()
            return float(min(1 << min(failures, 16), BACK_PAUSE_MAX_S))
        return self._config.rebootstrap_interval_s * min(1 << min(failures, 16), BACKOFF_MAX)

    async def _ask_around(self) -> bool:
        """One round: a partner, a stranger, and the DHT when it is time; whether anybody answered."""
        answered = False
        for peer in self._partners.next_round(self.view, trio.current_time()):
            if await self._ask(peer):
                answered = True
                break
        now = trio.current_time()
        stranger = self._partners.stranger(self.view, now) if now >= self._meet_at else None
        if stranger is not None:
            self._meet_at = now + self.pace.meet_s
            answered = await self._ask(stranger, ()) or answered
        if not answered or trio.current_time() - self._found_at >= self.pace.find_s:
            answered = await self._find() or answered
        return answered

    async def _find(self) -> bool:
        """Ask the DHT who serves our models, then ask those."""
        results: list[bool] = []
        self._found_at = trio.current_time()

        async def one(model: ModelId, peer: PeerId) -> None:
            answered = await self._ask(peer)
            results.append(answered)
            if not answered:
                await self._fetch(model, peer)

        for model in self.view.models():
            try:
                found = await self._ports.network.find(model_key(model))
            except PeerLost as exc:
                log.debug("the DHT does not answer: %s", exc)
                return False
            fresh = [peer for peer in found if self.view.get(model, peer) is None] or list(found)
            async with trio.open_nursery() as nursery:
                for peer in fresh[:ASKED_AT_ONCE]:
                    nursery.start_soon(one, model, peer)
        return any(results)

    async def _fetch(self, model: ModelId, peer: PeerId) -> None:
        """A provider that does not answer us: the DHT may still have its record."""
        try:
            record = await self._ports.network.get(record_key(model, peer))
            if record is None:
                return
            # The DHT keeps records of the dead for a day and does not say how old they are: here the server's word and
            # the swarm's time must do.
            swarm_time = self._ports.wall_time() + self.view.time.offset_s()
            age_s = max(0.0, swarm_time - verify(record).issued_ms / 1000)
            if self._exchange.take(record, peer, age_s) is Outcome.NEWS:
                self._tell_changed()
        except (PeerLost, RemoteProtocolError) as exc:
            log.debug("no record of %s in the DHT: %s", peer, exc)

    async def _ask(self, peer: PeerId, models: Collection[ModelId] | None = None) -> bool:
        """Ask for what is new (of all models), or only tell our own; whether it answered."""
        try:
            await self._exchange.ask(peer, self.view.models() if models is None else models, self._mine())
        except PeerLost as exc:
            log.debug("%s was not asked: %s", peer, exc)
            self._partners.failed(peer, trio.current_time())
            return False
        except RemoteProtocolError as exc:
            log.warning("%s handed on what no member may: %s", peer, exc)
            self._partners.lied(peer, trio.current_time())
            return False
        self._partners.answered(peer)
        self.lonely = False
        return True

    async def _offer(self, peer: PeerId, entries: tuple[bytes, ...]) -> None:
        try:
            await self._exchange.offer(peer, entries)
        except PeerLost as exc:
            log.debug("%s was not told: %s", peer, exc)
            self._partners.failed(peer, trio.current_time())

    def _on_news(self, news: Sequence[Announcement], source: PeerId) -> None:
        """Records came in: wake readers, and pass on those that say something new, if we ever met their servers."""
        self._tell_changed()
        for ann in news:
            if ann.peer == self._ports.network.me:
                if self._publisher.seen(ann):
                    self._announce_now.set()
            elif self.view.reached(ann.peer):
                self._gossip[ann.model, ann.peer] = source
                self._gossip_now.set()

    async def _gossip_loop(self) -> None:
        while True:
            await self._gossip_now.wait()
            await trio.sleep(GOSSIP_PAUSE_S)
            self._gossip_now = trio.Event()
            news, self._gossip = self._gossip, OrderedDict()
            now = trio.current_time()
            async with trio.open_nursery() as nursery:
                for peer in self._choose(GOSSIP_FANOUT):
                    entries = tuple(
                        entry
                        for (model, subject), source in news.items()
                        if peer not in (subject, source) and (entry := self.view.entry(model, subject, now)) is not None
                    )
                    if entries:
                        nursery.start_soon(self._offer, peer, entries)

    async def _expire_loop(self) -> None:
        while True:
            # A record that comes in meanwhile may run out sooner, but hardly within a fraction of a ttl.
            soon = trio.current_time() + max(0.5, self._config.ttl_s / 30)
            await trio.sleep_until(min(max(soon, self.view.next_expiry), soon + self._config.ttl_s / 3))
            version = self.view.version
            self.view.expire(trio.current_time())
            if self.view.version != version:
                self._tell_changed()

    # -- small things

    def _mine(self) -> tuple[bytes, ...]:
        """Our own records, as they are handed on."""
        me, now = self._ports.network.me, trio.current_time()
        entries = (self.view.entry(model, me, now) for model in self._publisher.records)
        return tuple(entry for entry in entries if entry is not None)

    def _choose(self, count: int) -> list[PeerId]:
        return self._partners.choose(self.view, count, trio.current_time())

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _jitter(self, seconds: float, share: float = 0.2) -> float:
        return seconds * self._ports.rng.uniform(1 - share, 1 + share)
