"""Members remembered from last time: a small JSON file, so that a swarm survives the loss of every bootstrap node.

Invariants: the file is a hint, never trusted: what is malformed is ignored, what is too much is cut. Losing it loses
nothing but time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from p2pllm.errors import StorageError
from p2pllm.ports import Storage
from p2pllm.types import PeerId

log = logging.getLogger(__name__)

MEMBERS_MAX = 64
ADDRS_MAX = 8
TEXT_MAX = 300

Members = list[tuple[PeerId, tuple[str, ...]]]


def parse_members(data: bytes) -> Members:
    """What a members file holds, as far as it makes sense."""
    try:
        listed = json.loads(data)
    except ValueError:
        return []
    members: Members = []
    for entry in listed if isinstance(listed, list) else []:
        peer = entry.get("peer") if isinstance(entry, dict) else None
        addrs = entry.get("addrs") if isinstance(entry, dict) else None
        if not isinstance(peer, str) or not isinstance(addrs, list) or len(peer) > TEXT_MAX:
            continue
        texts = tuple(a for a in addrs if isinstance(a, str) and len(a) <= TEXT_MAX)[:ADDRS_MAX]
        if texts:
            members.append((PeerId(peer), texts))
    return members[:MEMBERS_MAX]


class MembersFile:
    """``path`` in ``storage``; ``current`` is what is known now."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.current: Members = []
        self._storage = storage
        self._path = path

    async def load(self) -> None:
        """Read the file; none, or an unreadable one, is an empty one."""
        try:
            self.current = parse_members(await self._storage.run(self._read))
        except StorageError as exc:
            log.debug("no remembered members: %s", exc)

    def addresses(self) -> tuple[str, ...]:
        """All remembered addresses, each with its peer id."""
        return tuple(a if "/p2p/" in a else f"{a}/p2p/{peer}" for peer, addrs in self.current for a in addrs)

    async def save(self, members: Sequence[tuple[PeerId, Sequence[str]]]) -> None:
        """Remember ``members``, the best first, and after them those of before."""
        merged = {peer: tuple(addrs)[:ADDRS_MAX] for peer, addrs in members}
        for peer, addrs in self.current:
            merged.setdefault(peer, addrs)
        fresh = list(merged.items())[:MEMBERS_MAX]
        if fresh == self.current:
            return
        self.current = fresh
        data = json.dumps([{"peer": peer, "addrs": list(addrs)} for peer, addrs in fresh], indent=1).encode()
        try:
            await self._storage.run(lambda: self._storage.write(self._path, data))
        except StorageError as exc:
            log.warning("members were not remembered: %s", exc)

    def _read(self) -> bytes:
        return self._storage.read(self._path, 0, min(self._storage.size(self._path), 1 << 20))
