"""Tokens cut out of encoded tensors and put together anew, without decoding anything.

Every codec keeps a token's numbers apart from other tokens' numbers, so a tensor made of tokens of several others holds
the very bytes that each of them travelled as. This is what makes a replay bit for bit what was sent.

Invariants: pure; payloads are uncompressed and of the size that their codec and shape give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pllm.wire.ledger import Payload
from p2pllm.wire.messages import TensorHeader, plain_size


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``start`` to ``stop`` of a payload that holds ``tokens`` of them."""

    payload: Payload
    tokens: int
    start: int
    stop: int


def join(codec: str, hidden: int, pieces: Sequence[Piece]) -> tuple[TensorHeader, bytes]:
    """One tensor of the pieces' tokens, in their order."""
    tokens = sum(piece.stop - piece.start for piece in pieces)
    header = TensorHeader(codec, (tokens, hidden), plain_size(codec, tokens, hidden))
    if len(pieces) == 1 and tokens == pieces[0].tokens:
        return header, bytes(pieces[0].payload)
    views = [memoryview(piece.payload).cast("B") for piece in pieces]
    parts: list[memoryview] = []
    before = 0
    for width in widths(codec, hidden):
        for piece, view in zip(pieces, views, strict=True):
            base = before * piece.tokens
            parts.append(view[base + piece.start * width : base + piece.stop * width])
        before += width
    return header, b"".join(parts)


def widths(codec: str, hidden: int) -> tuple[int, ...]:
    """Bytes of one token in each of a payload's arrays, one after the other."""
    if codec != "int8":
        return (plain_size(codec, 1, hidden),)
    outliers = min(16, max(1, hidden // 64))
    return (4, 1, 2 * outliers, 2 * outliers, hidden)
