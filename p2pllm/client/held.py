"""Which token ids the caches of a session stand for, so that a prompt that continues them feeds only what is new.

Invariants: pure. Knows tokens, not positions: what a row holds beyond its session's position is forgotten by the next
``fed``. A token that went in as a hidden state is ``UNKNOWN`` and equals no token of any prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = -1


class Held:
    """Per row, the token ids that were fed.

    Attributes:
        in_use: a generation is under way in the session; there can be only one at a time.
    """

    def __init__(self) -> None:
        self.in_use = False
        self._rows: dict[int, list[int]] = {}

    def fed(self, row: int, position: int, ids: Sequence[int]) -> None:
        """A row took ``ids`` behind its first ``position`` tokens."""
        held = self._rows.setdefault(row, [])
        held[position:] = ids

    def common(self, row: int, position: int, ids: Sequence[int]) -> int:
        """How many of a row's first ``position`` tokens are those that ``ids`` begins with."""
        length = 0
        for mine, theirs in zip(self._rows.get(row, ())[:position], ids, strict=False):
            if mine != theirs:
                break
            length += 1
        return length

    def copy(self) -> Held:
        """The same for a fork of the session."""
        other = Held()
        other._rows = {row: list(ids) for row, ids in self._rows.items()}
        return other
