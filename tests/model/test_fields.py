"""Fields of a foreign file raise CheckpointError and nothing else."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.errors import CheckpointError
from p2pllm.model.config import parse_config
from p2pllm.model.fields import count, flag, number, token_ids
from tests.model.test_config import LLAMA_31, QWEN_3

JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)
VALUES = JUNK | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta"]), JUNK, max_size=3)


@given(st.sampled_from(sorted({*LLAMA_31, *QWEN_3, "layer_types", "rope_parameters", "dtype"})), VALUES)
def test_any_value_is_understood_or_refused(key: str, value: Any) -> None:
    for raw in (LLAMA_31, QWEN_3):
        with contextlib.suppress(CheckpointError):
            parse_config({**raw, key: value})


def test_absent_and_null_differ_where_the_family_says_so() -> None:
    assert count({}, "n", 8, null=4) == 8
    assert count({"n": None}, "n", 8, null=4) == 4
    assert count({"n": None}, "n", 8) == 8
    assert count({"n": 0}, "n", least=0) == 0
    assert number({}, "x", 2.0) == 2.0
    assert flag({}, "f") is False
    assert token_ids({"t": 5}, "t") == (5,)
    assert token_ids({}, "t") == ()


@pytest.mark.parametrize("value", [True, "1", 1.0, -1, 0, 1 << 40])
def test_counts_are_positive_integers(value: Any) -> None:
    with pytest.raises(CheckpointError, match="'n'"):
        count({"n": value}, "n")
