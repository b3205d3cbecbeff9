"""The torch twins of the compute kernels: their specification, their test and their fallback."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 32
"""Outputs that lie together: tile t holds the weights of outputs 32 t … 32 t + 31, one input after another."""


def product_reference(x: Tensor, weight: Tensor) -> Tensor:
    """[M, K] times tiles [N / 32, K, 32] -> [M, N]: y[m, 32 t + j] = sum over k of x[m, k] weight[t, k, j]."""
    tiles, inputs, _ = weight.shape
    y = torch.bmm(x.expand(tiles, len(x), inputs), weight)
    return y.transpose(0, 1).reshape(len(x), tiles * TILE)
