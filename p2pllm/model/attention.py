"""Attention of a packed batch: tokens of many rows in one tensor, each row with its own cache and position.

Invariants: nothing is padded across rows. A ``Plan`` holds what all blocks of a pass share (rotation factors, places in
the cache, masks), so a block only computes. Exact mode cuts the keys at fixed absolute positions and pads queries to
fixed shapes, so that a token's result depends neither on its neighbours nor on the cut of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from p2pllm.model.config import ModelConfig
from p2pllm.model.kv import KVArena, Place
from p2pllm.model.rope import Rope

KEY_SPLIT = 64
"""Exact mode: keys are taken in runs of so many, counted from position 0."""
QUERY_PIECE = 32
"""Exact mode: tokens of a row whose scores are held at once."""
ROW_PAD = 8
SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""On GPUs; cuDNN's is left out, because it builds a plan for every shape, and lengths change all the time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive new tokens of one row.

    Attributes:
        count: how many.
        position: tokens of this row that the cache already holds.
        slots: the row's pages in the arena, enough for ``position + count`` tokens; None: no cache, the segment is a
            whole sequence from position 0.
    """

    count: int
    position: int = 0
    slots: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.count <= 0 or self.position < 0 or (self.slots is None and self.position):
            raise ValueError(f"not a segment: {self.count} tokens at {self.position}")


@dataclass(frozen=True, slots=True)
class Piece:
    """Exact mode's share of a segment: queries ``first`` .. ``last`` - 1, and the keys that they may see.

    Attributes:
        keys: slice of the keys that were read; it begins at a border of key splits.
        rows: query rows (tokens times heads per KV head), padded.
        hidden: True where a row does not see a key: bool [splits, rows, KEY_SPLIT].
    """

    first: int
    last: int
    keys: slice
    rows: int
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class _Read:
    """Which keys one segment looks at: those at ``place`` (None: the fresh ones), masked where ``mask`` is False."""

    place: Place | None
    mask: Tensor | None = None
    causal: bool = False
    pieces: tuple[Piece, ...] = ()


class Plan:
    """Everything about one pass that does not depend on the block."""

    def __init__(
        self,
        config: ModelConfig,
        segments: Sequence[Segment],
        rope: Rope,
        kv: KVArena | None,
        exact: bool,
        row_pad: int = ROW_PAD,
    ) -> None:
        self.config = config
        self.segments = segments
        self.exact = exact
        self._kv = kv
        self._reads: dict[int | None, list[_Read]] = {}
        self.tokens = sum(s.count for s in segments)
        self.rows = -(-self.tokens // row_pad) * row_pad if exact else self.tokens
        self.device = rope.upto(1).device
        self.factors = self._factors(rope)
        self._writes = self._plan_writes()

    def _factors(self, rope: Rope) -> Tensor:
        table = rope.upto(max(s.position + s.count for s in self.segments))
        pieces = [table.narrow(0, s.position, s.count) for s in self.segments]
        if self.rows > self.tokens:
            pieces.append(table[:1].expand(self.rows - self.tokens, -1))
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).unsqueeze(1)  # [T, 1, head_dim/2]

    def _plan_writes(self) -> list[tuple[int, Place]]:
        """(first packed token, place) of every run of tokens to store; scattered ones are merged into one."""
        writes: list[tuple[int, Place]] = []
        offset = 0
        for s in self.segments:
            if s.slots is not None:
                if self._kv is None:
                    raise ValueError("a segment with pages needs a cache")
                writes.append((offset, self._kv.place(s.slots, s.position, s.position + s.count)))
            offset += s.count
        if len(writes) <= 2 or len(writes) < len(self.segments):
            return writes
        index = [_index(place, self.device) for _, place in writes]
        return [(0, Place(self.tokens, None, torch.cat(index)))]

    def store(self, block: int, kv: Tensor) -> None:
        """Write the new tokens' keys and values [T, 2 * kv_heads, head_dim] of a block into the cache."""
        if self._kv is not None:
            for offset, place in self._writes:
                self._kv.write(block, place, kv.narrow(0, offset, place.count))

    def reads(self, window: int | None) -> list[_Read]:
        """Per segment, what its queries look at in a block with this window."""
        if window not in self._reads:
            self._reads[window] = [self._read(s, window) for s in self.segments]
        return self._reads[window]

    def _read(self, s: Segment, window: int | None) -> _Read:
        low = 0 if window is None else max(0, s.position + 1 - window)
        if self.exact:
            low -= low % KEY_SPLIT
        end = s.position + s.count
        fresh = s.position == 0 or self._kv is None or s.slots is None
        place = None if fresh or self._kv is None or s.slots is None else self._kv.place(s.slots, low, end)
        windowed = window is not None and end - low > window
        if self.exact:
            group = self.config.num_heads // self.config.num_kv_heads
            return _Read(place, pieces=exact_pieces(s.count, s.position, low, window, group, self.device))
        if s.count == 1:
            return _Read(place)
        if s.position == 0 and not windowed:
            return _Read(place, causal=True)
        return _Read(place, visible(torch.arange(s.position, end), torch.arange(low, end), window).to(self.device))

    def attend(self, block: int, window: int | None, qkv: Tensor) -> Tensor:
        """Rotated [T, heads + 2 * kv_heads, head_dim] -> [T, heads * head_dim]; the cache is already written."""
        c = self.config
        parts, offset = [], 0
        for s, read in zip(self.segments, self.reads(window), strict=True):
            mine = qkv if s.count == self.rows else qkv.narrow(0, offset, s.count)
            offset += s.count
            if read.place is not None and self._kv is not None:
                k, v = self._kv.read(block, read.place)
            else:
                k, v = mine.narrow(1, c.num_heads, 2 * c.num_kv_heads).transpose(0, 1).chunk(2)
            q = mine.narrow(1, 0, c.num_heads)
            if self.exact:
                parts.append(exact_attention(q, k, v, read.pieces))
            elif s.count == 1:
                parts.append(_decode(q, k, v))
            else:
                parts.append(_sdpa(q, k, v, read))
        if self.rows > self.tokens:
            parts.append(qkv.new_zeros(self.rows - self.tokens, c.num_heads * c.head_dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys each query sees, by their positions: bool [Q, K]."""
    age = queries.unsqueeze(1) - keys
    seen = age >= 0
    return seen if window is None else seen & (age < window)


def _index(place: Place, device: torch.device) -> Tensor:
    if place.index is not None:
        return place.index
    first = place.first or 0
    return torch.arange(first, first + place.count, device=device)


def _decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query per head: plain products take half of SDPA's time on CPU, keys times queries being the fast way.

    On GPUs they spare what SDPA's default backend prepares for every new number of keys.
    """
    kv_heads, _, dim = k.shape
    groups = q.reshape(kv_heads, -1, dim)  # query heads that share a KV head become its query rows
    scores = torch.bmm(k, groups.transpose(1, 2)).mul_(dim**-0.5).transpose(1, 2)  # [kv_heads, group, keys]
    if q.dtype == torch.float32:
        weights = torch.softmax(scores, dim=-1)
    else:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.bmm(weights, v).view(1, -1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, read: _Read) -> Tensor:
    """Many queries of one row."""
    count, heads, dim = q.shape
    kv_heads, keys, _ = k.shape
    spread = (kv_heads, heads // kv_heads, keys, dim)  # views: a KV head serves its group without a copy
    with sdpa_kernel(SDPA_BACKENDS) if q.is_cuda else nullcontext():
        out = functional.scaled_dot_product_attention(
            q.reshape(count, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3),
            k.unsqueeze(1).expand(spread),
            v.unsqueeze(1).expand(spread),
            attn_mask=read.mask,
            is_causal=read.causal,
        )  # [kv_heads, group, count, dim]
    return out.permute(2, 0, 1, 3).reshape(count, heads * dim)


def exact_pieces(
    count: int, position: int, low: int, window: int | None, group: int, device: torch.device | str = "cpu"
) -> tuple[Piece, ...]:
    """How exact mode cuts a segment whose keys are read from position ``low``, a multiple of ``KEY_SPLIT``, on."""
    pieces = []
    for first in range(0, count, QUERY_PIECE):
        last = min(count, first + QUERY_PIECE)
        start, end = position + first, position + last
        begin = low if window is None else max(low, (start + 1 - window) // KEY_SPLIT * KEY_SPLIT)
        splits = -(-(end - begin) // KEY_SPLIT)
        rows = -(-(last - first) * group // ROW_PAD) * ROW_PAD
        queries = (start + torch.arange(rows) // group).clamp_(max=end - 1)  # surplus rows repeat the last token's view
        seen = visible(queries, torch.arange(begin, begin + splits * KEY_SPLIT), window)
        hidden = ~seen.view(rows, splits, KEY_SPLIT).transpose(0, 1).contiguous()
        pieces.append(Piece(first, last, slice(begin - low, end - low), rows, hidden.to(device)))
    return tuple(pieces)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Attention whose result per query depends on nothing but the query, its position and its keys.

    Runs of keys that a query does not see contribute exact zeros, so how many of them are in the call does not matter.
    """
    outs = [_exact_piece(q[p.first : p.last], k[:, p.keys], v[:, p.keys], p) for p in pieces]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _exact_piece(q: Tensor, k: Tensor, v: Tensor, piece: Piece) -> Tensor:
    count, heads, dim = q.shape
    kv_heads, rows, splits = k.shape[0], piece.rows, len(piece.hidden)
    group = heads // kv_heads
    keys, values = _whole_splits(k, splits), _whole_splits(v, splits)  # [kv_heads * splits, KEY_SPLIT, dim]
    queries = q.new_zeros(kv_heads, rows, dim)
    queries[:, : count * group] = q.reshape(count, kv_heads, group, dim).transpose(0, 1).reshape(kv_heads, -1, dim)
    spread = queries.unsqueeze(1).expand(kv_heads, splits, rows, dim).reshape(kv_heads * splits, rows, dim)
    scores = torch.bmm(spread, keys.transpose(1, 2)).view(kv_heads, splits, rows, KEY_SPLIT).mul_(dim**-0.5)
    scores.masked_fill_(piece.hidden, float("-inf"))
    weights = scores.sub_(scores.amax(dim=(1, 3), keepdim=True)).exp_()
    sums = weights.sum(dim=-1)  # [kv_heads, splits, rows]
    outs = torch.bmm(weights.view(-1, rows, KEY_SPLIT), values).view(kv_heads, splits, rows, dim)
    total, out = torch.zeros_like(sums[:, 0]), torch.zeros_like(outs[:, 0])
    for split in range(splits):  # one after another: the order of a sum must not depend on how many there are
        total += sums[:, split]
        out += outs[:, split]
    out /= total.unsqueeze(-1)
    return out[:, : count * group].reshape(kv_heads, count, group * dim).transpose(0, 1).reshape(count, heads * dim)


def _whole_splits(x: Tensor, splits: int) -> Tensor:
    heads, length, dim = x.shape
    whole = x.new_zeros(heads, splits * KEY_SPLIT, dim)
    whole[:, :length] = x
    return whole.view(heads * splits, KEY_SPLIT, dim)
