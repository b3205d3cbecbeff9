from __future__ import annotations

import pytest
import torch

from p2pllm.client.inputs import Prompts, check_ids, prompts_of
from p2pllm.errors import UserError


def encode(text: str) -> list[int]:
    return [ord(c) - ord("a") for c in text]


@pytest.mark.parametrize(
    ("inputs", "prompts"),
    [
        ("abc", Prompts(((0, 1, 2),), single=True)),
        (["abc", "z"], Prompts(((0, 1, 2), (25,)))),
        ([1, 2], Prompts(((1, 2),), single=True)),
        ((1, 2), Prompts(((1, 2),), single=True)),
        ([[1, 2], [3]], Prompts(((1, 2), (3,)))),
        ([[1, 2], "b"], Prompts(((1, 2), (1,)))),
        ([torch.tensor([1, 2])], Prompts(((1, 2),))),
        (torch.tensor([[1, 2], [3, 4]]), Prompts(((1, 2), (3, 4)), rectangular=True)),
        (torch.tensor([1, 2], dtype=torch.int32), Prompts(((1, 2),), rectangular=True, single=True)),
    ],
)
def test_every_form_of_prompt(inputs, prompts):
    assert prompts_of(inputs, encode, 26) == prompts


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ("", "prompt is empty"),
        ([], "a prompt is text"),
        ([[]], "prompt is empty"),
        ([[1], []], "prompt is empty"),
        (["a", ""], "prompt is empty"),
        ([26], r"0\.\.25; found 26\.\.26"),
        ([[-1]], r"found -1"),
        ([1.5], "whole numbers"),
        ([[1, "a"]], "whole numbers"),
        ([True], "whole numbers"),
        ({"a": 1}, "a prompt is text"),
        (b"abc", "a prompt is text"),
        (None, "a prompt is text"),
        (7, "a prompt is text"),
        (torch.tensor([[1.0]]), "integer tensor"),
        (torch.tensor([[[1]]]), r"\[rows, tokens\]"),
        (torch.tensor([[30]]), "found 30"),
        (torch.zeros(2, 0, dtype=torch.long), "no token ids"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(inputs, match):
    with pytest.raises(UserError, match=match) as caught:
        prompts_of(inputs, encode, 26)
    assert "\n" not in str(caught.value)


def test_text_needs_a_tokenizer():
    with pytest.raises(UserError, match="no tokenizer: pass token ids"):
        prompts_of("abc", None, 26)
    assert prompts_of([1], None, 26).rows == ((1,),)


def test_check_ids_accepts_what_a_model_takes():
    check_ids(torch.tensor([[0, 25]], dtype=torch.uint8), 26)
