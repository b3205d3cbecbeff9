"""Rotation factors against transformers, and their independence of how they were asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from p2pllm.model.config import parse_config
from p2pllm.model.rope import TABLE_CHUNK, Rope, interleave
from tests.model import zoo

KINDS = [name for name in zoo.FAMILIES if name.startswith("llama")]


def _config(name: str, **overrides: Any) -> Any:
    config_class, traits = zoo.FAMILIES[name]
    return config_class(**{**zoo.BASE, **traits, **overrides})


@pytest.mark.parametrize("name", KINDS)
def test_factors_equal_the_reference_within_the_context(name: str) -> None:
    reference = _config(name)
    theirs = LlamaRotaryEmbedding(reference)
    cos, sin = theirs(torch.zeros(1), torch.arange(256)[None])
    half = reference.head_dim // 2
    table = Rope(parse_config(reference.to_dict())).upto(256)[:256]
    torch.testing.assert_close(table.real, cos[0, :, :half], atol=2e-5, rtol=0)
    torch.testing.assert_close(table.imag, sin[0, :, :half], atol=2e-5, rtol=0)


def test_dynamic_scaling_is_that_of_the_token_by_token_reference() -> None:
    """Beyond the context every position has the base of the sequence that ends with it, whatever comes later."""
    reference = _config("llama-dynamic", max_position_embeddings=16)
    theirs = LlamaRotaryEmbedding(reference)
    table = Rope(parse_config(reference.to_dict())).upto(40)
    half = reference.head_dim // 2
    for position in range(40):
        cos, sin = theirs(torch.zeros(1), torch.tensor([[position]]))
        torch.testing.assert_close(table[position].real, cos[0, 0, :half], atol=2e-5, rtol=0)
        torch.testing.assert_close(table[position].imag, sin[0, 0, :half], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_growth_changes_no_bit(name: str) -> None:
    config = parse_config(_config(name).to_dict())
    slowly, at_once = Rope(config), Rope(config)
    for length in (1, 7, TABLE_CHUNK, TABLE_CHUNK + 1, 3 * TABLE_CHUNK):
        slowly.upto(length)
    assert torch.equal(slowly.upto(3 * TABLE_CHUNK), at_once.upto(3 * TABLE_CHUNK))
    assert len(slowly.upto(1)) == 3 * TABLE_CHUNK


def test_interleaving_makes_neighbours_of_pairs() -> None:
    weight = torch.arange(12.0).view(12, 1)  # two heads of six: pairs are (0, 3), (1, 4), (2, 5)
    assert interleave(weight, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleave(torch.arange(4.0), 1).tolist() == [0, 2, 1, 3]
