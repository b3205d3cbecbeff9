"""The arena against a dictionary: what was written at a page and position is read there, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.model.kv import KVArena

PAGE = 4


def _tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.permutations(range(10)), st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_rows_keep_to_their_pages(pages: list[int], counts: list[int]) -> None:
    arena = KVArena(1, 2, 3, 10 * PAGE, PAGE)
    rows = {0: pages[:5], 1: pages[5:]}
    written: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for seed, count in enumerate(counts):
        row = seed % 2
        position = sum(len(t) for t in written[row])
        if position + count > 5 * PAGE:
            continue
        tokens = _tokens(count, seed)
        arena.write(0, arena.place(rows[row], position, position + count), tokens)
        written[row].append(tokens)
    for row, pieces in written.items():
        if pieces:
            expected = torch.cat(pieces).transpose(0, 1)
            keys, values = arena.view(0, rows[row], expected.shape[1])
            assert torch.equal(keys, expected[:2])
            assert torch.equal(values, expected[2:])
            low = expected.shape[1] // 2
            part, _ = arena.read(0, arena.place(rows[row], low, expected.shape[1]))
            assert torch.equal(part, expected[:2, low:])


def test_consecutive_pages_are_read_without_a_copy() -> None:
    arena = KVArena(2, 2, 3, 40, PAGE)
    keys, values = arena.view(1, [3, 4, 5], 10)
    again, _ = arena.view(1, range(3, 6), 10)
    assert keys.data_ptr() == again.data_ptr()
    assert values.shape == (2, 10, 3)
    assert keys.data_ptr() == arena.view(1, [3], 1)[0].data_ptr()


@pytest.mark.parametrize(("source", "target"), [([0, 1, 2], [5, 6, 7]), ([2, 0, 9], [4, 8, 3]), ([0, 1], [1, 2])])
def test_copy_row_copies_every_block(source: list[int], target: list[int]) -> None:
    arena = KVArena(3, 2, 3, 40, PAGE)
    length = len(source) * PAGE - 1
    tokens = [_tokens(length, block) for block in range(3)]
    for block in range(3):
        arena.write(block, arena.place(source, 0, length), tokens[block])
    arena.copy_row(source, target, length)
    arena.copy_row(source, [], 0)
    for block in range(3):
        keys, values = arena.view(block, target, length)
        assert torch.equal(torch.cat([keys, values]).transpose(0, 1), tokens[block])


def test_pages_are_checked() -> None:
    arena = KVArena(1, 2, 3, 39, PAGE)
    assert (arena.pages, arena.tokens) == (10, 40)
    assert arena.nbytes == 40 * 4 * 3 * 4
    with pytest.raises(ValueError, match="cannot hold"):
        arena.place([0, 1], 0, 9)
    for page in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            arena.place([page], 0, 1)
    with pytest.raises(ValueError, match="positive"):
        KVArena(0, 2, 3, 40)
    assert arena.place([], 0, 0).count == 0
