"""The model's blocks, wherever they are served, as something to compute and differentiate with.

Invariants: weights stay at the servers and do not learn. A way back needs what the way forward kept: the inputs of
every server, at the client. Activations and gradients travel without loss unless the caller says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from p2pllm.client.backward import BackwardPass
from p2pllm.client.chain import ForwardPass, Part, Passed
from p2pllm.client.context import Context
from p2pllm.client.edge import TAGS, Packed, pack, unpack
from p2pllm.errors import UserError
from p2pllm.types import Span


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A batch that went through some blocks, and what its way back needs.

    Attributes:
        output: hidden states [B, S, H] behind the last block.
    """

    output: torch.Tensor
    _codec: str
    _points: tuple[int, ...]
    _passed: dict[Part, list[Passed]]


class Blocks:
    """Consecutive blocks of a model in a swarm; ``blocks[3:7]`` are some of them."""

    def __init__(self, context: Context, span: Span) -> None:
        self._context = context
        self.span = span

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: slice | int) -> Blocks:
        """Some of these blocks, counted from the first of them.

        Raises:
            UserError: none, or not consecutive ones.
        """
        chosen = range(len(self))[index] if isinstance(index, slice) else range(len(self))[index:][:1]
        if not chosen or chosen.step != 1:
            raise UserError(f"blocks are taken as consecutive ones of {len(self)}")
        start = self.span.start + chosen.start
        return Blocks(self._context, Span(start, start + len(chosen)))

    async def run(self, hidden: torch.Tensor, *, activations: str | None = None) -> torch.Tensor:
        """Hidden states [B, S, H] of whole sequences through the blocks, [B, S, H].

        Raises:
            UserError: the shape or the codec does not fit.
            CoverageError: nobody serves some of the blocks.
            SwarmError: servers failed.
        """
        return (await self._forward(hidden, activations, keep=False)).output

    async def run_forward(self, hidden: torch.Tensor, *, activations: str | None = None) -> Forwarded:
        """As ``run``, keeping what ``run_backward`` needs: each server's inputs, encoded as they travelled."""
        return await self._forward(hidden, activations, keep=True)

    async def run_backward(
        self, forwarded: Forwarded, gradient: torch.Tensor, *, gradients: str | None = None
    ) -> torch.Tensor:
        """Gradient [B, S, H] at the blocks' inputs, for ``gradient`` [B, S, H] at their outputs.

        Args:
            gradients: codec in which gradients travel; None: without loss.

        Raises:
            UserError: the shape or the codec does not fit.
            SwarmError: servers failed.
        """
        self._check(gradient, forwarded.output.shape)
        context, codec = self._context, self._codec(gradients)
        flat, result = gradient.detach().flatten(0, 1), torch.empty_like(forwarded.output)
        length, rows = gradient.shape[1], result.flatten(0, 1)

        async def source(part: Part) -> Packed:
            return await context.compute(lambda: pack(_tokens(flat, part, length), codec), part.tokens)

        async def sink(part: Part, packed: Packed) -> None:
            def store() -> None:
                _tokens(rows, part, length).copy_(unpack(packed, context.dtype))

            await context.compute(store, part.tokens)

        back = BackwardPass(context, forwarded._codec, forwarded._points)
        await back.run(forwarded._passed, source, sink)
        return result

    async def _forward(self, hidden: torch.Tensor, activations: str | None, *, keep: bool) -> Forwarded:
        self._check(hidden)
        context, codec = self._context, self._codec(activations)
        batch, length, _ = hidden.shape
        flat, result = hidden.detach().flatten(0, 1), torch.empty(hidden.shape, dtype=context.dtype)
        rows = result.flatten(0, 1)

        async def source(part: Part) -> Packed:
            return await context.compute(lambda: pack(_tokens(flat, part, length), codec), part.tokens)

        async def sink(part: Part, packed: Packed) -> None:
            def store() -> None:
                _tokens(rows, part, length).copy_(unpack(packed, context.dtype))

            await context.compute(store, part.tokens)

        made = ForwardPass(context, codec, self.span, keep=keep)
        await made.run((length,) * batch, source, sink)
        return Forwarded(result, codec, made.points, made.passed)

    def _codec(self, wanted: str | None) -> str:
        return self._context.codec(wanted or TAGS[self._context.dtype])

    def _check(self, hidden: torch.Tensor, shape: torch.Size | None = None) -> None:
        width, longest = self._context.shape.hidden_size, self._context.config.client.forward_row_tokens_max
        if hidden.dim() != 3 or hidden.shape[2] != width or not hidden.numel():
            raise UserError(f"hidden states of shape {list(hidden.shape)}: blocks take [batch, tokens, {width}]")
        if shape is not None and hidden.shape != shape:
            raise UserError(f"a gradient of shape {list(hidden.shape)} for outputs of shape {list(shape)}")
        if hidden.shape[1] > longest:
            raise UserError(f"sequences of {hidden.shape[1]} tokens; at most {longest} go through at once")
        if hidden.dtype not in TAGS:
            raise UserError(f"hidden states of {hidden.dtype}; blocks take float32, bfloat16 or float16")


def _tokens(flat: torch.Tensor, part: Part, length: int) -> torch.Tensor:
    """The part's tokens of a batch whose sequences all have ``length`` of them."""
    return flat[part.first * length : (part.first + len(part.counts)) * length]
