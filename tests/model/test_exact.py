"""Exact mode: rows depend on nothing but themselves, and the start-up check tells when they would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from p2pllm.model.exact import check_exact, numerics
from p2pllm.model.product import Product
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from p2pllm_native import kernels
from tests.model import zoo


def _model(name: str = "llama-gqa", **arguments: object) -> SpanModel:
    config, tensors = zoo.ours(zoo.reference(name))
    return SpanModel.load(config, Span(0, 3), tensors, **arguments)


@pytest.mark.parametrize(("name", "threads"), [("llama-gqa", 1), ("qwen2-window", 2), ("qwen3", 1)])
def test_the_check_passes_for_our_recipe(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = _model(name)
    assert check_exact(model)
    assert model.exact


def test_the_check_passes_for_wide_blocks() -> None:
    """Widths at which torch would cut elementwise work among threads."""
    torch.set_num_threads(2)
    model = zoo.reference("llama-gqa", hidden_size=192, intermediate_size=4500, num_hidden_layers=1)
    config, tensors = zoo.ours(model)
    assert check_exact(SpanModel.load(config, Span(0, 1), tensors))


@pytest.fixture
def torch_products() -> Iterator[None]:
    """As on a machine without compiled products."""
    before = kernels.isa()
    kernels.use("torch")
    yield
    kernels.use(before)


@pytest.mark.usefixtures("torch_products")
@pytest.mark.parametrize(("name", "threads"), [("llama-gqa", 1), ("qwen2-window", 2)])
def test_without_native_products_rows_are_padded(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = _model(name)
    assert check_exact(model)
    assert model.row_pad == 8


@pytest.mark.skipif(kernels.isa() == "torch", reason="no compiled products for this CPU")
def test_native_products_need_no_padding() -> None:
    model = _model()
    assert check_exact(model)
    assert model.row_pad == 1


@pytest.mark.usefixtures("torch_products")
def test_without_the_recipe_rows_depend_on_their_batch() -> None:
    """What the check is for: if this ever fails, torch's products have become exact and the recipe can go."""
    model = _model()
    x = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
    together = model.run(x, [Segment(1)] * 8)
    alone = torch.cat([model.run(x[i : i + 1], [Segment(1)]) for i in range(8)])
    assert not torch.equal(together, alone)


def test_the_check_falls_back_to_fixed_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose rows depend on their number is still exact in pieces of 8."""
    honest = Product._product

    def fickle(self: Product, x: torch.Tensor) -> torch.Tensor:
        return honest(self, x) * (1 + 1e-6 * (len(x) > 8))

    monkeypatch.setattr(Product, "_product", fickle)
    model = _model()
    assert check_exact(model)
    assert model.blocks[0].products[0].row_tile == 8


def test_the_check_says_no_when_nothing_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose rows depend on their place in the batch cannot be mended."""
    honest = Product._product

    def fickle(self: Product, x: torch.Tensor) -> torch.Tensor:
        return honest(self, x) * (1 + 1e-6 * torch.arange(len(x)).unsqueeze(1))

    monkeypatch.setattr(Product, "_product", fickle)
    model = _model(exact=True)
    assert not check_exact(model)
    assert not model.exact
    assert model.blocks[0].products[0].row_tile is None


def test_half_precision_is_not_promised() -> None:
    model = _model(dtype="bfloat16", exact=True)
    assert not check_exact(model)
    assert not model.exact


def test_a_long_generation_is_the_same_however_it_is_cut() -> None:
    """Hundreds of tokens, several key splits, replayed in chunks beside other rows."""
    model = _model("mistral", exact=True)
    x = torch.randn(300, 48, generator=torch.Generator().manual_seed(0))
    arena, pages = model.arena(640, 16), [list(range(20)), list(range(39, 19, -1))]
    first = [model.run(x[:10], [Segment(10, 0, pages[0])], arena)]
    first += [model.run(x[i : i + 1], [Segment(1, i, pages[0])], arena) for i in range(10, 300)]
    again = []
    for start in range(0, 300, 128):
        count = min(128, 300 - start)
        mixed = torch.cat([x[start : start + count], x[:1]])
        again.append(model.run(mixed, [Segment(count, start, pages[1]), Segment(1)], arena)[:count])
    assert torch.equal(torch.cat(first), torch.cat(again))


def test_numerics_class() -> None:
    exact = numerics("float32", exact=True)
    assert (exact.dtype, exact.quantization, exact.exact) == ("float32", "none", True)
    assert exact.kernels.startswith("torch-" + torch.__version__.partition("+")[0])
    assert exact == numerics(torch.float32, exact=True)
    assert exact.kernels != numerics("bfloat16").kernels
    assert exact.tag().startswith("float32/none/torch-")
