"""Who owns which pages of the KV cache: reservations, the line of those who wait, and the rows' page lists.

Invariants: pure accounting, no tensors and no clock. Every page is free or belongs to exactly one reservation. A
session reserves all that it declares or nothing, so a step never finds the cache full. The line is first come, first
served: a large request is never overtaken for ever by small ones. Pages of a pass in flight are pinned: they return
when it ends.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Pages = tuple[int, ...]
"""One row's pages in the order of its positions."""


@dataclass(eq=False, slots=True)
class Reservation:
    """The pages of one session.

    Attributes:
        rows: one page list per row; only ``continue_rows`` plans may exchange them.
        pins: passes in flight that use these pages.
        released: nobody wants it any more; the pages return with the last pin.
    """

    owner: Hashable
    rows: list[Pages]
    pins: int = 0
    released: bool = False


@dataclass(slots=True)
class _Request:
    owner: Hashable
    rows: int
    row_pages: int


@dataclass(slots=True)
class KVCache:
    """Accounting of ``pages`` pages of ``page_tokens`` tokens each."""

    pages: int
    page_tokens: int
    _free: list[tuple[int, int]] = field(init=False)
    """Free runs [start, stop), sorted, never adjacent."""
    _held: dict[Hashable, Reservation] = field(init=False, default_factory=dict)
    _leaving: list[Reservation] = field(init=False, default_factory=list)
    """Released, but pinned by a pass in flight."""
    _line: dict[Hashable, _Request] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.pages < 0 or self.page_tokens < 1:
            raise ValueError(f"not a cache: {self.pages} pages of {self.page_tokens} tokens")
        self._free = [(0, self.pages)] if self.pages else []

    @property
    def tokens(self) -> int:
        """The whole budget."""
        return self.pages * self.page_tokens

    @property
    def tokens_free(self) -> int:
        return self.page_tokens * sum(stop - start for start, stop in self._free)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def row_pages(self, length: int) -> int:
        """Pages that one row of up to ``length`` tokens needs."""
        return -(-length // self.page_tokens)

    def could_fit(self, rows: int, length: int) -> bool:
        """Whether the request would fit into the empty cache: if not, waiting is pointless."""
        return rows * self.row_pages(length) <= self.pages

    def ask(self, owner: Hashable, rows: int, length: int) -> Reservation | None:
        """Reserve room for ``rows`` rows of up to ``length`` tokens; None: the owner stands in line now.

        Raises:
            ValueError: the owner has a reservation or stands in line, or the request can never fit.
        """
        if owner in self._held or owner in self._line:
            raise ValueError(f"{owner!r} has asked already")
        if rows < 1 or length < 1 or not self.could_fit(rows, length):
            raise ValueError(f"{rows} rows of {length} tokens do not fit into {self.tokens} tokens")
        self._line[owner] = _Request(owner, rows, self.row_pages(length))
        granted = self._serve_line()
        return granted[0] if granted else None

    def release(self, owner: Hashable) -> list[Reservation]:
        """Give up the owner's pages, or its place in line; returns the reservations that became possible by it.

        Unknown owners are ignored: giving up twice is harmless.
        """
        self._line.pop(owner, None)
        reservation = self._held.pop(owner, None)
        if reservation is not None:
            reservation.released = True
            if reservation.pins:
                self._leaving.append(reservation)
            else:
                self._return(reservation)
        return self._serve_line()

    def pin(self, reservation: Reservation) -> None:
        """Keep the pages in place for a pass in flight."""
        reservation.pins += 1

    def unpin(self, reservation: Reservation) -> list[Reservation]:
        """The pass has ended; returns the reservations that became possible by it."""
        assert reservation.pins > 0, "unpin without pin"
        reservation.pins -= 1
        if reservation.released and not reservation.pins:
            self._leaving.remove(reservation)
            self._return(reservation)
            return self._serve_line()
        return []

    def check_integrity(self) -> None:
        """Every page is somewhere, and nowhere twice.

        Raises:
            AssertionError: it is not so; a bug.
        """
        seen: list[int] = [page for start, stop in self._free for page in range(start, stop)]
        for reservation in [*self._held.values(), *self._leaving]:
            seen += [page for row in reservation.rows for page in row]
        assert sorted(seen) == list(range(self.pages)), "pages lost or owned twice"
        assert all(a[1] < b[0] for a, b in zip(self._free, self._free[1:], strict=False)), "free runs not merged"
        assert all(r.released and r.pins for r in self._leaving), "an unpinned reservation did not return"
        assert not any(r.released for r in self._held.values()), "a released reservation is still held"
        head = next(iter(self._line.values()), None)
        assert head is None or head.rows * head.row_pages * self.page_tokens > self.tokens_free, "the line stands still"

    def _serve_line(self) -> list[Reservation]:
        granted = []
        while self._line:
            request = next(iter(self._line.values()))
            if request.rows * request.row_pages * self.page_tokens > self.tokens_free:
                break
            del self._line[request.owner]
            rows = [self._take(request.row_pages) for _ in range(request.rows)]
            reservation = self._held[request.owner] = Reservation(request.owner, rows)
            granted.append(reservation)
        return granted

    def _take(self, count: int) -> Pages:
        """The smallest run that holds ``count`` pages, else the fewest runs: a consecutive row is read in place."""
        taken: list[int] = []
        while len(taken) < count:
            need = count - len(taken)
            fitting = [run for run in self._free if run[1] - run[0] >= need]
            start, stop = min(fitting, key=_size) if fitting else max(self._free, key=_size)
            self._free.remove((start, stop))
            end = min(stop, start + need)
            if end < stop:
                insort(self._free, (end, stop))
            taken += range(start, end)
        return tuple(taken)

    def _return(self, reservation: Reservation) -> None:
        runs = self._free + [(page, page + 1) for row in reservation.rows for page in row]
        runs.sort()
        merged: list[tuple[int, int]] = []
        for start, stop in runs:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], stop)
            else:
                merged.append((start, stop))
        self._free = merged


def _size(run: tuple[int, int]) -> int:
    return run[1] - run[0]


def continue_rows(rows: Sequence[Pages], sources: Sequence[int]) -> tuple[list[Pages], list[tuple[int, int]]]:
    """Plan a reordering of rows: row i is to continue what row ``sources[i]`` holds.

    A source's pages move to one of the rows that continue it (itself, if it does); every other one takes the pages of a
    row that nobody continues, and needs a copy.

    Returns:
        The new page lists, and the copies as (old row to read, new row to write): none writes what another one reads.
    """
    keeper: dict[int, int] = {}
    for row, source in enumerate(sources):
        if source not in keeper or source == row:
            keeper[source] = row
    spare = [row for row in range(len(rows)) if row not in keeper]
    plan: list[Pages] = []
    copies: list[tuple[int, int]] = []
    for row, source in enumerate(sources):
        if keeper[source] == row:
            plan.append(rows[source])
        else:
            plan.append(rows[spare.pop(0)])
            copies.append((source, row))
    return plan, copies
