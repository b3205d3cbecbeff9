"""Codecs of single header fields: a Python value to msgpack and back, with bounds.

Invariants: ``load`` accepts whatever msgpack can produce, and returns a value within the limits or raises
RemoteProtocolError; a bool is never taken for an integer. ``dump`` is its inverse for values of ours.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from p2pllm.config import WireLimits
from p2pllm.errors import RemoteProtocolError
from p2pllm.types import Span
from p2pllm.wire.messages import DIGEST_BYTES, FaultKind

CODECS = ("int8", "bf16", "fp16", "fp32")
"""Tensor codecs in the order of their wire numbers."""
CODEC_NUMBERS = {name: number for number, name in enumerate(CODECS)}

_FAULT_KINDS = (FaultKind.CLIENT, FaultKind.BUSY, FaultKind.GONE, FaultKind.INTERNAL)
_BASE58 = re.compile(r"[1-9A-HJ-NP-Za-km-z]{1,128}")
_TOKEN = re.compile(r"[0-9A-Za-z._-]{1,128}")
_NAME_CHARS_MAX = 200
_SECONDS_MAX = 1e6
_U32 = (1 << 32) - 1


class Field(NamedTuple):
    """How one field travels."""

    load: Callable[[Any], Any]
    dump: Callable[[Any], Any]


def _refuse(reason: str) -> NoReturn:
    raise RemoteProtocolError(reason)


def _same(value: Any) -> Any:
    return value


def _integer(low: int, high: int) -> Field:
    def load(raw: Any) -> int:
        if type(raw) is not int or not low <= raw <= high:
            _refuse(f"{raw!r:.40} is no integer in {low}..{high}")
        return raw

    return Field(load, _same)


def dump_ints(values: Sequence[int]) -> bytes:
    """Non-negative integers as packed big-endian u32."""
    try:
        return struct.pack(f">{len(values)}I", *values)
    except struct.error:
        raise RemoteProtocolError("an integer of a list does not fit into 32 bits") from None


def load_ints(raw: object, count_max: int, value_max: int) -> tuple[int, ...]:
    """Inverse of ``dump_ints``, bounded in number and value."""
    if type(raw) is not bytes or len(raw) % 4:
        _refuse("a list of integers is a byte string of 4 bytes each")
    count = len(raw) // 4
    if count > count_max:
        _refuse(f"a list of {count} integers; at most {count_max} are allowed")
    values = struct.unpack(f">{count}I", raw)
    if values and max(values) > value_max:
        _refuse(f"{max(values)} in a list of integers of at most {value_max}")
    return values


def _integers(count_max: int, value_max: int) -> Field:
    return Field(lambda raw: load_ints(raw, count_max, value_max), dump_ints)


def _digests(count_max: int) -> Field:
    def load(raw: Any) -> bytes:
        if type(raw) is not bytes or len(raw) % DIGEST_BYTES or len(raw) > count_max * DIGEST_BYTES:
            _refuse(f"not a byte string of at most {count_max} digests of {DIGEST_BYTES} bytes")
        return raw

    return Field(load, _same)


def _seconds(cap: float | None = None) -> Field:
    def load(raw: Any) -> float:
        if type(raw) is not float and type(raw) is not int:
            _refuse(f"{raw!r:.40} is no number of seconds")
        if not (math.isfinite(raw) and raw >= 0):
            _refuse(f"{raw!r:.40} is no number of seconds")
        if cap is not None:
            return min(float(raw), cap)
        if raw > _SECONDS_MAX:
            _refuse(f"{raw!r:.40} seconds are too many")
        return float(raw)

    return Field(load, float)


def _pattern(pattern: re.Pattern[str], what: str) -> Field:
    def load(raw: Any) -> str:
        if type(raw) is not str or not pattern.fullmatch(raw):
            _refuse(f"{raw!r:.40} is no {what}")
        return raw

    return Field(load, _same)


def _text(chars_max: int) -> Field:
    def load(raw: Any) -> str:
        if type(raw) is not str or len(raw) > chars_max or not raw.isprintable():
            _refuse(f"{raw!r:.40} is no line of at most {chars_max} characters")
        return raw

    return Field(load, _same)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _reason(chars_max: int) -> Field:
    """A line for people: made printable on both sides, so that no peer writes escape codes to a terminal."""

    def load(raw: Any) -> str:
        if type(raw) is not str or len(raw) > chars_max:
            _refuse(f"a reason is a text of at most {chars_max} characters")
        return _printable(raw)

    return Field(load, lambda text: _printable(text)[:chars_max])


def _bytes(low: int, high: int) -> Field:
    def load(raw: Any) -> bytes:
        if type(raw) is not bytes or not low <= len(raw) <= high:
            _refuse(f"not a byte string of {low} to {high} bytes")
        return raw

    return Field(load, _same)


def _span(blocks_max: int) -> Field:
    def load(raw: Any) -> Span:
        if type(raw) is not list or len(raw) != 2 or type(raw[0]) is not int or type(raw[1]) is not int:
            _refuse("a span is two integers")
        if not 0 <= raw[0] < raw[1] <= blocks_max:
            _refuse(f"[{raw[0]}, {raw[1]}) is no span of at most {blocks_max} blocks")
        return Span(raw[0], raw[1])

    return Field(load, lambda span: [span.start, span.end])


def _choice(values: Sequence[Any], what: str) -> Field:
    numbers = {value: number for number, value in enumerate(values)}

    def load(raw: Any) -> Any:
        if type(raw) is not int or not 0 <= raw < len(values):
            _refuse(f"unknown {what} {raw!r:.40}")
        return values[raw]

    def dump(value: Any) -> int:
        if value not in numbers:
            _refuse(f"unknown {what} {value!r:.40}")
        return numbers[value]

    return Field(load, dump)


def _boolean() -> Field:
    def load(raw: Any) -> bool:
        if type(raw) is not bool:
            _refuse(f"{raw!r:.40} is no boolean")
        return raw

    return Field(load, _same)


def codecs(limits: WireLimits) -> dict[str, Field]:
    """Every field codec that the schema names, bound to ``limits``."""
    return {
        "session": _bytes(16, 16),
        "u32": _integer(0, _U32),
        "u64": _integer(0, (1 << 64) - 1),
        "id_or_none": _integer(-1, _U32),
        "tail": _integer(0, limits.step_tokens_max),
        "rows": _integer(1, limits.rows_max),
        "length": _integer(1, limits.length_max),
        "page": _integer(1, limits.records_per_page_max),
        "bool": _boolean(),
        "seconds": _seconds(),
        "retry_after": _seconds(limits.retry_after_s_max),
        "model": _pattern(_TOKEN, "model id"),
        "peer": _pattern(_BASE58, "peer id"),
        "name": _text(_NAME_CHARS_MAX),
        "reason": _reason(limits.reason_chars_max),
        "record": _bytes(0, limits.record_bytes_max),
        "span": _span(limits.blocks_max),
        "codec": _choice(CODECS, "codec"),
        "fault_kind": _choice(_FAULT_KINDS, "kind of fault"),
        "points": _integers(limits.blocks_max + 1, limits.blocks_max),
        "positions": _integers(limits.rows_max, limits.length_max),
        "counts": _integers(limits.rows_max, limits.step_tokens_max),
        "digests": _digests(limits.digests_max),
        "row_indices": _integers(limits.rows_max, limits.rows_max - 1),
    }
