"""A server's own announcements: stamped, signed, numbered upwards for ever, kept in the DHT.

Invariants: a sequence number is never used twice, nor a smaller one after a larger one, as long as either the file or
the clock survives; if both are lost, the first peer that still has the old record tells us.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import trio

from p2pllm.config import RecordConfig
from p2pllm.dht.news import tells_more
from p2pllm.dht.record import (
    ADDRS_MAX,
    Announcement,
    check_announcement,
    model_key,
    record_key,
    sign_announcement,
    verify,
)
from p2pllm.errors import LocalProtocolError, PeerLost, StorageError
from p2pllm.ports import Ports
from p2pllm.types import ModelId, ServerState

log = logging.getLogger(__name__)

PROVIDE_INTERVAL_S = 600.0


class Publisher:
    """What this node says of itself, at most one announcement per model."""

    def __init__(self, ports: Ports, config: RecordConfig, state_path: str | None) -> None:
        self.records: dict[ModelId, bytes] = {}
        """Signed and current."""
        self.ttl_s = config.ttl_s
        """Of records that are signed from now on."""
        self._ports = ports
        self._config = config
        self._path = state_path
        self._wanted: dict[ModelId, Announcement] = {}
        self._sequence = 0
        self._provided: dict[ModelId, float] = {}
        self._correction_s = 0.0

    @property
    def wanted(self) -> bool:
        """Whether there is anything to announce."""
        return bool(self._wanted)

    async def load(self) -> None:
        """Read the last sequence number, if there is one."""
        path = self._path
        if path is None:
            return
        storage = self._ports.storage
        try:
            text = await storage.run(lambda: storage.read(path, 0, storage.size(path)))
            self._sequence = max(self._sequence, int(text))
        except (StorageError, ValueError) as exc:
            log.debug("no earlier sequence number: %s", exc)

    async def _save(self) -> None:
        path, data = self._path, str(self._sequence).encode()
        if path is None:
            return
        storage = self._ports.storage
        try:
            await storage.run(lambda: storage.write(path, data))
        except StorageError as exc:
            log.warning("the announcement's sequence number was not saved: %s", exc)

    def want(self, ann: Announcement) -> bool:
        """Announce this from now on, in place of what was announced for its model; True when more than load changed.

        Raises:
            ValueError: a field breaks a bound.
        """
        check_announcement(self._stamp(ann, 1))
        before = self._wanted.get(ann.model)
        self._wanted[ann.model] = ann
        if before is None or tells_more(before, ann):
            return True
        return ann.model in self.records and self._tells_more(ann)

    def moved(self) -> bool:
        """Whether our addresses are others than we said last."""
        return any(self._tells_more(ann) for model, ann in self._wanted.items() if model in self.records)

    def _tells_more(self, ann: Announcement) -> bool:
        said = self.records.get(ann.model)
        return said is None or tells_more(verify(said), self._stamp(ann, 1))

    def leave(self) -> None:
        """Announce from now on that this server is gone."""
        for model, ann in self._wanted.items():
            self._wanted[model] = replace(ann, state=ServerState.OFFLINE)

    def seen(self, ann: Announcement) -> bool:
        """Somebody has a record of ours; True when it is newer than all that we know of: announce again."""
        lost = ann.sequence > self._sequence
        self._sequence = max(self._sequence, ann.sequence)
        return lost

    def correct(self, swarm_offset_s: float) -> bool:
        """Note how far the swarm's time is from ours; True when what we announced would be refused for it."""
        # A clock that is a bit wrong is left alone: were all to follow the median, and the median to follow all, time
        # would drift. One that is very wrong would mute this server, so it borrows the others' time.
        before = self._correction_s
        limit = self._config.clock_tolerance_s / 2
        self._correction_s = swarm_offset_s if abs(swarm_offset_s) > limit else 0.0
        return abs(self._correction_s - before) > limit

    async def renew(self) -> bool:
        """Stamp and sign everything anew; True when it says more than before."""
        news = False
        for model, ann in self._wanted.items():
            news = self._tells_more(ann) or news
            self._sequence = max(self._sequence + 1, int(self._ports.wall_time() * 1000))
            stamped = self._stamp(ann, self._sequence)
            self.records[model] = sign_announcement(stamped, self._ports.network.sign)
        if self._wanted:
            await self._save()
        return news

    def _stamp(self, ann: Announcement, sequence: int) -> Announcement:
        network = self._ports.network
        addrs = network.addrs[:ADDRS_MAX]
        return replace(
            ann,
            peer=network.me,
            addrs=addrs,
            relayed=bool(addrs) and all("/p2p-circuit" in addr for addr in addrs),
            sequence=sequence,
            issued_ms=max(0, int((self._ports.wall_time() + self._correction_s) * 1000)),
            ttl_ms=int(self.ttl_s * 1000),
        )

    async def store(self) -> bool:
        """Put the current records into the DHT; False when nobody took them."""
        network = self._ports.network
        try:
            for model, record in list(self.records.items()):
                await network.put(record_key(model, network.me), record)
                if trio.current_time() - self._provided.get(model, -PROVIDE_INTERVAL_S) >= PROVIDE_INTERVAL_S:
                    await network.provide(model_key(model))
                    self._provided[model] = trio.current_time()
        except (PeerLost, LocalProtocolError) as exc:
            # Also when our own share of the DHT refuses it: for a clock that is very wrong, or a newer record of ours.
            log.debug("the DHT did not take our record: %s", exc)
            return False
        return True

    def forget_provided(self) -> None:
        """The DHT may have lost us: provide again with the next record."""
        self._provided.clear()
