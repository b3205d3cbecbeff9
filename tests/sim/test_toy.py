"""The toy is exact however its work is cut, and every change of what went in shows in what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.model.attention import Segment
from p2pllm.types import Span
from sim.toy import ToyArena, ToyModel

TOY = ToyModel(3)
SPAN = Span(0, 3)
IDS = st.lists(st.integers(0, 255), min_size=2, max_size=40)


def whole(ids: list[int]) -> torch.Tensor:
    return TOY.span(SPAN).run(TOY.ends().embed(ids), [Segment(len(ids))])


def arena() -> ToyArena:
    return TOY.span(SPAN).arena(128, 16)


@given(IDS, st.data())
def test_any_cut_through_caches_and_spans_gives_the_same_bits(ids, data):
    cut = data.draw(st.integers(1, len(ids) - 1))
    border = data.draw(st.integers(1, 2))
    hidden, pages = TOY.ends().embed(ids), [5, 1, 7]
    for span in (Span(0, border), Span(border, 3)):
        blocks = TOY.span(span)
        kv = blocks.arena(128, 16)
        first = blocks.run(hidden[:cut], [Segment(cut, 0, pages)], kv)
        rest = [blocks.run(hidden[i : i + 1], [Segment(1, i, pages)], kv) for i in range(cut, len(ids))]
        hidden = torch.cat([first, *rest])
    assert torch.equal(hidden, whole(ids))


@given(IDS, st.data())
def test_one_lost_doubled_swapped_or_changed_token_changes_all_that_follow(ids, data):
    at = data.draw(st.integers(0, len(ids) - 1))
    last = whole(ids)[-1]
    changed = [*ids[:at], (ids[at] + 1) % 256, *ids[at + 1 :]]
    doubled = [*ids[: at + 1], *ids[at:]]
    lost = [*ids[:at], *ids[at + 1 :]]
    swapped = [*ids[:at], *reversed(ids[at : at + 2]), *ids[at + 2 :]]
    for other in (changed, doubled, lost, swapped):
        if other and other != ids:
            assert not torch.equal(whole(other)[-1], last)


def test_rows_of_a_batch_do_not_touch_each_other():
    kv, ends, blocks = arena(), TOY.ends(), TOY.span(SPAN)
    together = blocks.run(ends.embed([1, 2, 3, 9, 8]), [Segment(3, 0, [0]), Segment(2, 0, [1])], kv)
    assert torch.equal(together, torch.cat([whole([1, 2, 3]), whole([9, 8])]))


def test_rows_are_copied_and_what_was_never_written_is_not_read():
    kv, ends, blocks = arena(), TOY.ends(), TOY.span(SPAN)
    blocks.run(ends.embed([1, 2, 3]), [Segment(3, 0, [0])], kv)
    kv.copy_row([0], [4], 3)
    assert torch.equal(blocks.run(ends.embed([7]), [Segment(1, 3, [4])], kv), whole([1, 2, 3, 7])[-1:])
    with pytest.raises(ValueError, match="never written"):
        blocks.run(ends.embed([7]), [Segment(1, 4, [0])], kv)


def test_a_rounded_input_is_another_input():
    hidden = TOY.ends().embed([1, 2, 3])
    rounded = torch.from_numpy(hidden.numpy() * np.float32(1.0000001))
    blocks = TOY.span(SPAN)
    assert not torch.equal(blocks.run(hidden, [Segment(3)]), blocks.run(rounded, [Segment(3)]))


def test_the_greedy_continuation_does_not_run_in_circles():
    assert len(set(TOY.greedy([1, 2, 3], 40))) > 30
