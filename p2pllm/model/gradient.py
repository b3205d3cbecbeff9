"""The way back through a span of frozen blocks: from a gradient at its outputs to the gradient at its inputs.

Invariants: stateless, as the server that runs it: activations are computed anew from the inputs, and the weights get no
gradient. Memory is bounded: blocks are taken in groups whose activations fit a budget, the last group first. Rounding
at codec points counts as if it were not there (a straight-through estimate), for the way back only. In exact mode every
block starts from the very bits that it gets on the way forward, so a gradient does not depend on how its blocks were
divided among servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p2pllm.model.attention import Plan, Segment
from p2pllm.model.config import ModelConfig
from p2pllm.types import Span

if TYPE_CHECKING:
    from p2pllm.model.span import Border, SpanModel

SAVED_BYTES_MAX = 1 << 30
"""Activations that a group of blocks may hold."""


def backward(
    model: SpanModel,
    hidden: Tensor,
    gradient: Tensor,
    segments: Sequence[Segment],
    border: Border | None = None,
    span: Span | None = None,
    saved_bytes_max: int = SAVED_BYTES_MAX,
) -> Tensor:
    """Gradient [T, H] at the span's inputs ``hidden`` [T, H], for ``gradient`` [T, H] at its outputs.

    Segments are whole sequences, without a cache; the other arguments are those of ``SpanModel.run``.

    Raises:
        ValueError: the segments do not add up to T or continue a cache, or ``span`` is not held here.
    """
    span = span or model.span
    shape = (sum(s.count for s in segments), model.config.hidden_size)
    if not model.span.covers(span) or tuple(hidden.shape) != shape or tuple(gradient.shape) != shape:
        raise ValueError(f"{tuple(hidden.shape)} and {tuple(gradient.shape)} for {shape} through {span}")
    if any(s.slots is not None for s in segments):
        raise ValueError("gradients need whole sequences")
    if not len(hidden):
        return gradient.clone()
    plan = Plan(model.config, segments, model.rope, None, exact=False)
    plan.factors = plan.factors.clone()  # a table that grew in inference mode could not be saved for the way back
    group = 1 if model.exact else max(1, saved_bytes_max // (len(hidden) * saved_bytes(model.config, model.dtype)))
    starts = list(range(span.start, span.end, group))
    inputs = [hidden.to(model.device, model.dtype)]
    with torch.no_grad():
        for start in starts[:-1]:
            blocks = Span(start, start + group)
            if model.exact:
                inputs.append(model.run(_rounded(inputs[-1], border, start, span), segments, span=blocks).clone())
            else:
                inputs.append(_through(model, inputs[-1], plan, border, blocks, span.start))
    result = gradient.to(model.device, model.dtype)
    for start, entered in zip(reversed(starts), reversed(inputs), strict=True):
        leaf = entered.detach().requires_grad_()
        with torch.enable_grad():
            out = _through(model, leaf, plan, border, Span(start, min(start + group, span.end)), span.start)
            (result,) = torch.autograd.grad(out, leaf, result)
    return result


def saved_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """About what autograd keeps of one token in one block."""
    attention = (config.num_heads * 3 + config.num_kv_heads * 4) * config.head_dim
    return (8 * config.hidden_size + attention + 4 * config.intermediate_size) * dtype.itemsize


def _rounded(x: Tensor, border: Border | None, block: int, span: Span) -> Tensor:
    return x if border is None or block == span.start else border(block, x.clone())


def _through(model: SpanModel, x: Tensor, plan: Plan, border: Border | None, blocks: Span, entry: int) -> Tensor:
    for number in blocks:
        if border is not None and number > entry:
            x = x + (border(number, x.detach().clone()) - x).detach()
        x = model.blocks[number - model.span.start].differentiable(x, plan)
    return x
