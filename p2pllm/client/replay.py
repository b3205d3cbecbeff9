"""The history of a session: for each border of its chain, the wire bytes that went over it.

Servers hold attention caches; this is the second cache, from which a server's cache can be made anew. It holds every
token that some row still contains, per border, as it travelled (``wire.pieces`` puts them together again).

Invariants: bounded in memory; what is beyond goes to an anonymous temporary file, oldest first, which ends with the
session and with the process. Nothing is copied or encoded while all goes well: recording keeps a reference. A session
and its forks share what they have in common, one bound and one file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from p2pllm.client.edge import Packed
from p2pllm.client.past import Entry, Row, Rows, Run, length, runs_of, shortened
from p2pllm.config import KIB, MIB
from p2pllm.errors import LocalProtocolError
from p2pllm.ports import Buffer, Scratch, Storage
from p2pllm.wire.pieces import Piece, join
from p2pllm.wire.tensor import plain

COPY_BELOW = 64 * KIB
"""A smaller payload that is a view into a larger buffer is copied: it would keep the whole buffer."""
SWEEP_TOKENS = 1024
"""Forgotten tokens are thrown out when there are so many, and more of them than of the others."""
REPACK_BYTES = 64 * MIB
"""The file is written anew when so much of it, and more than half, is of no use any more."""


class _Block:
    """One payload: in memory, or in the file."""

    __slots__ = ("at", "codec", "payload", "size", "tokens", "users")

    def __init__(self, codec: str, tokens: int, payload: Buffer) -> None:
        self.codec = codec
        self.tokens = tokens
        self.payload: Buffer | None = payload
        self.size = memoryview(payload).nbytes
        self.at = -1
        self.users = 1


class _Shelf:
    """Where the blocks of a session and its forks lie."""

    def __init__(self, storage: Storage, bytes_max: int) -> None:
        self.users = 1
        self.memory = 0
        """Bytes in memory."""
        self.filed = 0
        """Bytes in the file that are of use."""
        self._written = 0
        self._storage = storage
        self._bytes_max = bytes_max
        self._fresh: deque[_Block] = deque()
        self._old: dict[_Block, None] = {}
        self._file: Scratch | None = None

    @property
    def full(self) -> bool:
        return self.memory > self._bytes_max

    def put(self, block: _Block) -> None:
        self._fresh.append(block)
        self.memory += block.size

    def drop(self, block: _Block) -> None:
        block.users -= 1
        if block.users:
            return
        if block.payload is not None:
            self.memory -= block.size
            block.payload = b""  # it may still stand in the line of fresh ones: nothing is left to file
        else:
            self.filed -= block.size
            del self._old[block]

    async def spill(self) -> None:
        """File the oldest blocks, until half of the bound is free.

        Raises:
            StorageError: the disk is full; nothing is lost.
        """
        goal = self._bytes_max // 2
        chosen: list[_Block] = []
        left = self.memory
        for block in self._fresh:
            if left <= goal:
                break
            if block.users:
                chosen.append(block)
                left -= block.size

        def file() -> None:
            if self._file is None:
                self._file = self._storage.scratch()
            for block in chosen:
                if block.payload is not None and block.users:
                    block.at = self._file.append(block.payload)
                    self._written += block.size

        await self._storage.run(file)
        for block in chosen:
            if block.users:
                block.payload = None
                self.memory -= block.size
                self.filed += block.size
                self._old[block] = None
        self._fresh = deque(block for block in self._fresh if block.users and block.payload is not None)
        if self._written - self.filed > max(REPACK_BYTES, self.filed):
            await self._repack()

    async def _repack(self) -> None:
        """Write the file anew, without what nobody needs."""
        blocks = list(self._old)

        def rewrite() -> tuple[Scratch, list[int]]:
            assert self._file is not None
            new = self._storage.scratch()
            try:
                return new, [new.append(self._file.read(block.at, block.at + block.size)) for block in blocks]
            except BaseException:
                new.close()
                raise

        new, places = await self._storage.run(rewrite)
        if self._file is not None:
            self._file.close()
        self._file = new
        for block, at in zip(blocks, places, strict=True):
            block.at = at
        self._written = sum(block.size for block in blocks)

    async def read(self, blocks: Iterable[_Block]) -> dict[_Block, Buffer]:
        """The payloads of blocks, from wherever they are."""
        found: dict[_Block, Buffer] = {}
        filed: list[_Block] = []
        for block in blocks:
            if block.payload is not None:
                found[block] = block.payload
            elif block not in found:
                filed.append(block)
        if filed:

            def load() -> list[bytes]:
                assert self._file is not None
                return [self._file.read(block.at, block.at + block.size) for block in filed]

            found.update(zip(filed, await self._storage.run(load), strict=True))
        return found

    def leave(self) -> None:
        """One session less; the last one takes everything along."""
        self.users -= 1
        if not self.users:
            self._fresh.clear()
            self._old.clear()
            if self._file is not None:
                self._file.close()
                self._file = None


class _Lane:
    """What went over one border: runs of tokens, in order of their numbers."""

    __slots__ = ("_firsts", "_places")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._places: list[tuple[int, _Block, int]] = []  # tokens, block, index of the first in the block

    def copy(self) -> _Lane:
        other = _Lane()
        other._firsts, other._places = self._firsts.copy(), self._places.copy()
        for block in self.blocks():
            block.users += 1
        return other

    def blocks(self) -> set[_Block]:
        return {block for _, block, _ in self._places}

    def put(self, runs: Sequence[Run], block: _Block) -> None:
        index = 0
        for first, count in runs:
            if not self._firsts or first > self._firsts[-1]:
                self._firsts.append(first)
                self._places.append((count, block, index))
            else:
                at = bisect_right(self._firsts, first)
                self._firsts.insert(at, first)
                self._places.insert(at, (count, block, index))
            index += count

    def has(self, token: int) -> bool:
        at = bisect_right(self._firsts, token) - 1
        return at >= 0 and token < self._firsts[at] + self._places[at][0]

    def find(self, run: Run) -> list[tuple[_Block, int, int]]:
        """Where a run's tokens lie, in order: block, start, stop. Ends early at a token that is not there."""
        token, left = run
        found = []
        at = bisect_right(self._firsts, token) - 1
        while left and 0 <= at < len(self._firsts):
            first, (count, block, index) = self._firsts[at], self._places[at]
            if not first <= token < first + count:
                break
            take = min(left, first + count - token)
            start = index + token - first
            found.append((block, start, start + take))
            token += take
            left -= take
            at += 1
        return found

    def keep(self, live: Callable[[int, int], bool]) -> set[_Block]:
        """Forget runs none of whose tokens is live; the blocks that are of no use any more."""
        before = self.blocks()
        kept = [
            (first, place)
            for first, place in zip(self._firsts, self._places, strict=True)
            if live(first, first + place[0])
        ]
        self._firsts = [first for first, _ in kept]
        self._places = [place for _, place in kept]
        return before - self.blocks()


class History:
    """One session's; ``rows`` are what its caches should hold."""

    def __init__(self, storage: Storage, hidden: int, rows: int, bytes_max: int) -> None:
        self.rows: Rows = (None,) * rows
        self.entries = 0
        """Number of the next entry."""
        self.tokens = 0
        """Number of the next token."""
        self.void: set[int] = set()
        """Entries of steps that failed, as long as some server may still be due to answer them."""
        self._hidden = hidden
        self._held = 0
        self._lanes: dict[int, _Lane] = {}
        self._shelf = _Shelf(storage, bytes_max)
        self._closed = False

    @property
    def memory_bytes(self) -> int:
        """In memory, forks included."""
        return self._shelf.memory

    @property
    def filed_bytes(self) -> int:
        """In the temporary file, forks included."""
        return self._shelf.filed

    @property
    def borders(self) -> tuple[int, ...]:
        """The borders that something is known of."""
        return tuple(sorted(self._lanes))

    def number(self, entries: Sequence[Entry]) -> None:
        """These entries have begun: their numbers are taken."""
        count = sum(sum(entry.counts) for entry in entries)
        self.entries += len(entries)
        self.tokens += count
        self._held += count

    def record(self, border: int, entry: Entry, packed: Packed) -> None:
        """What goes over ``border`` in a step, unless that is known.

        Raises:
            RemoteProtocolError: a compressed payload is broken.
        """
        lane = self._lanes.get(border)
        if lane is None:
            lane = self._lanes[border] = _Lane()
        if lane.has(entry.runs[0][0]):
            return
        tensor, payload = plain(packed.tensor, packed.payload)
        if isinstance(payload, memoryview) and payload.nbytes < COPY_BELOW:
            payload = bytes(payload)
        block = _Block(tensor.codec, tensor.shape[0], payload)
        self._shelf.put(block)
        lane.put(entry.runs, block)

    def knows(self, border: int, entry: Entry) -> bool:
        """Whether the bytes of a step at ``border`` are there."""
        lane = self._lanes.get(border)
        return lane is not None and all(lane.has(first) for first, _ in entry.runs)

    def known(self, border: int, rows: Rows) -> Rows:
        """Of each row, as much from its beginning as is known at ``border``."""
        lane = self._lanes.get(border)
        if lane is None:
            return (None,) * len(rows)
        return tuple(_known(lane, row) for row in rows)

    async def packed(self, border: int, runs: Sequence[Run]) -> Packed:
        """The bytes of these tokens, as one tensor.

        Raises:
            StorageError: the temporary file cannot be read.
        """
        lane = self._lanes[border]
        places = [place for run in runs for place in lane.find(run)]
        payloads = await self._shelf.read({block: None for block, _, _ in places})
        pieces = [Piece(payloads[block], block.tokens, start, stop) for block, start, stop in places]
        codec = places[0][0].codec
        if sum(piece.stop - piece.start for piece in pieces) != sum(count for _, count in runs):
            raise LocalProtocolError(f"tokens are missing in the history of border {border}")
        return Packed(*join(codec, self._hidden, pieces))

    def forget(self, borders: Iterable[int]) -> None:
        """Nothing is to be known of these borders any more."""
        for border in borders:
            lane = self._lanes.pop(border, None)
            if lane is not None:
                for block in lane.blocks():
                    self._shelf.drop(block)

    async def tidy(self) -> None:
        """Throw out what no row contains any more, and file what is beyond the bound. To be called between steps.

        Raises:
            StorageError: the disk is full; nothing is lost.
        """
        if self._held > SWEEP_TOKENS and self._held > 2 * sum(map(length, self.rows)):
            self._sweep()
        if self._shelf.full:
            await self._shelf.spill()

    def fork(self) -> History:
        """A history of its own for a session that stands where this one does."""
        other = History.__new__(History)
        other.rows, other.entries, other.tokens = self.rows, self.entries, self.tokens
        other.void = set()
        other._hidden, other._held, other._closed = self._hidden, self._held, False
        other._lanes = {border: lane.copy() for border, lane in self._lanes.items()}
        other._shelf = self._shelf
        self._shelf.users += 1
        return other

    def close(self) -> None:
        """Give up everything. Idempotent."""
        if not self._closed:
            self._closed = True
            self.forget(list(self._lanes))
            self._shelf.leave()

    def _sweep(self) -> None:
        runs = sorted({run for row in self.rows for run in runs_of(row, 0, length(row))})
        firsts = [first for first, _ in runs]
        ends: list[int] = []
        for first, count in runs:
            ends.append(max(first + count, ends[-1] if ends else 0))

        def live(first: int, end: int) -> bool:
            at = bisect_right(firsts, end - 1) - 1
            return at >= 0 and ends[at] > first

        for lane in self._lanes.values():
            for block in lane.keep(live):
                self._shelf.drop(block)
        self._held = sum(count for _, count in runs)


def _known(lane: _Lane, row: Row) -> Row:
    position = 0
    for run in runs_of(row, 0, length(row)):
        found = sum(stop - start for _, start, stop in lane.find(run))
        position += found
        if found < run[1]:
            return shortened(row, position)
    return row
