"""Gradients through frozen blocks equal those of transformers' own, for every family that we compute."""

from __future__ import annotations

import pytest
import torch

from p2pllm.model.exact import check_exact
from p2pllm.model.gradient import backward, saved_bytes
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from p2pllm_native import kernels
from tests.model import zoo

COUNTS = (7, 1, 12)


def theirs(reference: torch.nn.Module, hidden: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient at the blocks' inputs of one sequence [S, H]; the final norm is left out by looking before it."""
    leaf = hidden.clone().unsqueeze(0).requires_grad_()
    reference.model.norm = torch.nn.Identity()
    out = reference.model(inputs_embeds=leaf).last_hidden_state
    (found,) = torch.autograd.grad(out, leaf, gradient.unsqueeze(0))
    return found[0]


def close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((ours - wanted).abs().max() <= tolerance * wanted.abs().max())


def batch(hidden_size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[Segment]]:
    generator = torch.Generator().manual_seed(seed)
    hidden, gradient = torch.randn(2, sum(COUNTS), hidden_size, generator=generator)
    return hidden, gradient, [Segment(count) for count in COUNTS]


@pytest.mark.parametrize("products", ["native", "torch"])
@pytest.mark.parametrize("name", sorted(zoo.FAMILIES))
def test_gradients_are_those_of_transformers(name: str, products: str) -> None:
    before = kernels.isa()
    kernels.use("torch" if products == "torch" else kernels.available()[0])
    try:
        reference = zoo.reference(name)
        config, tensors = zoo.ours(reference)
        model = SpanModel.load(config, Span(0, 3), tensors)
        hidden, gradient, segments = batch(config.hidden_size)
        found = backward(model, hidden, gradient, segments)
        for ours, x, g in zip(found.split(COUNTS), hidden.split(COUNTS), gradient.split(COUNTS), strict=True):
            if "dynamic" in name and len(x) > 32:
                continue  # there transformers' own base depends on the cut
            assert close(ours, theirs(reference, x, g))
    finally:
        kernels.use(before)


def test_small_groups_give_the_same_gradient() -> None:
    """One block at a time, when memory is short."""
    config, tensors = zoo.ours(zoo.reference("llama-gqa"))
    model = SpanModel.load(config, Span(0, 3), tensors)
    hidden, gradient, segments = batch(config.hidden_size)
    whole = backward(model, hidden, gradient, segments)
    each = len(hidden) * saved_bytes(config, model.dtype)
    for groups in (1, 2 * each):
        assert torch.equal(backward(model, hidden, gradient, segments, saved_bytes_max=groups), whole)


def test_a_model_that_has_served_before_can_go_back() -> None:
    """What inference mode left behind, such as a grown table of rotations, must not get into the way."""
    config, tensors = zoo.ours(zoo.reference("llama-gqa"))
    fresh, used = (SpanModel.load(config, Span(0, 3), tensors) for _ in range(2))
    hidden, gradient, segments = batch(config.hidden_size)
    used.run(hidden, segments)
    assert torch.equal(used.backward(hidden, gradient, segments), fresh.backward(hidden, gradient, segments))


def test_two_spans_are_one() -> None:
    config, tensors = zoo.ours(zoo.reference("qwen3"))
    model = SpanModel.load(config, Span(0, 3), tensors)
    hidden, gradient, segments = batch(config.hidden_size)
    middle = model.run(hidden, segments, span=Span(0, 2)).clone()
    back = backward(model, middle, gradient, segments, span=Span(2, 3))
    whole = backward(model, hidden, gradient, segments)
    assert close(backward(model, hidden, back, segments, span=Span(0, 2)), whole, 1e-6)


def test_in_exact_mode_two_spans_are_one_bit_for_bit() -> None:
    config, tensors = zoo.ours(zoo.reference("qwen3"))
    model = SpanModel.load(config, Span(0, 3), tensors)
    assert check_exact(model)
    hidden, gradient, segments = batch(config.hidden_size)

    def border(block: int, x: torch.Tensor) -> torch.Tensor:
        return (x * 64).round() / 64 if block == 1 else x

    whole = backward(model, hidden, gradient, segments, border)
    for cut in (1, 2):
        middle = model.run(hidden, segments, border=border, span=Span(0, cut)).clone()
        middle = border(cut, middle)
        back = backward(model, middle, gradient, segments, border, span=Span(cut, 3))
        assert torch.equal(backward(model, hidden, back, segments, border, span=Span(0, cut)), whole)


def test_rounding_at_a_border_is_passed_straight_through() -> None:
    """The way there is rounded, the way back is not."""
    config, tensors = zoo.ours(zoo.reference("llama"))
    model = SpanModel.load(config, Span(0, 3), tensors)
    hidden, gradient, segments = batch(config.hidden_size)

    def border(block: int, x: torch.Tensor) -> torch.Tensor:
        return (x * 64).round() / 64 if block == 1 else x

    rounded = border(1, model.run(hidden, segments, span=Span(0, 1)).clone())
    wanted = backward(
        model, hidden, backward(model, rounded, gradient, segments, span=Span(1, 3)), segments, span=Span(0, 1)
    )
    assert close(backward(model, hidden, gradient, segments, border), wanted, 1e-6)
    assert not torch.equal(backward(model, hidden, gradient, segments), wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(dtype: str) -> None:
    config, tensors = zoo.ours(zoo.reference("llama-gqa"))
    hidden, gradient, segments = batch(config.hidden_size)
    exact = backward(SpanModel.load(config, Span(0, 3), tensors), hidden, gradient, segments)
    half = SpanModel.load(config, Span(0, 3), tensors, dtype)
    assert close(backward(half, hidden, gradient, segments).float(), exact, 0.1)


def test_what_has_a_cache_or_other_shapes_is_refused() -> None:
    config, tensors = zoo.ours(zoo.reference("llama"))
    model = SpanModel.load(config, Span(1, 3), tensors)
    hidden, gradient, segments = batch(config.hidden_size)
    with pytest.raises(ValueError, match="whole sequences"):
        backward(model, hidden[:2], gradient[:2], [Segment(2, 0, (0,))])
    with pytest.raises(ValueError, match="through"):
        backward(model, hidden, gradient[1:], segments)
    with pytest.raises(ValueError, match="through"):
        backward(model, hidden, gradient, segments, span=Span(0, 2))
