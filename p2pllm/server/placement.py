"""Which blocks a server should serve: the joiner's rule, and how many blocks fit.

Invariants: pure; the swarm is given as (span, throughput) pairs, among them servers that are still loading. A joiner
takes the window whose blocks are the weakest, so that gaps close first and the swarm's bottleneck rises (the paper's
rule).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pllm.types import Span


def block_throughputs(servers: Iterable[tuple[Span, float]], num_blocks: int) -> list[float]:
    """Per block, the summed throughput of those who serve it."""
    sums = [0.0] * num_blocks
    for span, throughput in servers:
        for block in range(span.start, min(span.end, num_blocks)):
            sums[block] += throughput
    return sums


def join_window(throughputs: Sequence[float], length: int) -> Span:
    """The window of ``length`` consecutive blocks whose sorted throughputs are lexicographically smallest.

    Among equals the first one, so that servers that join one after the other tile the model from its start.

    Raises:
        ValueError: the model has no blocks, or the window none.
    """
    if length < 1 or not throughputs:
        raise ValueError(f"no window of {length} blocks in a model of {len(throughputs)}")
    length = min(length, len(throughputs))
    start = weakest_window(np.asarray(throughputs), length)
    return Span(start, start + length)


def weakest_window(strengths: npt.NDArray[Any], length: int) -> int:
    """Where the window begins whose sorted strengths are lexicographically smallest, the first among equals.

    Args:
        strengths: per block, not negative, integers or floats.
        length: at most as many as there are blocks.
    """
    least = strengths
    reach = 1
    while reach < length:  # least[i] = the weakest of the blocks i..i + reach
        step = min(reach, length - reach)
        least = np.minimum(least[:-step], least[step:])
        reach += step
    starts = np.flatnonzero(least == least.min())
    if len(starts) == 1 or length == 1:
        return int(starts[0])
    rows = np.sort(strengths[starts[:, None] + np.arange(length)], axis=1)
    # Numbers that are not negative are in the order of their big-endian bytes.
    keys = rows.astype(rows.dtype.newbyteorder(">")).tobytes()
    size = rows.itemsize * length
    return int(starts[min(range(len(starts)), key=lambda i: keys[i * size : (i + 1) * size])])


def blocks_that_fit(
    memory_bytes: int, block_bytes: int, cache_tokens: int, cache_bytes_per_token: int, num_blocks: int
) -> int:
    """How many blocks fit into memory, each with its weights and its share of ``cache_tokens`` tokens; at least 0.

    Args:
        cache_bytes_per_token: keys and values of one token in one block.
    """
    each = block_bytes + cache_tokens * cache_bytes_per_token
    return max(0, min(num_blocks, memory_bytes // each))
