from __future__ import annotations

import pytest

from p2pllm.client.options import GenerateOptions
from p2pllm.client.sampling import SamplingOptions
from p2pllm.errors import UserError


def test_greedy_is_the_default():
    assert GenerateOptions().sampling() == SamplingOptions()
    assert GenerateOptions().sampling().temperature == 0.0


def test_keyword_arguments_have_the_names_of_the_flags():
    options = GenerateOptions.of(
        {"max_new_tokens": 3, "temperature": 0.5, "top_k": 2, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2,
         "seed": 1, "stop": "x"}
    )  # fmt: skip
    assert options.sampling() == SamplingOptions(0.5, 2, 0.9, 0.1, 1.2)
    assert options.stops == ("x",)
    assert GenerateOptions(stop=["a", "b"]).stops == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": "hot"}, "wrong type"),
        ({"top_p": 2.0}, "top_p"),
        ({"stop": [""]}, "stop takes texts"),
        ({"stop": [3]}, "stop takes texts"),
        ({"temprature": 1.0}, "no option 'temprature'; there are max_new_tokens, temperature"),
    ],
)
def test_wrong_options_are_named(wrong, match):
    with pytest.raises(UserError, match=match):
        GenerateOptions.of(wrong)
