"""A joiner strengthens the weakest blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.server.placement import block_throughputs, blocks_that_fit, join_window
from p2pllm.types import Span


@pytest.mark.parametrize(
    ("throughputs", "length", "expected"),
    [
        ([0, 0, 0, 0], 2, Span(0, 2)),
        ([5, 5, 0, 0], 2, Span(2, 4)),
        ([5, 5, 5, 0], 2, Span(2, 4)),
        ([5, 5, 5, 4], 3, Span(1, 4)),
        ([1, 9, 9, 2, 2, 9], 2, Span(0, 2)),
        ([3, 3, 2, 2, 3, 3], 3, Span(1, 4)),
        ([1, 2, 3], 8, Span(0, 3)),
    ],
)
def test_the_weakest_window_is_taken(throughputs: list[float], length: int, expected: Span):
    assert join_window(throughputs, length) == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 12))
def test_no_other_window_is_weaker(throughputs: list[int], length: int):
    span = join_window(throughputs, length)
    assert len(span) == min(length, len(throughputs))
    chosen = sorted(throughputs[span.start : span.end])
    for start in range(len(throughputs) - len(span) + 1):
        assert chosen <= sorted(throughputs[start : start + len(span)])


@given(st.integers(1, 24), st.integers(1, 6))
def test_joiners_tile_the_model_before_they_double_a_block(num_blocks: int, length: int):
    servers: list[tuple[Span, float]] = []
    for _ in range(-(-num_blocks // min(length, num_blocks))):
        servers.append((join_window(block_throughputs(servers, num_blocks), length), 1.0))
    assert min(block_throughputs(servers, num_blocks)) >= 1


def test_throughputs_add_up_and_ignore_blocks_that_the_model_lacks():
    assert block_throughputs([(Span(0, 2), 1.5), (Span(1, 9), 2.0)], 3) == [1.5, 3.5, 2.0]


def test_no_blocks_no_window():
    with pytest.raises(ValueError, match="no window"):
        join_window([], 1)


def test_blocks_fit_with_their_cache():
    assert blocks_that_fit(1000, 60, 10, 4, num_blocks=32) == 10
    assert blocks_that_fit(1000, 60, 10, 4, num_blocks=4) == 4
    assert blocks_that_fit(50, 60, 10, 4, num_blocks=4) == 0
