"""The client's ends: tied and untied, exact, and honest about ids that do not exist."""

from __future__ import annotations

import pytest
import torch

from p2pllm.errors import CheckpointError
from p2pllm.model.config import ends_tensors
from p2pllm.model.ends import Ends
from tests.model import zoo


@pytest.mark.parametrize("name", ["llama", "llama-gqa"])
def test_ends_equal_the_reference(name: str) -> None:
    model = zoo.reference(name)
    config, tensors = zoo.ours(model)
    ends = Ends.load(config, tensors)
    ids = [0, 96, 5, 5]
    with torch.inference_mode():
        embedded = model.model.embed_tokens(torch.tensor(ids))
        logits = model.lm_head(model.model.norm(embedded))
    assert torch.equal(ends.embed(ids), embedded)
    assert torch.equal(ends.embed(torch.tensor([ids])), embedded)
    torch.testing.assert_close(ends.head(embedded), logits, atol=1e-5, rtol=1e-5)
    assert ends.embed([]).shape == (0, 48)
    assert ends.head(embedded[:0]).shape == (0, 97)


def test_exact_logits_do_not_depend_on_their_batch() -> None:
    config, tensors = zoo.ours(zoo.reference("llama"))
    ends = Ends.load(config, tensors, exact=True)
    x = torch.randn(33, 48)
    whole = ends.head(x)
    for first, last in ((0, 1), (3, 5), (7, 24)):
        assert torch.equal(ends.head(x[first:last]), whole[first:last])


def test_half_precision_ends_give_float_logits() -> None:
    config, tensors = zoo.ours(zoo.reference("llama"))
    ends = Ends.load(config, tensors, dtype="bfloat16")
    hidden = ends.embed([1, 2])
    assert hidden.dtype == torch.bfloat16
    assert ends.head(hidden).dtype == torch.float32


def test_only_the_ends_are_read() -> None:
    config, tensors = zoo.ours(zoo.reference("llama-gqa"))
    taken = []

    def get(name: str) -> torch.Tensor:
        taken.append(name)
        return tensors[name]

    Ends.load(config, get)
    assert sorted(taken) == sorted(spec.name for spec in ends_tensors(config).values())
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        Ends.load(config, {k: v for k, v in tensors.items() if k != "model.norm.weight"})


@pytest.mark.parametrize("ids", [[97], [-1], [3, 1000]])
def test_ids_outside_the_vocabulary(ids: list[int]) -> None:
    config, tensors = zoo.ours(zoo.reference("llama"))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        Ends.load(config, tensors).embed(ids)
