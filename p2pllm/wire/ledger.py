"""A server's book of one session's steps, from their acceptance until their answers are acknowledged.

Invariants: ids are consecutive and end before ``next``; answered ones come before running ones; answers that are kept,
and bounds of those to come, fit into the byte credit; their number is bounded too.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, replace

from p2pllm.wire import messages as m

Payload = bytes | bytearray | memoryview

ENTRIES_MAX = 64
"""Unacknowledged steps at once, whatever their size: in push mode acknowledgements lag, but not without bound."""


@dataclass(slots=True)
class Entry:
    """One accepted step."""

    step: m.Step
    digest: bytes
    before: tuple[int, ...]
    """Where the rows stood when it came."""
    after: tuple[int, ...]
    tokens: int
    """Tokens of its answer."""
    cost: int
    """Bytes of credit that it holds: a bound while it runs, the answer's size once that is there."""
    answer: m.Answer | None = None
    payload: Payload = b""

    def repeated_by(self, step: m.Step, payload: Payload) -> bool:
        """Whether this is the same request again.

        Epoch and acknowledgement may have moved on, and ``tail`` when a chain changed from pushing to relaying.
        """
        mine = self.step
        same = mine == replace(step, epoch=mine.epoch, acked=mine.acked, tail=mine.tail)
        return same and digest_of(payload) == self.digest


def digest_of(payload: Payload) -> bytes:
    """What tells two payloads apart without keeping either."""
    return hashlib.blake2b(payload, digest_size=16).digest()


def nbytes(payload: Payload) -> int:
    """Bytes of a payload, whatever its buffer's item size."""
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


class Ledger:
    """The entries in order of ids."""

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.next = 0
        """The id of the next step."""
        self.acked = -1
        self.running: deque[int] = deque()
        """Ids that are accepted and not yet answered."""
        self._entries: deque[Entry] = deque()
        self._held = 0

    @property
    def computed(self) -> int:
        """The last id that was answered, -1 if none."""
        return self.next - 1 - len(self.running)

    def has_room(self, cost: int) -> bool:
        """Whether one more answer of ``cost`` bytes may be promised."""
        return self._held + cost <= self.credit and len(self._entries) < ENTRIES_MAX

    def accept(self, entry: Entry) -> None:
        """Enter the next step."""
        assert entry.step.step == self.next
        self._entries.append(entry)
        self._held += entry.cost
        self.running.append(self.next)
        self.next += 1

    def find(self, step: int) -> Entry | None:
        """The entry of ``step``, None when it was acknowledged (or never came)."""
        if not self._entries:
            return None
        index = step - self._entries[0].step.step
        return self._entries[index] if 0 <= index < len(self._entries) else None

    def answer(self, entry: Entry, answer: m.Answer, payload: Payload) -> None:
        """Keep the answer of the oldest running step."""
        assert self.running[0] == answer.step
        self.running.popleft()
        self._held += nbytes(payload) - entry.cost
        entry.cost = nbytes(payload)
        entry.answer = answer
        entry.payload = payload

    def acknowledge(self, acked: int) -> None:
        """Let go of every answer up to ``acked``, which is answered."""
        assert acked <= self.computed
        self.acked = acked
        while self._entries and self._entries[0].step.step <= acked:
            self._held -= self._entries.popleft().cost

    def withdraw(self, step: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Strike the running ``step`` and all later ones: where the rows stood before it, and the later ids."""
        assert step in self.running
        later = tuple(other for other in self.running if other > step)
        rows: tuple[int, ...] = ()
        while self._entries and self._entries[-1].step.step >= step:
            entry = self._entries.pop()
            self._held -= entry.cost
            rows = entry.before
        while self.running and self.running[-1] >= step:
            self.running.pop()
        self.next = step
        return rows, later

    def renumber(self, step: int) -> tuple[int, ...]:
        """Forget everything and go on with id ``step``; the ids that were running."""
        running = tuple(self.running)
        self.clear()
        self.next = step
        self.acked = step - 1
        return running

    def clear(self) -> None:
        """Forget every entry."""
        self._entries.clear()
        self.running.clear()
        self._held = 0
