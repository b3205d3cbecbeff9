"""Spans compose, packed rows keep apart, and what the caller gave is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2pllm.errors import CheckpointError, UserError
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from tests.model import zoo


@pytest.fixture(scope="module")
def checkpoint() -> tuple[object, dict[str, Tensor]]:
    return zoo.ours(zoo.reference("llama-gqa"))


def _hidden(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 48, generator=torch.Generator().manual_seed(seed))


def test_spans_compose(checkpoint) -> None:
    config, tensors = checkpoint
    x = _hidden(7)
    whole = SpanModel.load(config, Span(0, 3), tensors).run(x, [Segment(7)])
    parts = x
    for span in (Span(0, 1), Span(1, 3)):
        parts = SpanModel.load(config, span, tensors).run(parts, [Segment(7)])
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("exact", [False, True])
def test_rows_in_one_pass_are_as_good_as_alone(checkpoint, exact: bool) -> None:
    """A ragged mix of prefill, decode and cacheless rows in one pass."""
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(0, 3), tensors, exact=exact)
    together, apart = model.arena(160, 8), model.arena(160, 8)
    pages = [[0, 1, 2], [9, 5, 7], [3, 4], [10, 11]]
    for arena in (together, apart):
        for row, count in enumerate((9, 1, 12)):
            model.run(_hidden(count, row), [Segment(count, 0, pages[row])], arena)
    segments = [
        Segment(1, 9, pages[0]),
        Segment(5, 1, pages[1]),
        Segment(1, 12, pages[2]),
        Segment(3, 0, pages[3]),
        Segment(4),
    ]
    inputs = [_hidden(s.count, 10 + i) for i, s in enumerate(segments)]
    got = model.run(torch.cat(inputs), segments, together)
    expected = torch.cat([model.run(x, [s], apart) for x, s in zip(inputs, segments, strict=True)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(got, expected) or not exact
    for row, length in enumerate((10, 6, 13, 3)):
        for ours, theirs in zip(together.view(2, pages[row], length), apart.view(2, pages[row], length), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_many_decoding_rows_share_one_write(checkpoint) -> None:
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(0, 3), tensors)
    arena, alone = model.arena(64, 4), model.arena(64, 4)
    segments = [Segment(1, 0, [15 - row]) for row in range(6)]
    x = _hidden(6)
    got = model.run(x, segments, arena)
    expected = torch.cat([model.run(x[i : i + 1], [s], alone) for i, s in enumerate(segments)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_rollback_writes_over_what_was_there(checkpoint) -> None:
    """Positions may go back: the cache beyond is forgotten by writing over it."""
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(0, 3), tensors, exact=True)
    arena = model.arena(32, 8)
    x = _hidden(12)
    model.run(_hidden(12, 9), [Segment(12, 0, [1, 3])], arena)
    model.run(x[:5], [Segment(5, 0, [1, 3])], arena)
    assert torch.equal(model.run(x[5:], [Segment(7, 5, [1, 3])], arena), model.run(x, [Segment(12)])[5:])


def test_borders_are_offered_inside_the_span_only(checkpoint) -> None:
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(0, 3), tensors, exact=True)
    seen = []

    def border(number: int, hidden: Tensor) -> Tensor:
        seen.append((number, tuple(hidden.shape)))
        return hidden.to(torch.bfloat16).float()

    x = _hidden(5)
    rounded = model.run(x, [Segment(5)], border=border)
    assert seen == [(1, (5, 48)), (2, (5, 48))]
    by_hand = x
    for block in range(3):
        one = SpanModel.load(config, Span(block, block + 1), tensors, exact=True)
        by_hand = one.run(by_hand if block == 0 else by_hand.to(torch.bfloat16).float(), [Segment(5)])
    assert torch.equal(rounded, by_hand)


def test_the_input_is_not_changed_and_nothing_carries_gradients(checkpoint) -> None:
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(1, 2), tensors)
    x = _hidden(4).requires_grad_()
    before = x.detach().clone()
    y = model.run(x, [Segment(4)])
    assert torch.equal(x, before)
    assert not y.requires_grad
    assert model.run(_hidden(0), []).shape == (0, 48)


def test_wrong_calls_are_refused(checkpoint) -> None:
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(0, 1), tensors)
    with pytest.raises(ValueError, match="hidden states"):
        model.run(_hidden(3), [Segment(2)])
    with pytest.raises(ValueError, match="cannot hold"):
        model.run(_hidden(3), [Segment(3, 7, [0])], model.arena(16, 8))
    with pytest.raises(ValueError, match="3 blocks"):
        SpanModel.load(config, Span(2, 4), tensors)
    with pytest.raises(UserError, match="int4"):
        SpanModel.load(config, Span(0, 1), tensors, dtype="int4")
    with pytest.raises(CheckpointError, match="missing"):
        SpanModel.load(config, Span(0, 1), {})


def test_loading_takes_what_the_span_needs_and_reports(checkpoint) -> None:
    config, tensors = checkpoint
    taken, heard = [], []

    def get(name: str) -> Tensor:
        taken.append(name)
        return tensors[name]

    model = SpanModel.load(config, Span(1, 3), get, progress=heard.append)
    assert heard == [1, 2]
    assert len(taken) == len(set(taken)) == 18
    assert all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in taken)
    matrices = sum(tensors[n].nbytes for n in taken if tensors[n].dim() == 2)
    assert matrices <= model.weight_bytes < 1.7 * matrices  # tiny widths are padded to whole tiles


def test_a_pass_may_use_some_of_the_blocks(checkpoint) -> None:
    """A chain may enter and leave a server in the middle of its span; each block keeps its own cache."""
    config, tensors = checkpoint
    model = SpanModel.load(config, Span(0, 3), tensors, exact=True)
    arena, whole = model.arena(16, 8), model.arena(16, 8)
    x = _hidden(9)
    for start, stop in ((0, 5), (5, 9)):
        segment = Segment(stop - start, start, [1, 0])
        expected = model.run(x[start:stop], [segment], whole)
        half = model.run(x[start:stop], [segment], arena, span=Span(0, 1))
        assert torch.equal(model.run(half, [segment], arena, span=Span(1, 3)), expected)
    with pytest.raises(ValueError, match="of a span"):
        SpanModel.load(config, Span(1, 2), tensors).run(x, [Segment(9)], span=Span(1, 3))
