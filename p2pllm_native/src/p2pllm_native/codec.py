"""The activation codec: C++ where it was built, NumPy elsewhere, the same bytes from both.

Invariants: results never depend on which implementation or instruction set runs; peer bytes raise ``ValueError`` and
nothing else; nothing beyond the output is allocated in proportion to it. ``P2PLLM_NATIVE_ISA`` (``avx512``, ``avx2``,
``neon``, ``scalar`` or ``numpy``) picks one, for tests and measurements.

Element types are ``fp32`` (float32), ``fp16`` (float16) and ``bf16`` (uint16 bit patterns; NumPy has no bfloat16).
"""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pllm_native import codec_reference as _reference
from p2pllm_native.codec_reference import HIDDEN_MAX, STORAGE, int8_size, outliers

__all__ = [
    "HIDDEN_MAX",
    "STORAGE",
    "available",
    "convert",
    "decode_int8",
    "encode_int8",
    "int8_size",
    "isa",
    "outliers",
    "use",
]

_logger = logging.getLogger(__name__)
_CODES = {"fp32": 0, "bf16": 1, "fp16": 2}
Array = npt.NDArray[Any]

_extension: Any = None
_isa = "numpy"


def available() -> tuple[str, ...]:
    """What ``use`` accepts on this machine, best first; ``numpy`` is always the last."""
    built = _load()
    return (*built.available(), "numpy") if built is not None else ("numpy",)


def isa() -> str:
    """The instruction set that runs: one of ``available()``."""
    return _isa


def use(name: str) -> None:
    """Switch to one of ``available()``.

    Raises:
        ValueError: this machine or this build does not have it.
    """
    global _extension, _isa
    if name not in available():
        raise ValueError(f"no {name!r} codec here; there are {', '.join(available())}")
    _extension = None if name == "numpy" else _load()
    if _extension is not None:
        _extension.use(name)
    _isa = name


def encode_int8(x: Array, dtype: str, out: bytearray | memoryview | None = None) -> bytes | memoryview:
    """Encode ``x`` [T, H], C-contiguous, into ``out`` (exactly ``int8_size``) or into new bytes.

    Raises:
        ValueError: a value is not finite or beyond 2^127, or a buffer has the wrong size.
    """
    tokens, hidden = x.shape
    if _extension is not None:
        made = _extension.encode_int8(x, _CODES[dtype], tokens, hidden, out)
        return memoryview(out) if made is None else made  # type: ignore[arg-type]  # None: it was written into out
    _check_hidden(hidden)
    size = int8_size(tokens, hidden)
    target = np.empty(size, np.uint8) if out is None else np.frombuffer(out, np.uint8)
    if target.size != size:
        raise ValueError(f"out: expected {size} bytes, got {target.size}")
    _reference.encode_int8(x, dtype, target)
    return target.tobytes() if out is None else memoryview(out)


def decode_int8(payload: bytes | bytearray | memoryview, dtype: str, out: Array) -> None:
    """Decode ``payload`` into ``out`` [T, H], C-contiguous; what ``out`` holds after an error is undefined.

    Raises:
        ValueError: the bytes are no payload of that shape, or a value does not fit ``dtype``.
    """
    tokens, hidden = out.shape
    if _extension is not None:
        _extension.decode_int8(payload, _CODES[dtype], tokens, hidden, out)
        return
    _check_hidden(hidden)
    source = np.frombuffer(payload, np.uint8)
    size = int8_size(tokens, hidden)
    if source.size != size:
        raise ValueError(f"payload: expected {size} bytes, got {source.size}")
    _reference.decode_int8(source, dtype, out)


def convert(source: Array | bytes | bytearray | memoryview, from_dtype: str, out: Array, to_dtype: str) -> None:
    """Round the elements of ``source`` to ``to_dtype``, ties to even, into ``out``; every value is checked.

    Raises:
        ValueError: a value is not finite or does not fit, or the sizes differ.
    """
    if _extension is not None:
        _extension.convert(source, _CODES[from_dtype], out, _CODES[to_dtype])
        return
    raw = np.frombuffer(source, np.uint8)
    if raw.size != out.size * STORAGE[from_dtype].itemsize:
        raise ValueError(f"tensor: expected {out.size * STORAGE[from_dtype].itemsize} bytes, got {raw.size}")
    _reference.convert(raw.view(STORAGE[from_dtype]), from_dtype, out, to_dtype)


def _check_hidden(hidden: int) -> None:
    if not 1 <= hidden <= HIDDEN_MAX:
        raise ValueError(f"hidden size is outside 1..{HIDDEN_MAX}")


def _load() -> ModuleType | None:
    try:
        from p2pllm_native import _codec
    except ImportError:
        return None
    return _codec


def _start() -> None:
    """Take the best implementation, and say so once when it is not the one that was asked for."""
    wanted = os.environ.get("P2PLLM_NATIVE_ISA", "")
    names = available()
    if wanted and wanted not in names:
        _logger.warning("P2PLLM_NATIVE_ISA=%s is not here (there are %s): using %s", wanted, ", ".join(names), names[0])
    elif not wanted and names == ("numpy",):
        _logger.warning("p2pllm_native has no compiled kernels here: the NumPy codec gives the same bytes, slower")
    use(wanted if wanted in names else names[0])


_start()
