"""A span of blocks that computes: what a server runs.

Invariants: a pass takes tokens of many rows, packed, and returns as many; it changes nothing but the pages of the
segments that it was given. One thread at a time. No tensor that leaves here carries gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p2pllm.model.attention import ROW_PAD, Plan, Segment
from p2pllm.model.config import ModelConfig
from p2pllm.model.gradient import backward
from p2pllm.model.kv import KVArena
from p2pllm.model.layers import as_dtype
from p2pllm.model.registry import block_class
from p2pllm.model.rope import Rope
from p2pllm.types import Span

TensorSource = Mapping[str, Tensor] | Callable[[str], Tensor]
"""Where weights come from, by their names in the checkpoint; a missing one raises KeyError or CheckpointError."""

Border = Callable[[int, Tensor], Tensor]
"""Called between two blocks of the span with the number of the border (that of the block behind it) and the hidden
states [T, H] there; returns what the next block gets. May work in place."""

__all__ = ["Border", "KVArena", "Segment", "SpanModel", "TensorSource"]


class SpanModel:
    """The blocks ``span`` of a model, with their weights.

    Attributes:
        exact: a row's result depends neither on its batch nor on the cut of its sequence. Set on request; it is a
            promise only after ``p2pllm.model.exact.check_exact``.
        row_pad: exact mode computes with a multiple of so many rows.
    """

    def __init__(
        self, config: ModelConfig, span: Span, blocks: Sequence[Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = config
        self.span = span
        self.dtype = dtype
        self.device = device
        self.blocks = tuple(blocks)
        self.rope = Rope(config, device)
        self.row_pad = ROW_PAD
        self._exact = False

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        span: Span,
        tensors: TensorSource,
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        exact: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> SpanModel:
        """Build the blocks, taking one tensor at a time; ``progress`` hears the number of each block when it is built.

        Raises:
            CheckpointError: a tensor is missing or misshapen.
            ValueError: the model has no such blocks.
        """
        if span.end > config.num_blocks:
            raise ValueError(f"span {span} of a model with {config.num_blocks} blocks")
        get = tensors if callable(tensors) else tensors.__getitem__
        torch_dtype, torch_device = as_dtype(dtype), torch.device(device)
        build = block_class(config.family)
        blocks = []
        with torch.no_grad():  # not inference mode: its tensors could never take part in a backward pass
            for block in span:
                blocks.append(build(config, block, get, torch_dtype, torch_device))
                if progress is not None:
                    progress(block)
        model = cls(config, span, blocks, torch_dtype, torch_device)
        model.exact = exact
        return model

    @property
    def exact(self) -> bool:
        return self._exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        self._exact = exact
        for block in self.blocks:
            for product in block.products:
                product.exact = exact

    def set_row_tile(self, rows: int | None) -> None:
        """Compute products in pieces of ``rows`` rows; None: in one piece."""
        for block in self.blocks:
            for product in block.products:
                product.row_tile = rows

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight matrices, as they are held: what one decoded token must read at least."""
        return sum(product.weight.nbytes for block in self.blocks for product in block.products)

    def arena(self, tokens: int, page_tokens: int = 16) -> KVArena:
        """A cache that fits this span."""
        c = self.config
        return KVArena(len(self.span), c.num_kv_heads, c.head_dim, tokens, page_tokens, self.dtype, self.device)

    @torch.inference_mode()
    def run(
        self,
        hidden: Tensor,
        segments: Sequence[Segment],
        kv: KVArena | None = None,
        border: Border | None = None,
        span: Span | None = None,
    ) -> Tensor:
        """Pass packed tokens [T, H] through the span; the segments say whose they are, in order. Returns [T, H].

        The input is not changed. The new tokens' keys and values are in the cache afterwards.

        Args:
            span: only these of the blocks: a chain may enter and leave a server in the middle of what it holds.

        Raises:
            ValueError: the segments do not add up to T, their pages do not fit the cache, or ``span`` is not held here.
        """
        span = span or self.span
        if not self.span.covers(span):
            raise ValueError(f"blocks {span} of a span {self.span}")
        if hidden.shape != (sum(s.count for s in segments), self.config.hidden_size):
            raise ValueError(
                f"hidden states {tuple(hidden.shape)} for segments of {[s.count for s in segments]} tokens"
            )
        if not len(hidden):
            return hidden.to(self.device, self.dtype)
        plan = Plan(self.config, segments, self.rope, kv, self._exact, self.row_pad)
        x = torch.empty(plan.rows, self.config.hidden_size, dtype=self.dtype, device=self.device)
        x[: plan.tokens].copy_(hidden)
        x[plan.tokens :].zero_()
        for number in span:
            if border is not None and number > span.start:
                x[: plan.tokens] = border(number, x[: plan.tokens])
            index = number - self.span.start
            self.blocks[index](x, index, plan)
        return x[: plan.tokens]

    def backward(
        self,
        hidden: Tensor,
        gradient: Tensor,
        segments: Sequence[Segment],
        border: Border | None = None,
        span: Span | None = None,
    ) -> Tensor:
        """Gradient [T, H] at the inputs of whole sequences, for ``gradient`` [T, H] at their outputs.

        Raises:
            ValueError: the shapes do not fit, a segment continues a cache, or ``span`` is not held here.
        """
        return backward(self, hidden, gradient, segments, border, span)
