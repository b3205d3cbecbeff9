"""Attention caches of many rows: one preallocated tensor per block, written in place, page by page.

Invariants: who owns which page is decided elsewhere (the server's accounting); here a page is an address. Head-major
[heads, tokens, head_dim], so that a row's keys are contiguous per head. Memory is touched when it is first written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run of tokens lies in the arena: ``first`` when the tokens are consecutive there, else ``index``."""

    count: int
    first: int | None
    index: Tensor | None = None


class KVArena:
    """Keys and values of up to ``tokens`` tokens for a span of ``num_blocks`` blocks.

    Attributes:
        tokens: capacity, rounded up to whole pages.
        pages: ``tokens`` in pages of ``page_tokens``.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        num_blocks: int,
        kv_heads: int,
        head_dim: int,
        tokens: int,
        page_tokens: int = 16,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if min(num_blocks, kv_heads, head_dim, tokens, page_tokens) <= 0:
            raise ValueError("a cache needs positive sizes")
        self.page_tokens = page_tokens
        self.pages = -(-tokens // page_tokens)
        self.tokens = self.pages * page_tokens
        self.kv_heads = kv_heads
        self.device = torch.device(device)
        shape = (2 * kv_heads, self.tokens, head_dim)  # keys, then values: one copy writes both
        self._blocks = [torch.empty(shape, dtype=dtype, device=self.device) for _ in range(num_blocks)]

    @property
    def nbytes(self) -> int:
        """Bytes of address space that the arena takes (resident as far as it was written)."""
        return sum(block.nbytes for block in self._blocks)

    def place(self, pages: Sequence[int], start: int, stop: int) -> Place:
        """Where tokens ``start`` .. ``stop`` - 1 of the row that owns ``pages`` lie.

        Raises:
            ValueError: the pages are too few, or not in this arena.
        """
        size = self.page_tokens
        low, high = start // size, -(-stop // size)
        if high > len(pages):
            raise ValueError(f"{len(pages)} pages of {size} tokens cannot hold {stop} tokens")
        used = list(pages[low:high])
        if used and (min(used) < 0 or max(used) >= self.pages):
            raise ValueError(f"a page number is outside 0..{self.pages - 1}")
        count, skip = stop - start, start - low * size
        if not used or used == list(range(used[0], used[0] + len(used))):
            return Place(count, used[0] * size + skip if used else 0)
        starts = torch.tensor(used, device=self.device).unsqueeze(1) * size
        every = (starts + torch.arange(size, device=self.device)).view(-1)
        return Place(count, None, every[skip : skip + count])

    def write(self, block: int, place: Place, kv: Tensor) -> None:
        """Store ``kv`` [tokens, 2 * kv_heads, head_dim], keys first, at ``place``."""
        rows = kv.transpose(0, 1)
        if place.first is not None:
            self._blocks[block].narrow(1, place.first, place.count).copy_(rows)
        elif place.index is not None:
            self._blocks[block].index_copy_(1, place.index, rows)

    def read(self, block: int, place: Place) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, tokens, head_dim]: views when the place is consecutive, else copies."""
        both = self._blocks[block]
        if place.first is not None:
            both = both.narrow(1, place.first, place.count)
        elif place.index is not None:
            both = both.index_select(1, place.index)
        keys, values = both.chunk(2)
        return keys, values

    def view(self, block: int, pages: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first ``length`` tokens of the row that owns ``pages``."""
        return self.read(block, self.place(pages, 0, length))

    def copy_row(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """Copy the first ``length`` tokens of a row in every block: for forks and beams."""
        if length == 0:
            return
        here, there = self.place(source, 0, length), self.place(target, 0, length)
        for block in range(len(self._blocks)):
            keys, values = self.read(block, here)
            both = torch.cat([keys, values])  # a copy, so that source and target may share pages
            self.write(block, there, both.transpose(0, 1))
