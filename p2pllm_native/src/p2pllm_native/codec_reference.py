"""The activation codec in NumPy: the specification of the C++ one, its test and its fallback.

Invariants: byte for byte what ``csrc/codec.cpp`` gives, on every instruction set; arithmetic is IEEE float32, ties to
even; peer bytes raise ``ValueError`` and nothing else. An int8 payload of T tokens, little endian::

    scale f32[T] | exponent i8[T] | index u16[T, k] | value f16[T, k] | level i8[T, H]

Per token, the k elements of largest magnitude (the lower index first among equals) are outliers: ``value *
2**exponent``, with the smallest exponent >= 0 at which they fit a half. Every other element is ``level * scale``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HIDDEN_MAX = 65536
"""Outlier indices are 16 bits wide."""

STORAGE: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "bf16": np.dtype("<u2"), "fp16": np.dtype("<f2")}
"""How each element type lies in memory; NumPy has no bfloat16, so its bit patterns travel as uint16."""

_LARGEST_ENCODED = np.uint32(0x7F000000)  # 2^127: twice as much could round up to infinity on the way back
_QUIET_ROW = np.uint32(0x0D800000)  # 2^-100: below it a scale, or its inverse, leaves the normal range
_INFINITY = np.uint32(0x7F800000)
_OVERFLOW = {"fp32": _INFINITY, "bf16": np.uint32(0x7F7F8000), "fp16": np.uint32(0x477FF000)}
_EXPONENT_MAX = 126
_CHUNK = 1 << 18  # elements worked on at once: temporaries stay in the cache and are bounded


def outliers(hidden: int) -> int:
    """How many elements of a token travel in fp16: a pure function of the hidden size, so it needs no field."""
    return min(16, max(1, hidden // 64))


def int8_size(tokens: int, hidden: int) -> int:
    """Exact bytes of an int8 payload."""
    return tokens * (5 + 4 * outliers(hidden) + hidden)


def encode_int8(x: Array, dtype: str, out: Array) -> None:
    """Encode ``x`` [T, H] (stored as ``dtype``) into ``out``, a uint8 array of the payload's size.

    Raises:
        ValueError: a value is not finite, or beyond 2^127.
    """
    tokens, hidden = x.shape
    fields = _fields(out, tokens, hidden)
    with np.errstate(over="ignore", under="ignore"):  # outliers overflow as levels, but their levels are zero anyway
        for rows in _chunks(tokens, hidden):
            _encode_rows(_widen(x[rows], dtype), *(field[rows] for field in fields))


def decode_int8(payload: Array, dtype: str, out: Array) -> None:
    """Decode ``payload`` (uint8) into ``out`` [T, H], stored as ``dtype``.

    Raises:
        ValueError: the bytes are no such payload, or a value does not fit ``dtype``.
    """
    tokens, hidden = out.shape
    fields = _fields(payload, tokens, hidden)
    with np.errstate(over="ignore", under="ignore"):  # what overflows is refused when it is narrowed
        for rows in _chunks(tokens, hidden):
            out[rows] = _narrow(_decode_rows(*(field[rows] for field in fields)), dtype)


def convert(source: Array, from_dtype: str, out: Array, to_dtype: str) -> None:
    """Round ``source`` to ``to_dtype``, ties to even; the arrays have one shape.

    Raises:
        ValueError: a value is not finite, or does not fit.
    """
    flat, target = source.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        row = _widen(flat[part], from_dtype)
        if (_magnitude(row) >= _INFINITY).any():
            raise ValueError("a value is not finite")
        with np.errstate(under="ignore"):
            target[part] = flat[part] if from_dtype == to_dtype else _narrow(row, to_dtype)


def _encode_rows(x: Array, scale: Array, exponent: Array, index: Array, value: Array, level: Array) -> None:
    hidden = x.shape[1]
    k = outliers(hidden)
    magnitude = _magnitude(x)
    top = magnitude.max(axis=1, initial=np.uint32(0))
    if (top > _LARGEST_ENCODED).any():
        raise ValueError("a value is not finite" if (top >= _INFINITY).any() else "a value is beyond 2^127")

    # Unique keys that order as (magnitude, lower index first): the k largest are a set, whatever the algorithm.
    keys = magnitude.astype(np.uint64) << np.uint64(32) | (np.uint64(0xFFFFFFFF) - np.arange(hidden, dtype=np.uint64))
    picked = np.sort(np.argpartition(keys, hidden - k, axis=1)[:, hidden - k :], axis=1)
    exponent[:] = np.maximum(
        (top >> np.uint32(23)).astype(np.int32) - 142 + ((top & np.uint32(0x7FFFFF)) > np.uint32(0x7FE000)), 0
    )
    index[:] = picked
    value[:] = np.ldexp(np.take_along_axis(x, picked, axis=1), -exponent[:, None].astype(np.int32)).astype("<f2")

    np.put_along_axis(magnitude, picked, np.uint32(0), axis=1)
    rest = magnitude.max(axis=1, initial=np.uint32(0))
    quiet = rest < _QUIET_ROW
    absmax = np.where(quiet, np.float32(1), rest.view(np.float32))
    scale[:] = np.where(quiet, np.float32(0), absmax / np.float32(127))
    inverse = np.where(quiet, np.float32(0), np.float32(127) / absmax)
    level[:] = np.rint(np.clip(x * inverse[:, None], np.float32(-127), np.float32(127))).astype(np.int8)
    np.put_along_axis(level, picked, np.int8(0), axis=1)


def _decode_rows(scale: Array, exponent: Array, index: Array, value: Array, level: Array) -> Array:
    hidden = level.shape[1]
    if (np.ascontiguousarray(scale).view(np.uint32) >= _INFINITY).any():  # a sign bit makes it larger still
        raise ValueError("a scale is negative or not finite")
    if (exponent < 0).any() or (exponent > _EXPONENT_MAX).any():
        raise ValueError("an exponent is outside 0..126")
    picked = index.astype(np.int64)
    if (picked >= hidden).any() or (np.diff(picked, axis=1) <= 0).any():
        raise ValueError("outlier indices do not ascend within the row")
    if not np.isfinite(value).all():
        raise ValueError("an outlier is not finite")
    x = level.astype(np.float32) * scale[:, None]
    np.put_along_axis(x, picked, np.ldexp(value.astype(np.float32), exponent[:, None].astype(np.int32)), axis=1)
    return x


def _fields(payload: Array, tokens: int, hidden: int) -> tuple[Array, Array, Array, Array, Array]:
    """Views of the payload's five arrays, in the order of the layout."""
    k = outliers(hidden)
    cuts = np.cumsum([0, 4 * tokens, tokens, 2 * k * tokens, 2 * k * tokens, hidden * tokens]).tolist()
    scale, exponent, index, value, level = (payload[a:b] for a, b in pairwise(cuts))
    return (
        scale.view("<f4"),
        exponent.view(np.int8),
        index.view("<u2").reshape(tokens, k),
        value.view("<f2").reshape(tokens, k),
        level.view(np.int8).reshape(tokens, hidden),
    )


def _chunks(tokens: int, hidden: int) -> list[slice]:
    step = max(1, _CHUNK // hidden)
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def _magnitude(x: Array) -> Array:
    """A float's bits without its sign: ordered as the magnitudes are, infinities and NaN above all others."""
    return np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _widen(x: Array, dtype: str) -> Array:
    if dtype == "bf16":
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.astype(np.float32, copy=False)


def _narrow(x: Array, dtype: str) -> Array:
    if (_magnitude(x) >= _OVERFLOW[dtype]).any():
        raise ValueError("a value is too large for the target dtype")
    if dtype == "bf16":
        bits = np.ascontiguousarray(x).view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return x.astype(STORAGE[dtype], copy=False)
