"""Frames: checksummed cuts of a byte stream, and the messages that they carry.

    u32 length of the rest | u8 version | u8 kind | u16 header length | header | raw bytes | u32 CRC-32 of all before

A message is one head frame (kind 0, msgpack header) and as many continuation frames (kind 1, no header) as its payload
needs; messages of one stream never interleave.

Invariants: a reader holds at most one unfinished frame and one unfinished payload, and memory only for bytes that have
arrived; a flipped, missing or surplus byte is RemoteProtocolError; after an error the reader stays dead.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from p2pllm.config import WireLimits
from p2pllm.errors import RemoteProtocolError
from p2pllm.wire.messages import Message
from p2pllm.wire.schema import Head, schema_for

VERSION = 1
HEAD = 0
CONTINUATION = 1

_PREFIX = struct.Struct(">IBBH")
_LENGTH = struct.Struct(">I")
_OVERHEAD = _PREFIX.size + _LENGTH.size
_LIMITS = WireLimits()

Payload = bytes | memoryview
"""A payload as read: immutable either way."""


def encode_message(
    message: Message, payload: bytes | bytearray | memoryview = b"", limits: WireLimits = _LIMITS
) -> bytes:
    """A message in one piece, so that it is one write.

    Raises:
        LocalProtocolError: the message is not valid, or is not the one that ``payload`` belongs to.
    """
    header, body = schema_for(limits).pack(message, payload)
    if _OVERHEAD + len(header) + len(body) <= limits.frame_bytes_max:
        return _frame(HEAD, header, body)
    return b"".join(_frames(header, body, limits))


def encode_frames(
    message: Message, payload: bytes | bytearray | memoryview = b"", limits: WireLimits = _LIMITS
) -> Iterator[bytes]:
    """A message frame by frame (each ≤ 64 KiB), so that somebody's step can go between two frames of a long one.

    Raises:
        LocalProtocolError: as ``encode_message``, and at once, not at the first frame.
    """
    header, body = schema_for(limits).pack(message, payload)
    return _frames(header, body, limits)


def _frames(header: bytes, body: bytes | bytearray | memoryview, limits: WireLimits) -> Iterator[bytes]:
    view = memoryview(body).cast("B") if len(body) else memoryview(b"")
    room = limits.frame_bytes_max - _OVERHEAD
    first = room - len(header)
    yield _frame(HEAD, header, view[:first])
    for start in range(first, len(view), room):
        yield _frame(CONTINUATION, b"", view[start : start + room])


def _frame(kind: int, header: bytes, body: bytes | bytearray | memoryview) -> bytes:
    prefix = _PREFIX.pack(_OVERHEAD - 4 + len(header) + len(body), VERSION, kind, len(header))
    rest = b"".join((prefix, header, body))
    return rest + _LENGTH.pack(zlib.crc32(rest))


class MessageReader:
    """Turns the bytes of one stream into messages, however they are cut.

    ``feed`` what arrived and get the messages that it completed; call ``eof`` when the stream ends.
    """

    def __init__(self, limits: WireLimits = _LIMITS) -> None:
        self._limits = limits
        self._schema = schema_for(limits)
        self._buffer = bytearray()
        self._need = _LENGTH.size  # bytes that must be there before the next look
        self._head: Head | None = None
        self._payload = bytearray()
        self._dead: str | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[Message, Payload]]:
        """The messages that ``data`` completes, with their payloads (``b""`` where there is none).

        When a bad frame follows good ones within ``data`` only the error is raised: the stream is dead either way, and
        every answer can be asked for again.

        Raises:
            RemoteProtocolError: the peer broke the protocol; every further call raises the same.
        """
        if self._dead is not None:
            raise RemoteProtocolError(self._dead)
        try:
            return self._feed(data)
        except RemoteProtocolError as exc:
            self._dead = str(exc)
            self._buffer = bytearray()
            self._payload = bytearray()
            self._head = None
            raise

    def eof(self) -> None:
        """The stream has ended.

        Raises:
            RemoteProtocolError: in the middle of a message, or the reader is dead.
        """
        if self._dead is None and (self._buffer or self._head is not None):
            self._dead = "the stream ended in the middle of a message"
        if self._dead is not None:
            raise RemoteProtocolError(self._dead)

    def _feed(self, data: bytes | bytearray | memoryview) -> list[tuple[Message, Payload]]:
        if self._buffer or len(data) < self._need:
            # Nothing is parsed, nor copied again, before a whole frame is there: one-byte chunks cost no more.
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
            self._buffer = bytearray()
        messages: list[tuple[Message, Payload]] = []
        view = memoryview(data)
        end = len(view)
        start = 0
        while True:
            if end - start < _LENGTH.size:
                self._need = _LENGTH.size
                break
            size = _LENGTH.size + _LENGTH.unpack_from(view, start)[0]
            if not _OVERHEAD <= size <= self._limits.frame_bytes_max:
                raise RemoteProtocolError(f"frame of {size} bytes; at most {self._limits.frame_bytes_max} are allowed")
            if end - start < size:
                self._need = size
                break
            done = self._frame(view[start : start + size])
            if done is not None:
                messages.append(done)
            start += size
        if start < end:
            self._buffer += view[start:]
        return messages

    def _frame(self, frame: memoryview) -> tuple[Message, Payload] | None:
        """One whole frame; the message, if it completes one."""
        _, version, kind, header_size = _PREFIX.unpack_from(frame)
        if version != VERSION:
            raise RemoteProtocolError(f"frame of protocol version {version}; this side speaks version {VERSION}")
        if _LENGTH.unpack_from(frame, len(frame) - _LENGTH.size)[0] != zlib.crc32(frame[: -_LENGTH.size]):
            raise RemoteProtocolError("frame with a wrong checksum")
        body = _PREFIX.size + header_size
        raw = frame[body : -_LENGTH.size]
        if body > len(frame) - _LENGTH.size or header_size > self._limits.header_bytes_max:
            raise RemoteProtocolError(f"frame with a header of {header_size} bytes")
        if kind == HEAD:
            return self._begin(frame[_PREFIX.size : body], raw)
        if kind == CONTINUATION:
            return self._continue(header_size, raw)
        raise RemoteProtocolError(f"frame of unknown kind {kind}")

    def _begin(self, header: memoryview, raw: memoryview) -> tuple[Message, Payload] | None:
        if self._head is not None:
            raise RemoteProtocolError("a new message before the end of the last one")
        head = self._schema.unpack(header)
        if len(raw) == head.payload_size:
            return head.finish(bytes(raw))
        if len(raw) > head.payload_size:
            raise RemoteProtocolError("more payload than declared")
        self._head = head
        self._payload += raw
        return None

    def _continue(self, header_size: int, raw: memoryview) -> tuple[Message, Payload] | None:
        head = self._head
        if head is None:
            raise RemoteProtocolError("a continuation of no message")
        if header_size or not len(raw):
            raise RemoteProtocolError("a continuation with a header, or without payload")
        if len(self._payload) + len(raw) > head.payload_size:
            raise RemoteProtocolError("more payload than declared")
        self._payload += raw
        if len(self._payload) < head.payload_size:
            return None
        payload = self._payload
        self._head = None
        self._payload = bytearray()
        return head.finish(memoryview(payload).toreadonly())
