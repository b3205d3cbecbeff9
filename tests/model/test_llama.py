"""Blocks of every family against transformers on random checkpoints: whole, token by token, greedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from p2pllm.errors import CheckpointError
from p2pllm.model.config import block_tensors
from p2pllm.model.ends import Ends
from p2pllm.model.llama import LlamaBlock, rotate_
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from tests.model import zoo

TOKENS = 40
CUTS = (5, 1, 1, 9, 1, 1, 1, 3, 1, 1, 16)
PAGES = (7, 3, 4, 9, 1, 2)


class Whole:
    """All blocks and the ends, cached: logits of the next tokens of one row."""

    def __init__(self, model: Any, exact: bool = False, dtype: str = "float32") -> None:
        config, tensors = zoo.ours(model)
        self.span = SpanModel.load(config, Span(0, config.num_blocks), tensors, dtype, exact=exact)
        self.ends = Ends.load(config, tensors, dtype, exact=exact)
        self._arena = self.span.arena(96, 8)
        self._position = 0

    def forward(self, ids: Tensor) -> Tensor:
        return self.ends.head(self.span.run(self.ends.embed(ids), [Segment(len(ids))]))

    def step(self, ids: Tensor) -> Tensor:
        segment = Segment(len(ids), self._position, PAGES)
        self._position += len(ids)
        return self.ends.head(self.span.run(self.ends.embed(ids), [segment], self._arena))


def _ids(seed: int = 1) -> Tensor:
    return torch.randint(0, 97, (TOKENS,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_logits_equal_the_reference(name: str, exact: bool) -> None:
    model, ids = zoo.reference(name), _ids()
    with torch.inference_mode():
        expected = model(ids[None]).logits[0]
    whole = Whole(model, exact)
    forward = whole.forward(ids)
    steps = torch.cat([whole.step(piece) for piece in torch.split(ids, list(CUTS))])
    torch.testing.assert_close(forward, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(steps, expected, atol=1e-4, rtol=0)
    if exact:
        assert torch.equal(forward, steps)


@pytest.mark.parametrize("name", [*zoo.FAMILIES, "beyond the context"])
def test_greedy_tokens_equal_the_reference(name: str) -> None:
    """Prompt, then token by token through both caches; dynamic rope also beyond the context it was trained for."""
    beyond = name not in zoo.FAMILIES
    model = zoo.reference("llama-dynamic", max_position_embeddings=16) if beyond else zoo.reference(name)
    ids, whole, cache = _ids()[:8], Whole(model), DynamicCache(config=model.config)
    theirs, ours = ids, ids
    with torch.inference_mode():
        for _ in range(24):
            expected = model(theirs[None], past_key_values=cache, use_cache=True).logits[0, -1]
            got = whole.step(ours)[-1]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
            theirs, ours = expected.argmax().view(1), got.argmax().view(1)
            assert torch.equal(theirs, ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_half_precision_is_close(name: str, dtype: str) -> None:
    """No further from fp32 than the reference in the same dtype, with room for luck."""
    model, ids = zoo.reference(name), _ids()
    with torch.inference_mode():
        exact = model(ids[None]).logits[0]
    whole = Whole(model, dtype=dtype)
    forward = whole.forward(ids)
    steps = torch.cat([whole.step(piece) for piece in torch.split(ids, list(CUTS))])
    with torch.inference_mode():
        theirs = (model.to(getattr(torch, dtype))(ids[None]).logits[0].float() - exact).norm()
    assert (forward - exact).norm() < 1.5 * theirs
    assert (steps - exact).norm() < 1.5 * theirs


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    config, tensors = zoo.ours(zoo.reference("qwen2"))
    for local in ("q", "k_bias", "down", "post_norm"):
        name = block_tensors(config, 1)[local].name
        without = {k: v for k, v in tensors.items() if k != name}
        with pytest.raises(CheckpointError, match=rf"{name} is missing"):
            LlamaBlock(config, 1, without.__getitem__, torch.float32, torch.device("cpu"))
        short = {**tensors, name: tensors[name][:-1]}
        with pytest.raises(CheckpointError, match=rf"{name} has shape"):
            LlamaBlock(config, 1, short.__getitem__, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_turns_pairs(dtype: torch.dtype) -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]], dtype=dtype)
    rotate_(x, torch.tensor([[[1j, 1j]]]))
    assert x.flatten().tolist() == [0.0, 1.0, -2.0, 0.0]
