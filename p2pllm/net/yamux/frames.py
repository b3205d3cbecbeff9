"""Yamux frames as bytes: pure, no I/O.

Invariants: a header is 12 bytes, big endian: version 0, type, flags, stream id, length. Only DATA carries a body, of
``length`` bytes. Whatever a peer sends either parses or raises ``RemoteProtocolError``; bodies are never buffered here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from p2pllm.errors import RemoteProtocolError

HEADER = struct.Struct("!BBHII")
HEADER_BYTES = 12

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

WINDOW_BYTES_INITIAL = 256 * 1024
"""Both sides start with so much credit, by the specification."""


def header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """A frame's first twelve bytes; for all kinds but DATA the whole frame."""
    return HEADER.pack(0, kind, flags, stream_id, length)


@dataclass(frozen=True, slots=True)
class Frame:
    """A header that arrived. The body of a DATA frame follows as ``Body`` pieces."""

    kind: int
    flags: int
    stream_id: int
    length: int


@dataclass(frozen=True, slots=True)
class Body:
    """A piece of the last DATA frame's body."""

    stream_id: int
    data: bytes


class FrameParser:
    """Cuts a byte stream into frames, however it was cut before."""

    def __init__(self) -> None:
        self._head = b""
        self._stream_id = 0
        self._body_left = 0

    def whole(self, data: bytes) -> tuple[int, int] | None:
        """Stream id and body length if ``data`` is exactly one plain DATA frame, as nearly every record is; else None.

        The caller takes the body, and must not feed it again.
        """
        if self._head or self._body_left or len(data) < HEADER_BYTES:
            return None
        version, kind, flags, stream_id, length = HEADER.unpack_from(data)
        plain = version == 0 and kind == DATA and flags == 0 and length == len(data) - HEADER_BYTES
        return (stream_id, length) if plain else None

    def feed(self, data: bytes) -> Iterator[Frame | Body]:
        """Frames and body pieces in ``data``; the rest waits for the next call.

        Raises:
            RemoteProtocolError: not yamux.
        """
        if self._head:
            data = self._head + data
            self._head = b""
        at, end = 0, len(data)
        while at < end:
            if self._body_left:
                size = min(self._body_left, end - at)
                self._body_left -= size
                yield Body(self._stream_id, data if size == end and at == 0 else data[at : at + size])
                at += size
                continue
            if end - at < HEADER_BYTES:
                self._head = data[at:]
                return
            version, kind, flags, stream_id, length = HEADER.unpack_from(data, at)
            if version != 0 or kind > GO_AWAY or flags & ~15:
                raise RemoteProtocolError(f"not a yamux frame: version {version}, type {kind}, flags {flags}")
            at += HEADER_BYTES
            if kind == DATA:
                self._stream_id, self._body_left = stream_id, length
            yield Frame(kind, flags, stream_id, length)
