"""Both layouts compute the plain product, for any width, and exact mode's paths give rows that do not depend on M."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from p2pllm.model.product import ASSEMBLE_ROWS, GatedProduct, Product, silu_

CPU = torch.device("cpu")


def _product(parts: list[Tensor], bias: list[Tensor] | None = None, dtype: torch.dtype = torch.float32) -> Product:
    product = Product(sum(len(p) for p in parts), parts[0].shape[1], dtype=dtype, device=CPU, bias=bias is not None)
    offset = 0
    for i, part in enumerate(parts):
        product.fill(offset, part, None if bias is None else bias[i])
        offset += len(part)
    return product


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.integers(1, 40),
    st.sampled_from([1, 2, 9, ASSEMBLE_ROWS]),
    st.booleans(),
)
def test_any_parts_at_any_width(widths: list[int], inputs: int, rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(width, inputs) for width in widths]
    bias = [torch.randn(width) for width in widths] if biased else None
    x = torch.randn(rows, inputs)
    expected = functional.linear(x, torch.cat(parts), torch.cat(bias) if bias else None)
    product = _product(parts, bias)
    torch.testing.assert_close(product(x), expected, atol=1e-4, rtol=1e-4)
    index = torch.arange(sum(widths)).flip(0)
    assert torch.equal(product.rows(index), torch.cat(parts).flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, ASSEMBLE_ROWS])
@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize("biased", [False, True])
def test_gated(dtype: torch.dtype, rows: int, width: int, biased: bool) -> None:
    torch.manual_seed(0)
    gate, up, x = (torch.randn(n, 24, dtype=dtype) for n in (width, width, rows))
    g, u = (torch.randn(width, dtype=dtype) if biased else None for _ in range(2))
    gated = GatedProduct(width, 24, dtype=dtype, device=CPU, bias=biased)
    gated.fill(0, gate, g)
    gated.fill(gated.half, up, u)
    expected = functional.silu(functional.linear(x, gate, g)) * functional.linear(x, up, u)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(gated(x)[:, :width], expected, atol=tolerance, rtol=tolerance)
    assert not gated(x)[:, width:].any()


@pytest.mark.parametrize(("outputs", "inputs", "threads"), [(192, 128, 1), (512, 1376, 2), (100, 48, 1)])
def test_exact_rows_do_not_depend_on_their_number(outputs: int, inputs: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    product = _product([torch.randn(outputs, inputs)])
    product.exact = True
    x = torch.randn(1024, inputs)
    eight = torch.cat([product(piece) for piece in torch.split(x, 8)])
    for rows in (16, 24, 136, 256, 1024):
        assert torch.equal(product(x[:rows]), eight[:rows])
    product.row_tile = 8
    assert torch.equal(product(x), eight)


def test_silu_in_pieces_is_silu() -> None:
    x = torch.randn(9, 8192)
    assert torch.equal(silu_(x.clone(), exact=True), silu_(x.clone(), exact=False))
