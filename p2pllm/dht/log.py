"""The change log: what happened to a member's records, in order, so that others ask only for what is new.

Invariants: pure. Every record has one place in the log, that of its last change, so the log is never longer than the
view. A cursor means something only together with the id of the log that gave it.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.types import ModelId, PeerId


@dataclass(frozen=True, slots=True)
class Page:
    """Whose records changed since a cursor, oldest change first; ask again from ``cursor`` while ``more``."""

    cursor: int
    more: bool
    peers: tuple[PeerId, ...]


class ChangeLog:
    """Numbers every change of every record."""

    def __init__(self, log_id: int) -> None:
        self.id = log_id
        self._last = 0
        self._changes: dict[ModelId, dict[PeerId, int]] = {}
        """Per model, the last change of each record, in order."""

    def touch(self, model: ModelId, peer: PeerId) -> None:
        """A record came or was replaced."""
        self._last += 1
        changes = self._changes.setdefault(model, {})
        changes.pop(peer, None)
        changes[peer] = self._last

    def drop(self, model: ModelId, peer: PeerId) -> None:
        """A record is gone; nobody is told, since everybody's own clock runs it out."""
        changes = self._changes.get(model)
        if changes is not None:
            changes.pop(peer, None)
            if not changes:
                del self._changes[model]

    @property
    def cursor(self) -> int:
        """Whoever asks from here hears only what comes later."""
        return self._last

    def since(self, model: ModelId, cursor: int) -> list[PeerId]:
        """Whose records changed after ``cursor``, the latest first."""
        fresh: list[PeerId] = []
        for peer, change in reversed(self._changes.get(model, {}).items()):
            if change <= cursor:
                break
            fresh.append(peer)
        return fresh

    def page(self, model: ModelId, log_id: int, cursor: int, limit: int) -> Page:
        """Up to ``limit`` changes after ``cursor``; a cursor of another log, or of the future, starts over."""
        if log_id != self.id or not 0 <= cursor <= self._last:
            cursor = 0
        changes = self._changes.get(model, {})
        fresh = self.since(model, cursor)
        fresh.reverse()
        if len(fresh) <= limit:
            return Page(self._last, False, tuple(fresh))
        return Page(changes[fresh[limit - 1]], True, tuple(fresh[:limit]))
