"""What worlds saw, event by event, for whoever looks for the first difference between two runs.

Invariants: off unless somebody records, and then a run is no other than without; nothing of a trace's hash is decided
here. One process plays one scenario at a time, so one recorder is enough.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVENTS_MAX = 2_000_000
"""Of one recording; the first difference is rarely late."""

_recorder: Callable[[str], None] | None = None


@contextmanager
def recording(tell: Callable[[str], object], limit: int = EVENTS_MAX) -> Iterator[None]:
    """Let ``tell`` have every event as one line, the first ``limit`` of them."""
    global _recorder
    left = itertools.repeat(None, limit)

    def record(line: str) -> None:
        if next(left, True) is None:
            tell(line)

    _recorder = record
    try:
        yield
    finally:
        _recorder = None


def saw(at_s: float, event: str, source: str, target: str, data: bytes) -> None:
    """An event of a world; called for every one that enters its trace."""
    if _recorder is not None:
        digest = hashlib.blake2b(data, digest_size=6).hexdigest()
        _recorder(f"{at_s:.9f} s {event} {source}->{target} {len(data)} bytes {digest}")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two runs part; None where one of them was over already."""

    index: int
    one: str | None
    other: str | None

    def __str__(self) -> str:
        return f"event {self.index}:\n  {self.one or 'nothing more'}\n  {self.other or 'nothing more'}"


def first_difference(one: Iterable[str], other: Iterable[str]) -> Difference | None:
    """Where two recordings part; None: they are the same."""
    for index, (a, b) in enumerate(itertools.zip_longest(one, other)):
        if a != b:
            return Difference(index, a, b)
    return None
