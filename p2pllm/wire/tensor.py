"""Activations as bytes: the tensor codec, in both directions.

Invariants: sans-I/O, NumPy only (torch hands over ``t.view(torch.uint16).numpy()`` and a dtype tag). Whatever a peer
sends, ``decode`` raises ``RemoteProtocolError`` and nothing else, allocates nothing before the size is known to be
right, and returns finite numbers only. ``encode`` lets no number out that a peer of the same dtype would refuse. Equal
inputs give equal bytes on every machine, so a replay is bit for bit what was sent.

Codecs: ``int8`` (a token's largest channels in fp16, the rest as 8-bit levels; ``docs/protocol.md`` has the layout),
and ``bf16``, ``fp16``, ``fp32``: plain little-endian arrays. Dtypes of arrays: ``fp32``, ``fp16``, ``bf16`` (uint16
bit patterns).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from p2pllm.config import MIB, WireLimits
from p2pllm.errors import RemoteProtocolError
from p2pllm.wire.messages import TensorHeader
from p2pllm_native import codec as native

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

CODECS = ("int8", "bf16", "fp16", "fp32")
DTYPES = native.STORAGE

_ZSTD_LEVEL = 1  # higher levels are slower and no smaller on such bytes
_ZSTD_WINDOW_MAX = 8 * MIB  # what RFC 8878 asks every decoder to have
_PAYLOAD_MAX = WireLimits().payload_bytes_max


def payload_size(codec: str, tokens: int, hidden: int) -> int:
    """Exact bytes of an uncompressed payload; what a receiver compares with.

    Raises:
        ValueError: no such codec, or no such shape.
    """
    if codec not in CODECS:
        raise ValueError(f"unknown tensor codec {codec!r}")
    if tokens < 0 or not 1 <= hidden <= native.HIDDEN_MAX:
        raise ValueError(f"no tensor has shape ({tokens}, {hidden})")
    return native.int8_size(tokens, hidden) if codec == "int8" else tokens * hidden * DTYPES[codec].itemsize


def encode(
    x: Array, dtype: str, codec: str, *, zstd: bool = False, out: bytearray | memoryview | None = None
) -> tuple[TensorHeader, bytes | memoryview]:
    """Encode ``x`` [T, H], stored as ``dtype``.

    Args:
        zstd: compress, where that makes it smaller; the header says whether it did.
        out: exactly ``payload_size`` writable bytes to encode into; for large tensors, fresh memory costs more than the
            encoding does.

    Raises:
        ValueError: a value is not finite or out of the codec's range, or an argument is wrong: our side's fault.
    """
    x = _checked(x, dtype)
    tokens, hidden = x.shape
    size = payload_size(codec, tokens, hidden)
    payload: bytes | memoryview
    if codec == "int8":
        payload = native.encode_int8(x, dtype, out)
    else:
        target = np.empty(size, np.uint8) if out is None else np.frombuffer(out, np.uint8)
        if target.size != size:
            raise ValueError(f"out: expected {size} bytes, got {target.size}")
        native.convert(x, dtype, target.view(DTYPES[codec]), codec)
        payload = target.data
    if zstd and tokens:
        packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(payload)
        if len(packed) < size:
            return TensorHeader(codec, (tokens, hidden), len(packed), True), packed
    return TensorHeader(codec, (tokens, hidden), size), payload


def decode(
    header: TensorHeader, payload: Buffer, dtype: str, *, out: Array | None = None, size_max: int = _PAYLOAD_MAX
) -> Array:
    """Decode a peer's payload into a [T, H] array stored as ``dtype``.

    Args:
        out: a C-contiguous array of that shape and dtype to decode into; undefined after an error.
        size_max: payloads that are larger after decompression are refused.

    Raises:
        RemoteProtocolError: header and payload do not agree, or the payload is not a tensor of finite numbers.
        ValueError: ``dtype`` or ``out`` is wrong: our side's fault.
    """
    tokens, hidden = header.shape
    result = None if out is None else _checked(out, dtype)
    if result is not None and (result is not out or result.shape != (tokens, hidden)):
        raise ValueError(f"out: expected a contiguous array of shape ({tokens}, {hidden})")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}")
    try:
        size = payload_size(header.codec, tokens, hidden)
    except ValueError as exc:
        raise RemoteProtocolError(str(exc)) from exc
    if len(payload) != header.size:
        raise RemoteProtocolError(f"tensor of {header.size} bytes came with {len(payload)}")
    if size > size_max:
        raise RemoteProtocolError(f"tensor of {size} bytes; at most {size_max} are taken")
    if header.zstd:
        payload = _decompress(payload, size)
    elif header.size != size:
        raise RemoteProtocolError(
            f"{header.codec} tensor of shape ({tokens}, {hidden}) has {header.size} bytes, not {size}"
        )
    if result is None:
        result = np.empty((tokens, hidden), DTYPES[dtype])
    try:
        if header.codec == "int8":
            native.decode_int8(payload, dtype, result)
        else:
            native.convert(payload, header.codec, result, dtype)
    except ValueError as exc:
        raise RemoteProtocolError(f"bad {header.codec} tensor: {exc}") from exc
    return result


def round_trip(x: Array, dtype: str, codec: str) -> Array:
    """What a peer of the same dtype would have seen: bit for bit ``decode(*encode(x, dtype, codec), dtype)``.

    Servers apply it at the codec points inside their span, so that another cut of the chain gives the same tokens.

    Raises:
        ValueError: a value is not finite or out of the codec's range, or an argument is wrong.
    """
    header, payload = encode(x, dtype, codec)
    result = np.empty(header.shape, DTYPES[dtype])
    if codec == "int8":
        native.decode_int8(payload, dtype, result)
    else:
        native.convert(payload, codec, result, dtype)
    return result


def plain(header: TensorHeader, payload: Buffer) -> tuple[TensorHeader, Buffer]:
    """The same tensor, not compressed.

    Raises:
        RemoteProtocolError: the payload does not unpack to what the header says.
    """
    if not header.zstd:
        return header, payload
    size = payload_size(header.codec, *header.shape)
    return TensorHeader(header.codec, header.shape, size), _decompress(payload, size)


def _checked(x: Array, dtype: str) -> Array:
    storage = DTYPES.get(dtype)
    if storage is None:
        raise ValueError(f"unknown dtype {dtype!r}")
    if x.ndim != 2 or x.dtype != storage:
        raise ValueError(f"{dtype} activations are a [T, H] array of {storage}, not {x.dtype} of shape {x.shape}")
    return np.ascontiguousarray(x)


def _decompress(payload: Buffer, size: int) -> bytes:
    """Unpack one zstd frame of exactly ``size`` bytes; a frame that says otherwise is refused before allocation."""
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != size:  # also when the frame does not say: that is a huge number here
            raise RemoteProtocolError(f"compressed tensor unpacks to {frame.content_size} bytes, not {size}")
        unpacker = zstandard.ZstdDecompressor(max_window_size=max(_ZSTD_WINDOW_MAX, size))
        raw = unpacker.decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise RemoteProtocolError(f"compressed tensor: {exc}") from exc
    if len(raw) != size:
        raise RemoteProtocolError(f"compressed tensor unpacks to {len(raw)} bytes, not {size}")
    return raw
