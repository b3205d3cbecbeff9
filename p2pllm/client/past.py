"""What rows of a session consist of: tokens, each with a number of its own, and how steps move rows.

A row is a path: its last run of tokens, which follows another run, and so on back to the first. Rows share what they
have in common, so that a beam, a fork or a roll-back copies nothing, and any two states of a session, of however long
ago, can be compared: what a server's cache holds against what it should hold.

Invariants: pure; runs never change. A token keeps its number for life, and equal numbers mean equal pasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pllm.client.chunks import Chunk

Run = tuple[int, int]
"""(number of the first token, how many follow each other)."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A run of a row's tokens: number ``first`` and the next ones, from position ``start`` on, behind ``parent``."""

    parent: Tokens | None
    first: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


Row = Tokens | None
Rows = tuple[Row, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One step on the wire, as every server of the chain gets it.

    Attributes:
        number: counts the entries of a session; those of a replay have none (-1).
        tail: of each row, the last server returns so many outputs; -1: all.
        before: the rows that the step stands on, before ``sources`` are applied; ``after``: those that it leaves.
        runs: the numbers of its tokens, in the order in which they are packed.
        chunk: what part of the caller's step it is.
    """

    number: int
    positions: tuple[int, ...]
    counts: tuple[int, ...]
    sources: tuple[int, ...]
    tail: int
    before: Rows
    after: Rows
    runs: tuple[Run, ...]
    chunk: Chunk


def length(row: Row) -> int:
    """Tokens of a row."""
    return 0 if row is None else row.start + row.count


def lengths(rows: Rows) -> tuple[int, ...]:
    return tuple(map(length, rows))


def shortened(row: Row, position: int) -> Row:
    """The first ``position`` tokens of a row that has as many."""
    while row is not None and row.start >= position:
        row = row.parent
    if row is None or row.end <= position:
        return row
    return Tokens(row.parent, row.first, row.start, position - row.start)


def common(a: Row, b: Row) -> int:
    """How many first tokens two rows share."""
    while a is not b:
        if a is None or b is None:
            return 0
        if a.first == b.first:
            return a.start + min(a.count, b.count)
        behind = a.start - b.start
        if behind >= 0:
            a = a.parent
        if behind <= 0:
            b = b.parent
    return length(a)


def runs_of(row: Row, start: int, stop: int) -> list[Run]:
    """The numbers of a row's tokens from ``start`` to ``stop``."""
    runs: list[Run] = []
    while row is not None and row.end > start:
        low, high = max(start, row.start), min(stop, row.end)
        if low < high:
            runs.append((row.first + low - row.start, high - low))
        row = row.parent
    return runs[::-1]


def covering(held: Rows, wanted: Rows) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Per wanted row, the held row that shares most with it (itself, where that is as good), and how much it is."""
    picks, known = [], []
    for index, row in enumerate(wanted):
        best, most = index, common(held[index], row)
        if most < length(row):
            for other, candidate in enumerate(held):
                if candidate is not None and (shared := common(candidate, row)) > most:
                    best, most = other, shared
        picks.append(best)
        known.append(most)
    return tuple(picks), tuple(known)


def entries_of(
    chunks: Sequence[Chunk], rows: Rows, sources: tuple[int, ...], *, number: int, token: int
) -> list[Entry]:
    """A step of the caller's as entries, the first of them numbered ``number`` and its first token ``token``."""
    entries = []
    base = tuple(rows[source] for source in sources) if sources else rows
    before, standing = rows, list(base)
    for offset, chunk in enumerate(chunks):
        first = token
        positions = lengths(tuple(standing))
        for index, count in enumerate(chunk.counts):
            if count:
                standing[index] = Tokens(standing[index], token, positions[index], count)
                token += count
        after = tuple(standing)
        gathered = () if offset else sources
        runs = ((first, token - first),)
        entries.append(
            Entry(number + offset, positions, chunk.counts, gathered, chunk.tail, before, after, runs, chunk)
        )
        before = after
    return entries


def replay_of(chunks: Sequence[Chunk], held: Rows, wanted: Rows) -> list[Entry]:
    """Steps that turn rows ``held`` into ``wanted``; ``chunks`` cut what is missing (see ``covering``)."""
    picks, known = covering(held, wanted)
    entries = []
    before = held
    for offset, chunk in enumerate(chunks):
        positions = tuple(there + start for there, start in zip(known, chunk.starts, strict=True))
        ends = tuple(there + count for there, count in zip(positions, chunk.counts, strict=True))
        after = tuple(shortened(row, end) for row, end in zip(wanted, ends, strict=True))
        runs = [
            run
            for row, start, stop in zip(wanted, positions, ends, strict=True)
            if start < stop
            for run in runs_of(row, start, stop)
        ]
        sources = () if offset or picks == tuple(range(len(picks))) else picks
        entries.append(Entry(-1, positions, chunk.counts, sources, 0, before, after, tuple(runs), chunk))
        before = after
    return entries
