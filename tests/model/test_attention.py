"""Every attention path against the formula, for windows, groups and cached prefixes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pllm.model.attention import KEY_SPLIT, Plan, Segment, exact_attention, exact_pieces, visible
from p2pllm.model.config import ModelConfig, RopeConfig
from p2pllm.model.kv import KVArena
from p2pllm.model.rope import Rope


def _config(heads: int, kv_heads: int, dim: int, window: int | None) -> ModelConfig:
    return ModelConfig("llama", heads * dim, 1, heads, kv_heads, dim, 8, 8, 1e-5, RopeConfig(), (window,))


def _formula(q: Tensor, k: Tensor, v: Tensor, position: int, window: int | None) -> Tensor:
    """q [c, heads, dim]; k, v [L, kv_heads, dim] from position 0; in double precision, head by head."""
    count, heads, dim = q.shape
    group = heads // k.shape[1]
    mask = visible(torch.arange(position, position + count), torch.arange(len(k)), window)
    out = []
    for head in range(heads):
        scores = q[:, head].double() @ k[:, head // group].double().T / dim**0.5
        out.append(scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v[:, head // group].double())
    return torch.stack(out, 1).reshape(count, -1).float()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 90)), min_size=1, max_size=3),
    st.sampled_from([None, 1, 5, 64]),
    st.booleans(),
    st.integers(0, 3),
)
def test_packed_rows(
    heads: tuple[int, int], rows: list[tuple[int, int]], window: int | None, exact: bool, seed: int
) -> None:
    """Rows with ``old`` cached tokens get ``new`` ones each, in one packed call."""
    torch.manual_seed(seed)
    config = _config(*heads, 8, window)
    arena = KVArena(1, heads[1], 8, 16 * 12 * len(rows), 16)
    pages = torch.randperm(12 * len(rows)).view(len(rows), 12).tolist()
    segments, packed, expected = [], [], []
    for row, (new, old) in enumerate(rows):
        qkv = torch.randn(old + new, heads[0] + 2 * heads[1], 8)
        if old:
            arena.write(0, arena.place(pages[row], 0, old), qkv[:old, heads[0] :])
        segments.append(Segment(new, old, pages[row]))
        packed.append(qkv[old:])
        k, v = qkv[:, heads[0] :].split(heads[1], dim=1)
        expected.append(_formula(qkv[old:, : heads[0]], k, v, old, window))
    plan = Plan(config, segments, Rope(config), arena, exact)
    qkv = torch.cat([*packed, torch.zeros(plan.rows - plan.tokens, heads[0] + 2 * heads[1], 8)])
    plan.store(0, qkv[:, heads[0] :])
    got = plan.attend(0, window, qkv)
    torch.testing.assert_close(got[: plan.tokens], torch.cat(expected), atol=2e-5, rtol=1e-4)


def test_exact_attention_ignores_the_cut_and_splits_that_are_out_of_sight() -> None:
    torch.manual_seed(0)
    length, window = 3 * KEY_SPLIT + 5, 40
    q, k, v = torch.randn(length, 4, 16), torch.randn(2, length, 16), torch.randn(2, length, 16)
    for limit in (None, window):
        whole = exact_attention(q, k, v, exact_pieces(length, 0, 0, limit, 2))
        for first, last in ((0, 1), (70, 71), (100, 133), (130, length), (length - 1, length)):
            low = 0 if limit is None else max(0, first + 1 - limit) // KEY_SPLIT * KEY_SPLIT
            pieces = exact_pieces(last - first, first, low, limit, 2)
            part = exact_attention(q[first:last], k[:, low:last], v[:, low:last], pieces)
            assert torch.equal(part, whole[first:last])


def test_mixed_cached_and_cacheless_segments_keep_apart() -> None:
    torch.manual_seed(0)
    config = _config(4, 2, 8, None)
    arena = KVArena(1, 2, 8, 64, 16)
    qkv = torch.randn(9, 8, 8)
    segments = [Segment(3), Segment(2, 0, [1]), Segment(4)]
    plan = Plan(config, segments, Rope(config), arena, exact=False)
    plan.store(0, qkv[:, 4:])
    got = plan.attend(0, None, qkv)
    for offset, s in zip((0, 3, 5), segments, strict=True):
        mine = qkv[offset : offset + s.count]
        expected = _formula(mine[:, :4], mine[:, 4:6], mine[:, 6:], 0, None)
        torch.testing.assert_close(got[offset : offset + s.count], expected, atol=2e-5, rtol=1e-4)
    keys, _ = arena.view(0, [1], 2)
    assert torch.equal(keys, qkv[3:5, 4:6].transpose(0, 1))


@pytest.mark.parametrize(("count", "position", "slots"), [(0, 0, None), (1, -1, [0]), (1, 3, None)])
def test_impossible_segments(count: int, position: int, slots: list[int] | None) -> None:
    with pytest.raises(ValueError, match="not a segment"):
        Segment(count, position, slots)


def test_pages_need_an_arena() -> None:
    config = _config(4, 2, 8, None)
    with pytest.raises(ValueError, match="needs a cache"):
        Plan(config, [Segment(1, 0, [0])], Rope(config), None, exact=False)
