"""A toy span whose outputs tell everything that went into a row's cache: one wrong, missing or doubled token shows."""

from __future__ import annotations

import hashlib

from p2pllm.wire import messages as m
from tests.wire.strategies import tensor_of

HIDDEN = 8
TOKEN = m.plain_size("int8", 1, HIDDEN)

Rows = list[tuple[bytes, ...]]


def pack(tokens: list[bytes]) -> tuple[m.TensorHeader, bytes]:
    """Tokens as a message's payload."""
    return tensor_of(len(tokens), HIDDEN), b"".join(tokens)


def unpack(payload: bytes | bytearray | memoryview) -> list[bytes]:
    data = bytes(payload)
    return [data[i : i + TOKEN] for i in range(0, len(data), TOKEN)]


def new_token(value: int) -> bytes:
    return value.to_bytes(TOKEN, "big")


def run(
    rows: Rows,
    positions: tuple[int, ...],
    counts: tuple[int, ...],
    sources: tuple[int, ...],
    tokens: list[bytes],
    tail: int,
    salt: bytes = b"",
) -> tuple[Rows, list[bytes]]:
    """The rows after a step, and its outputs: each new token's is a digest of all that its row holds up to it."""
    if sources:
        rows = [rows[source] for source in sources]
    after: Rows = []
    out: list[bytes] = []
    start = 0
    for row, position, count in zip(rows, positions, counts, strict=True):
        assert position <= len(row)
        new = (*row[:position], *tokens[start : start + count])
        outputs = [
            hashlib.blake2b(salt + b"".join(new[: position + i + 1]), digest_size=TOKEN).digest() for i in range(count)
        ]
        out += outputs if tail < 0 else outputs[max(0, count - tail) :]
        after.append(new)
        start += count
    return after, out
