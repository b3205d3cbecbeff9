"""Planned sizes equal what the blocks and caches really take."""

from __future__ import annotations

import torch

from p2pllm.model.config import block_tensors
from p2pllm.server.sizing import CACHE_TOKENS, CACHE_TOKENS_MIN, block_bytes, cache_budget, token_bytes
from p2pllm.types import Span
from tests.server.support import config, model


def test_a_blocks_weights():
    numbers = sum(torch.Size(spec.shape).numel() for spec in block_tensors(config(), 0).values())
    assert block_bytes(config(), torch.float32) == 4 * numbers
    assert block_bytes(config(), torch.bfloat16) == 2 * numbers


def test_a_tokens_cache():
    assert model(Span(0, 2)).arena(160, 16).nbytes == 2 * 160 * token_bytes(config(), torch.float32)


def test_the_budget_is_what_was_set_or_what_is_left():
    dtype = torch.float32
    weights, token = 2 * block_bytes(config(), dtype), 2 * token_bytes(config(), dtype)
    assert cache_budget(99, 1, config(), dtype, 2) == 99
    assert cache_budget(None, None, config(), dtype, 2) == CACHE_TOKENS
    assert cache_budget(None, weights + 5000 * token, config(), dtype, 2) == 5000
    assert cache_budget(None, weights, config(), dtype, 2) == CACHE_TOKENS_MIN
