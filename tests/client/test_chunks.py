from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.client.chunks import ALL, Chunk, cut, packed_slices, wanted_slices


@pytest.mark.parametrize(
    ("counts", "chunk_tokens", "tail", "chunks"),
    [
        ([1], 128, ALL, [Chunk((0,), (1,), ALL, (1,))]),
        ([1, 0, 1], 128, 1, [Chunk((0, 0, 0), (1, 0, 1), ALL, (1, 0, 1))]),
        ([5], 2, 1, [Chunk((0,), (1,), 0, (0,)), Chunk((1,), (2,), 0, (0,)), Chunk((3,), (2,), 1, (1,))]),
        (
            [3, 1],  # rows meet at their ends
            4,
            1,
            [Chunk((0, 0), (1, 0), 0, (0, 0)), Chunk((1, 0), (2, 1), 1, (1, 1))],
        ),
        ([4], 2, 3, [Chunk((0,), (2,), 1, (1,)), Chunk((2,), (2,), ALL, (2,))]),
        ([2, 2], 1, 0, [Chunk((0, 0), (1, 1), 0, (0, 0)), Chunk((1, 1), (1, 1), 0, (0, 0))]),
        ([0, 0], 4, ALL, []),
    ],
)
def test_cut(counts, chunk_tokens, tail, chunks):
    assert cut(counts, chunk_tokens, tail) == chunks


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 20), st.integers(-1, 45))
def test_chunks_bring_every_token_once_in_order_and_only_what_is_wanted_comes_back(counts, chunk_tokens, tail):
    tokens = [(row, i) for row, count in enumerate(counts) for i in range(count)]
    chunks = cut(counts, chunk_tokens, tail)
    went = [[token for part in packed_slices(counts, chunk) for token in tokens[part]] for chunk in chunks]
    assert sorted(token for sent in went for token in sent) == tokens
    for row, count in enumerate(counts):
        assert [i for sent in went for r, i in sent if r == row] == list(range(count))

    got: list[list[tuple[int, int]]] = [[] for _ in counts]
    returned = 0
    for chunk, sent in zip(chunks, went, strict=True):
        assert 0 < chunk.tokens == len(sent) <= max(chunk_tokens, len(counts))
        back = []
        for row in range(len(counts)):
            mine = [token for token in sent if token[0] == row]
            back += mine[len(mine) - chunk.kept[row] :]
        returned += len(back)
        for row, part in enumerate(wanted_slices(chunk)):
            got[row] += back[part]
    for row, count in enumerate(counts):
        last = count if tail == ALL else min(tail, count)
        assert got[row] == [(row, i) for i in range(count - last, count)]
    if tail in (ALL, 0, 1):
        assert returned == sum(len(row) for row in got)
