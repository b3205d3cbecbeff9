"""What blocks and their caches take in memory.

Invariants: pure arithmetic on a model's config; the numbers are what a server plans with, not what it measured.
"""

from __future__ import annotations

import torch

from p2pllm.model.config import ModelConfig

CACHE_TOKENS = 16384
"""Cache budget where neither the settings nor the memory say otherwise."""
CACHE_TOKENS_MIN = 512
CACHE_TOKENS_MAX = 1 << 20


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in one block."""
    return 2 * config.num_kv_heads * config.head_dim * dtype.itemsize


def block_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Weights of one block."""
    attention = 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)
    return (attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size) * dtype.itemsize


def cache_budget(
    wanted: int | None, memory_bytes: int | None, config: ModelConfig, dtype: torch.dtype, blocks: int
) -> int:
    """Cache tokens of a span of ``blocks`` blocks: as set, else what the memory leaves beside the weights."""
    if wanted is not None:
        return wanted
    if memory_bytes is None:
        return CACHE_TOKENS
    room = memory_bytes - blocks * block_bytes(config, dtype)
    return min(CACHE_TOKENS_MAX, max(CACHE_TOKENS_MIN, room // (blocks * token_bytes(config, dtype))))
