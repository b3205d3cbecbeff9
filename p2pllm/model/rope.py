"""Rotary position embedding as one complex factor per position and pair of dimensions.

Invariants: the factor of a position depends on the position alone, never on how long the sequence is or how it was cut
(the table grows in chunks of a fixed shape). Pairs are adjacent: the rows of q and k weights are interleaved when they
are loaded, so that a rotation is one complex product in place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p2pllm.model.config import ModelConfig, RopeConfig

TABLE_CHUNK = 256


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Reorder the outputs of a q or k projection (or its bias or norm) so that rotation pairs become neighbours.

    Checkpoints pair dimension j with j + head_dim/2. Scores do not change: q and k are reordered alike.
    """
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])  # [heads, half, head_dim/2, ...]
    return halves.transpose(1, 2).reshape(weight.shape)


class Rope:
    """The rotation factors of one model, computed as far as positions have been asked for."""

    def __init__(self, config: ModelConfig, device: str | torch.device = "cpu") -> None:
        self._config = config
        self._device = torch.device(device)
        self._table = torch.empty(0, config.head_dim // 2, dtype=torch.complex64, device=self._device)

    def upto(self, positions: int) -> Tensor:
        """Factors of positions 0 .. at least ``positions`` - 1: complex [P, head_dim/2]."""
        if positions > len(self._table):
            chunks = range(len(self._table), positions, TABLE_CHUNK)
            self._table = torch.cat([self._table, *(self._chunk(first) for first in chunks)])
        return self._table

    def _chunk(self, first: int) -> Tensor:
        rope, dim = self._config.rope, self._config.head_dim
        positions = torch.arange(first, first + TABLE_CHUNK)
        if rope.kind == "dynamic":
            frequencies = _dynamic_frequencies(rope, dim, positions)
        else:
            frequencies = inverse_frequencies(rope, dim)
        angles = positions.float().unsqueeze(1) * frequencies
        scale = rope.attention_factor
        return torch.complex(angles.cos() * scale, angles.sin() * scale).to(self._device)


def inverse_frequencies(rope: RopeConfig, dim: int) -> Tensor:
    """Radians per position of each pair of dimensions, float32 [dim/2], for every kind but ``dynamic``."""
    exponents = torch.arange(0, dim, 2).float() / dim
    plain = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, plain)
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, plain, dim)
    return plain


def _llama3_frequencies(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between blended."""
    turns = rope.original_positions * plain / (2 * math.pi)
    blend = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn_frequencies(rope: RopeConfig, plain: Tensor, dim: int) -> Tensor:
    """Dimensions that turn often within the pretraining context are kept, slow ones stretched, linear in between."""

    def dimension(turns: float) -> float:
        return dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2).float() - low) / (high - low if high != low else 0.001)
    stretched = ramp.clamp(0, 1)
    return plain / rope.factor * stretched + plain * (1 - stretched)


def _dynamic_frequencies(rope: RopeConfig, dim: int, positions: Tensor) -> Tensor:
    """Per position, the base that a sequence ending there would have: [P, dim/2].

    transformers takes the base of the whole sequence for all positions of one call, so that there the result depends
    on the cut; token by token both agree.
    """
    length = (positions + 1).clamp(min=rope.original_positions).double()
    stretch = (rope.factor * length / rope.original_positions - (rope.factor - 1)) ** (dim / (dim - 2))
    base = (rope.theta * stretch).float().unsqueeze(1)
    return 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)
