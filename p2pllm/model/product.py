"""Products of activations with weight matrices, in whichever memory layout is fastest and right.

Invariants: a layout is a pure function of dtype, device and build (never of a timing), so machines of one class
compute alike. In exact mode only paths whose rows do not depend on the number of rows are taken.

On CPU in fp32, weights lie as tiles [outputs / 32, inputs, 32]. The native product reads them at the speed of memory
for one row and near the peak of the core from eight rows on, and its rows never depend on each other. Without it, one
row as a batched product over the tiles is what torch does best (a row-major weight reaches a third of the bandwidth),
and from ``ASSEMBLE_ROWS`` rows on it pays to put the tiles together and use one large product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from p2pllm_native.kernels import TILE
from torch import Tensor
from torch.nn import functional

from p2pllm_native import kernels

ASSEMBLE_ROWS = 256
ROW_TILE = 8
SERIAL_NUMBERS = 32768
"""Torch splits elementwise work above this size among threads, at borders that depend on the size."""


def padded(width: int) -> int:
    """The next multiple of the tile width."""
    return -(-width // TILE) * TILE


def tiles_pay(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the tiled layout is the right one here."""
    if device.type != "cpu" or dtype != torch.float32:
        return False
    with_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return with_mkl or kernels.isa() != "torch"


class Product:
    """y = x Wᵀ + b for a weight whose outputs are stored as concatenated parts (q, k, v; or gate, up).

    Attributes:
        outputs: numbers per row of the result, padding excluded.
        exact: take only paths whose rows do not depend on the number of rows; padding it to a multiple of 8, where
            ``p2pllm.model.exact`` found that this is needed, is the caller's duty.
        row_tile: when set, compute in pieces of so many rows: where padding alone does not make rows independent.
    """

    def __init__(
        self, outputs: int, inputs: int, *, dtype: torch.dtype, device: torch.device, bias: bool = False
    ) -> None:
        self.outputs = outputs
        self.exact = False
        self.row_tile: int | None = None
        self.tiled = tiles_pay(dtype, device)
        width = padded(outputs) if self.tiled else outputs
        self._width, self._tiles, self._inputs = width, width // TILE, inputs
        shape = (self._tiles, inputs, TILE) if self.tiled else (width, inputs)
        self.weight = torch.zeros(shape, dtype=dtype, device=device)
        self.bias = torch.zeros(width, dtype=dtype, device=device) if bias else None

    def fill(self, offset: int, weight: Tensor, bias: Tensor | None = None) -> None:
        """Copy one part, row-major [n, k] as checkpoints have it (k may be short: the rest stays zero)."""
        count, inputs = weight.shape
        if bias is not None and self.bias is not None:
            self.bias[offset : offset + count].copy_(bias)
        if not self.tiled:
            self.weight[offset : offset + count, :inputs].copy_(weight)
            return
        start = 0
        while start < count:
            tile, lane = divmod(offset + start, TILE)
            whole = (count - start) // TILE
            if lane == 0 and whole:
                rows = weight[start : start + whole * TILE].view(whole, TILE, inputs)
                self.weight[tile : tile + whole, :inputs].copy_(rows.transpose(1, 2))
                start += whole * TILE
            else:
                take = min(TILE - lane, count - start)
                self.weight[tile, :inputs, lane : lane + take].copy_(weight[start : start + take].t())
                start += take

    def __call__(self, x: Tensor) -> Tensor:
        """[M, inputs] -> [M, outputs]."""
        if self.row_tile is not None and len(x) > self.row_tile:
            return torch.cat([self._product(piece) for piece in torch.split(x, self.row_tile)])
        return self._product(x)

    def differentiable(self, x: Tensor) -> Tensor:
        """As ``__call__``, with a gradient to ``x``; the weights are frozen."""
        return self._linear(x)

    def transposed(self, y: Tensor) -> Tensor:
        """The gradient's way back: [M, outputs] -> [M, inputs]."""
        if not self.tiled:
            return y @ self.weight
        if self._width != self.outputs:
            y = functional.pad(y, (0, self._width - self.outputs))
        return torch.mm(y, self.weight.transpose(1, 2).reshape(self._width, self._inputs))

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight itself, [len(index), inputs]: an embedding that is tied to this product."""
        if self.tiled:
            return self.weight[index // TILE, :, index % TILE]
        return functional.embedding(index, self.weight)

    def _product(self, x: Tensor) -> Tensor:
        if not self.tiled:
            return functional.linear(x, self.weight, self.bias)
        rows = x.shape[0]
        if kernels.runs():
            y = kernels.product(x, self.weight)
        elif rows == 1:
            y = torch.bmm(x.expand(self._tiles, 1, self._inputs), self.weight).view(1, self._width)
        elif rows >= ASSEMBLE_ROWS and not self.exact:
            y = torch.mm(x, self.weight.transpose(0, 1).reshape(self._inputs, self._width))
        else:
            y = self._untile(torch.bmm(x.expand(self._tiles, rows, self._inputs), self.weight))
        if self.bias is not None:
            y.add_(self.bias)
        return y if self._width == self.outputs else y[:, : self.outputs]

    def _linear(self, x: Tensor) -> Tensor:
        """The product alone, as autograd may see it: a tile's own gradient would be as large as all tiles together."""
        if not self.tiled:
            y = functional.linear(x, self.weight, self.bias)
            return y if self._width == self.outputs else y[:, : self.outputs]
        out: Tensor = _Frozen.apply(x, self)  # type: ignore[no-untyped-call]
        return out

    @staticmethod
    def _untile(y: Tensor) -> Tensor:
        """[tiles, M, 32] -> [M, tiles * 32]."""
        return y.transpose(0, 1).reshape(y.shape[1], y.shape[0] * TILE)


class _Frozen(torch.autograd.Function):
    """A product with tiles that do not learn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Product) -> Tensor:
        ctx.product = product
        return Product._product(product, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.product.transposed(gradients[0]), None


class GatedProduct(Product):
    """silu(x Gᵀ + g) * (x Uᵀ + u): both weights in one matrix, gate first, each padded to whole tiles.

    The result is as wide as the padding; its surplus columns are zero and meet zero weights in the next product.
    """

    def __init__(
        self, width: int, inputs: int, *, dtype: torch.dtype, device: torch.device, bias: bool = False
    ) -> None:
        self.half = padded(width) if tiles_pay(dtype, device) else width
        super().__init__(2 * self.half, inputs, dtype=dtype, device=device, bias=bias)

    def _product(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if self.tiled and self.bias is None and kernels.runs():
            gate, up = (kernels.product(x, half) for half in self.weight.chunk(2))  # gate's tiles come first
            return silu_(gate, self.exact).mul_(up)
        if not self.tiled or self.bias is not None or (rows >= ASSEMBLE_ROWS and not self.exact):
            gate, up = super()._product(x).chunk(2, dim=1)
            return silu_(gate.contiguous() if self.exact else gate, self.exact).mul_(up)
        gate, up = torch.bmm(x.expand(self._tiles, rows, self._inputs), self.weight).chunk(2)
        y = silu_(gate, self.exact).mul_(up)
        return y.view(1, self.half) if rows == 1 else self._untile(y)

    def differentiable(self, x: Tensor) -> Tensor:
        """See ``Product.differentiable``."""
        gate, up = self._linear(x).chunk(2, dim=1)
        return functional.silu(gate) * up


def silu_(x: Tensor, exact: bool) -> Tensor:
    """SiLU in place. Vector and scalar code round differently, so exact mode keeps threads from cutting vectors."""
    if exact and x.numel() > SERIAL_NUMBERS:
        for piece in torch.split(x.view(-1), SERIAL_NUMBERS):
            functional.silu(piece, inplace=True)
        return x
    return functional.silu(x, inplace=True)


def fused(
    parts: Sequence[tuple[Tensor, Tensor | None]], inputs: int, *, dtype: torch.dtype, device: torch.device
) -> Product:
    """One product from parts that lie behind one another."""
    bias = any(b is not None for _, b in parts)
    product = Product(sum(len(w) for w, _ in parts), inputs, dtype=dtype, device=device, bias=bias)
    offset = 0
    for weight, part_bias in parts:
        product.fill(offset, weight, part_bias)
        offset += len(weight)
    return product
