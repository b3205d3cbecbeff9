"""The swarm view: the newest valid record of every server, until it runs out on this reader's own clock.

Invariants: pure: ``now`` (monotonic) and ``wall`` are arguments. At most one entry per server and model. Bounded per
model and in models; servers that were reached are never pushed out by servers that were not, and a source that floods
us pushes out its own. A record that has run out cannot come back.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from p2pllm.config import RecordConfig
from p2pllm.dht.log import ChangeLog, Page
from p2pllm.dht.news import speeds_differ
from p2pllm.dht.record import Announcement, Verified, check, pack_entry
from p2pllm.dht.roster import Roster
from p2pllm.dht.swarmtime import SwarmTime
from p2pllm.types import ModelId, PeerId, ServerState
from p2pllm.wire.messages import DIGEST_BYTES

MODELS_MAX = 32
"""Models that a member without models of its own (a bootstrap node) keeps records of."""
GONE_MAX = 8192
REACHED_MAX = 16384


class Outcome(Enum):
    """What became of a record that was offered to the view."""

    NEWS = "news"
    RENEWED = "renewed"
    """A newer record that says nothing new but how busy its server is."""
    KNOWN = "known"
    """We have this one or a newer one."""
    STALE = "stale"
    """Run out, or issued at another time than now."""
    FOREIGN = "foreign"
    """Of a model that this member does not follow."""
    FULL = "full"
    """Never reached, and no room."""


@dataclass(slots=True)
class _Entry:
    checked: Verified
    born: float
    """When the record left its server, on our monotonic clock, as far as we were told."""
    expires: float
    source: PeerId | None
    arrival: int


class SwarmView:
    """Who serves what. ``models`` None: everything that comes, up to a bound."""

    def __init__(
        self,
        config: RecordConfig,
        models: Collection[ModelId] | None = None,
        *,
        log_id: int = 1,
        me: PeerId | None = None,
    ) -> None:
        self.version = 0
        """Goes up with every change."""
        self.next_expiry = math.inf
        """Nothing runs out before."""
        self.servers_met = Roster()
        """Servers that have not left and that were reached."""
        self.strangers = Roster()
        """The others that have not left."""
        self.time = SwarmTime()
        self._config = config
        self._me = me
        self._models = None if models is None else tuple(models)
        self._log = ChangeLog(log_id)
        self._entries: dict[ModelId, dict[PeerId, _Entry]] = {}
        self._gone: OrderedDict[tuple[ModelId, PeerId], tuple[int, float]] = OrderedDict()
        self._reached: OrderedDict[PeerId, None] = OrderedDict()
        self._arrivals = 0
        if me is not None:
            self._reached[me] = None

    # -- reading

    def models(self) -> tuple[ModelId, ...]:
        """Models that this member follows, or has records of."""
        return self._models if self._models is not None else tuple(self._entries)

    def announcements(self, model: ModelId) -> list[Announcement]:
        """Everything known of a model's servers, also of those that have left."""
        return [entry.checked.ann for entry in self._entries.get(model, {}).values()]

    def servers(self, model: ModelId) -> list[Announcement]:
        """Servers that have not left: joining, online, draining."""
        return [ann for ann in self.announcements(model) if ann.state is not ServerState.OFFLINE]

    def get(self, model: ModelId, peer: PeerId) -> Announcement | None:
        """The newest announcement of one server."""
        entry = self._entries.get(model, {}).get(peer)
        return entry.checked.ann if entry is not None else None

    def coverage(self, model: ModelId, num_blocks: int) -> list[int]:
        """Per block, how many servers are online with it."""
        count = [0] * num_blocks
        for ann in self.servers(model):
            if ann.state is ServerState.ONLINE and ann.num_blocks == num_blocks:
                for block in ann.span:
                    count[block] += 1
        return count

    def gaps(self, model: ModelId, num_blocks: int) -> tuple[int, ...]:
        """Blocks that nobody serves."""
        return tuple(block for block, servers in enumerate(self.coverage(model, num_blocks)) if not servers)

    def reached(self, peer: PeerId) -> bool:
        """Whether we ever met ``peer`` itself."""
        return peer in self._reached

    def count(self) -> int:
        """Servers that have not left, whatever their models."""
        return len(self.servers_met) + len(self.strangers)

    def serves(self, peer: PeerId) -> bool:
        """Whether ``peer`` is a server that has not left."""
        return peer in self.servers_met or peer in self.strangers

    def peers(self) -> list[Announcement]:
        """One announcement of every server that has not left, whatever its model."""
        found: dict[PeerId, Announcement] = {}
        for entries in self._entries.values():
            for peer, entry in entries.items():
                if entry.checked.ann.state is not ServerState.OFFLINE:
                    found.setdefault(peer, entry.checked.ann)
        return list(found.values())

    def entry(self, model: ModelId, peer: PeerId, now: float) -> bytes | None:
        """A live record as it is handed on, with its age."""
        entry = self._entries.get(model, {}).get(peer)
        if entry is None or entry.expires <= now:
            return None
        return pack_entry(entry.checked.record, now - entry.born)

    def page(
        self, model: ModelId, log_id: int, cursor: int, limit: int, now: float, have: bytes = b""
    ) -> tuple[Page, tuple[bytes, ...]]:
        """What changed since a cursor of our log, as it is handed on, but for what the asker has, by its digest."""
        page = self._log.page(model, log_id, cursor, limit)
        entries = self._entries.get(model, {})
        known = {have[start : start + DIGEST_BYTES] for start in range(0, len(have), DIGEST_BYTES)}
        found = []
        for peer in page.peers:
            entry = entries[peer]
            if entry.checked.digest not in known and entry.expires > now:
                found.append(pack_entry(entry.checked.record, now - entry.born))
        return page, tuple(found)

    def digests(self, model: ModelId, cursor: int, limit: int) -> bytes:
        """Of the records that changed after a cursor of our log, the latest first, in a row."""
        entries = self._entries.get(model, {})
        return b"".join(entries[peer].checked.digest for peer in self._log.since(model, cursor)[:limit])

    @property
    def log_id(self) -> int:
        return self._log.id

    @property
    def cursor(self) -> int:
        """Of our log, now."""
        return self._log.cursor

    # -- changing

    def merge(
        self, record: bytes, now: float, wall: float, *, age_s: float = 0.0, source: PeerId | None = None
    ) -> Outcome:
        """Take in a record that ``source`` says is ``age_s`` old.

        Raises:
            RemoteProtocolError: forged or malformed; whoever handed it on did not check it.
        """
        return self.take(check(record), now, wall, age_s, source)

    def take(self, checked: Verified, now: float, wall: float, age_s: float, source: PeerId | None) -> Outcome:
        """As ``merge``, for a record that was checked."""
        ann, held = checked.ann, self._entries.get(checked.ann.model, {})
        peer, old = ann.peer, held.get(checked.ann.peer)
        if old is not None:
            before = old.checked
            if before is checked or (ann.sequence, checked.record) <= (before.ann.sequence, before.record):
                return Outcome.KNOWN
        if not self._follows(ann.model):
            return Outcome.FOREIGN
        issued = ann.issued_ms / 1000 + age_s
        if peer != self._me:
            self.time.note(peer, issued - wall, peer in self._reached)
        if self._gone and self._gone.get((ann.model, peer), (0, 0.0))[0] >= ann.sequence:
            return Outcome.KNOWN
        expires = now - age_s + ann.ttl_ms / 1000
        if expires <= now or abs(issued - wall - self.time.offset_s()) > self._config.clock_tolerance_s:
            return Outcome.STALE
        if old is None:
            if not self._make_room(ann.model, peer):
                return Outcome.FULL
            self._arrivals += 1
            self._entries.setdefault(ann.model, {})[peer] = _Entry(
                checked, now - age_s, expires, source, self._arrivals
            )
            self._gone.pop((ann.model, peer), None)
            news = True
        else:
            news = before.lasting != checked.lasting or speeds_differ(before.ann.throughput, ann.throughput)
            old.checked, old.born, old.expires = checked, now - age_s, expires
        self._log.touch(ann.model, peer)
        self.next_expiry = min(self.next_expiry, expires)
        self.version += 1
        if news:
            self._enroll(peer)
        return Outcome.NEWS if news else Outcome.RENEWED

    def expire(self, now: float) -> None:
        """Drop what has run out."""
        if now < self.next_expiry:
            return
        for model in list(self._entries):
            for peer, entry in list(self._entries[model].items()):
                if entry.expires <= now:
                    self._remove(model, peer)
                    # Remembered for as long as its ``issued`` could still pass anywhere.
                    self._gone[model, peer] = (entry.checked.ann.sequence, now + 2 * self._config.clock_tolerance_s)
        lives = (entry.expires for entries in self._entries.values() for entry in entries.values())
        self.next_expiry = min(lives, default=math.inf)
        while self._gone and (len(self._gone) > GONE_MAX or next(iter(self._gone.values()))[1] <= now):
            self._gone.popitem(last=False)

    def mark_reached(self, peer: PeerId) -> None:
        """``peer`` itself answered: its record is more than somebody's word."""
        known = peer in self._reached
        self._reached[peer] = None
        self._reached.move_to_end(peer)
        if known:
            return
        if len(self._reached) > REACHED_MAX:
            forgotten, _ = self._reached.popitem(last=False)
            self._enroll(forgotten)
        self._enroll(peer)
        self.time.mark_reached(peer)

    def _enroll(self, peer: PeerId) -> None:
        """List ``peer`` where it belongs now."""
        entries = (held.get(peer) for held in self._entries.values())
        here = any(entry is not None and entry.checked.ann.state is not ServerState.OFFLINE for entry in entries)
        for roster, belongs in ((self.servers_met, peer in self._reached), (self.strangers, peer not in self._reached)):
            if here and belongs:
                roster.add(peer)
            else:
                roster.discard(peer)

    def _follows(self, model: ModelId) -> bool:
        if self._models is not None:
            return model in self._models
        return model in self._entries or len(self._entries) < MODELS_MAX

    def _make_room(self, model: ModelId, newcomer: PeerId) -> bool:
        """Room for one more server of ``model``: strangers make way, first those of the source that sent most."""
        entries = self._entries.get(model, {})
        if len(entries) < self._config.peers_per_model_max:
            return True
        strangers = {peer: entry for peer, entry in entries.items() if peer not in self._reached}
        if not strangers:
            return False
        sent = Counter(entry.source for entry in strangers.values())
        most = max(sent.values())
        # Of a flooding source the newest goes: those that were there before its flood may be honest.
        victim = max(
            (peer for peer, entry in strangers.items() if sent[entry.source] == most),
            key=lambda peer: strangers[peer].arrival,
        )
        self._remove(model, victim)
        return True

    def _remove(self, model: ModelId, peer: PeerId) -> None:
        entries = self._entries[model]
        del entries[peer]
        if not entries:
            del self._entries[model]
        self._enroll(peer)
        self._log.drop(model, peer)
        self.version += 1
