"""How one step of many tokens is cut into chunks that follow each other through the chain, and put together again.

Invariants: pure. Tokens are packed row after row; a chunk holds, of each row, a run of its new tokens, and the runs of
one row are consecutive over the chunks. Rows are aligned at their ends, so that every row's last token is in the last
chunk and only that one needs to bring outputs back when nothing but the next token is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALL = -1
"""As ``tail``: the outputs of all tokens are wanted."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step on the wire.

    Attributes:
        starts: per row, where its run begins among that row's new tokens.
        counts: per row, the length of its run.
        tail: the last hop returns each row's last so many tokens of the chunk; -1: all of them.
        wanted: per row, how many outputs at the end of its run the caller asked for.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    tail: int
    wanted: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def kept(self) -> tuple[int, ...]:
        """Per row, how many outputs the last hop returns."""
        return self.counts if self.tail == ALL else tuple(min(count, self.tail) for count in self.counts)


def cut(counts: Sequence[int], chunk_tokens: int, tail: int = ALL) -> list[Chunk]:
    """Cut a step that brings ``counts`` new tokens per row into chunks of about ``chunk_tokens``."""
    active = sum(1 for count in counts if count)
    width = max(1, chunk_tokens // max(1, active))
    longest = max(counts, default=0)
    chunks = []
    for end in range(longest % width or width, longest + width, width) if longest else ():
        # Positions counted from the common end of all rows: this chunk reaches from ``far`` down to ``near``.
        far, near = longest - end + width, longest - end
        starts = tuple(max(0, count - far) for count in counts)
        runs = tuple(max(0, count - near) - start for count, start in zip(counts, starts, strict=True))
        wanted = runs if tail == ALL else tuple(min(run, max(0, tail - near)) for run in runs)
        needed = ALL if wanted == runs else max(wanted)
        chunks.append(Chunk(starts, runs, needed, wanted))
    return chunks


def packed_slices(counts: Sequence[int], chunk: Chunk) -> list[slice]:
    """Where the chunk's tokens lie in the packed tokens of the whole step, row by row, rows without any left out."""
    slices, offset = [], 0
    for count, start, run in zip(counts, chunk.starts, chunk.counts, strict=True):
        if run:
            slices.append(slice(offset + start, offset + start + run))
        offset += count
    return slices


def wanted_slices(chunk: Chunk) -> list[slice]:
    """Per row, where its wanted outputs lie in what the last hop returned for the chunk."""
    slices, offset = [], 0
    for kept, wanted in zip(chunk.kept, chunk.wanted, strict=True):
        offset += kept
        slices.append(slice(offset - wanted, offset))
    return slices
