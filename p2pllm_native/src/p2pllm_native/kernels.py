"""Products with tiled fp32 weights: C++ where it was built, torch elsewhere.

Invariants: an output of the C++ product is one chain of fused multiply-adds over the inputs in ascending order, so a
row's bits depend neither on the other rows, nor on the number of threads, nor on the instruction set. torch's do.
Import torch before the extension: both then share one pool of threads. ``P2PLLM_NATIVE_ISA`` (``avx512``, ``avx2``,
``neon``; anything else means ``torch``) picks one, for tests and measurements.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from p2pllm_native.kernels_reference import TILE, product_reference

__all__ = ["TILE", "available", "isa", "product", "product_reference", "runs", "use"]

_extension: Any = None
_isa = "torch"
_threads = False


def available() -> tuple[str, ...]:
    """What ``use`` accepts on this machine, best first; ``torch`` is always the last."""
    built = _load()
    return (*built.available(), "torch") if built is not None else ("torch",)


def isa() -> str:
    """The instruction set that runs: one of ``available()``."""
    return _isa


def use(name: str) -> None:
    """Switch to one of ``available()``.

    Raises:
        ValueError: this machine or this build does not have it.
    """
    global _extension, _isa, _threads
    if name not in available():
        raise ValueError(f"no {name!r} products here; there are {', '.join(available())}")
    _extension = None if name == "torch" else _load()
    if _extension is not None:
        _extension.use(name)
        _threads = _extension.has_threads()
    _isa = name


def runs() -> bool:
    """Whether the C++ product is the right one now: built, and able to use as many threads as torch has."""
    return _extension is not None and (_threads or torch.get_num_threads() == 1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """[M, K] times tiles [N / 32, K, 32] -> [M, N], float32 on the CPU; no gradient flows through the C++ product.

    Raises:
        ValueError: a dtype, device or shape does not fit.
    """
    if not runs():
        return product_reference(x, weight)
    rows, inputs = x.shape
    tiles, depth, tile = weight.shape
    if depth != inputs or tile != TILE or x.dtype is not torch.float32 or weight.dtype is not torch.float32:
        raise ValueError(f"{x.dtype} {tuple(x.shape)} times {weight.dtype} {tuple(weight.shape)}")
    if not (weight.is_contiguous() and x.device.type == weight.device.type == "cpu"):
        raise ValueError("the tiles must lie on the CPU, one after another")
    x = x.contiguous()
    out = torch.empty(rows, tiles * TILE)
    threads = torch.get_num_threads()
    _extension.product(x.data_ptr(), rows, inputs, weight.data_ptr(), tiles, out.data_ptr(), threads)
    return out


def _load() -> ModuleType | None:
    try:
        from p2pllm_native import _kernels
    except ImportError:
        return None
    return _kernels


def _start() -> None:
    wanted, names = os.environ.get("P2PLLM_NATIVE_ISA", ""), available()
    use(wanted if wanted in names else "torch" if wanted else names[0])


_start()
