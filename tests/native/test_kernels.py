"""The C++ product equals its torch twin as far as rounding allows, and its rows never depend on each other."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm_native import kernels

NATIVE = [name for name in kernels.available() if name != "torch"]
needs_native = pytest.mark.skipif(not NATIVE, reason="no compiled products for this CPU")


@contextlib.contextmanager
def running(name, threads=1):
    before, threads_before = kernels.isa(), torch.get_num_threads()
    kernels.use(name)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        kernels.use(before)
        torch.set_num_threads(threads_before)


def make(rows, inputs, tiles, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    return x, torch.randn(tiles, inputs, kernels.TILE, generator=generator)


def chain(x, weight, row, output):
    """One output as the law says: fused multiply-adds in ascending order, each rounded once."""
    total = np.float32(0)
    for k in range(x.shape[1]):
        exact = np.float64(x[row, k].item()) * np.float64(weight[output // 32, k, output % 32].item())
        total = np.float32(np.longdouble(exact) + np.longdouble(total))  # a product of floats is exact in a double
    return total


@given(
    rows=st.integers(1, 40), inputs=st.sampled_from([1, 3, 31, 64, 511, 512, 513, 1100]), tiles=st.integers(1, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_the_twin_but_for_rounding(rows, inputs, tiles, seed):
    x, weight = make(rows, inputs, tiles, seed)
    exact = kernels.product_reference(x.double(), weight.double())
    scale = kernels.product_reference(x.double().abs(), weight.double().abs())
    for name in kernels.available():
        with running(name):
            error = (kernels.product(x, weight).double() - exact).abs()
        assert (error <= 2**-24 * (inputs + 2) * scale).all(), name


@needs_native
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_know_its_neighbours(name, threads):
    """Any number of rows, from one to more than three blocks, any offset among them, any number of threads."""
    x, weight = make(50, 1025, 7)
    with running(name):
        whole = kernels.product(x, weight)
    with running(name, threads):
        for count in range(1, 27):
            assert torch.equal(kernels.product(x[:count], weight), whole[:count])
            assert torch.equal(kernels.product(x[50 - count :], weight), whole[50 - count :])


@needs_native
def test_all_instruction_sets_give_the_same_bits():
    """Fused multiply-adds in one order leave nothing to the width of a vector."""
    x, weight = make(13, 700, 3)
    found = []
    for name in NATIVE:
        with running(name):
            found.append(kernels.product(x, weight))
    assert all(torch.equal(one, found[0]) for one in found[1:])
    for row, output in ((0, 0), (5, 31), (12, 95)):
        assert found[0][row, output].item() == chain(x, weight, row, output)


@needs_native
def test_rows_that_do_not_lie_side_by_side():
    x, weight = make(9, 64, 2)
    wide = torch.randn(9, 200)
    wide[:, 7:71] = x
    assert torch.equal(kernels.product(wide[:, 7:71], weight), kernels.product(x, weight))


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        lambda x, w: (x.double(), w),
        lambda x, w: (x, w.double()),
        lambda x, w: (x[:, 1:], w),
        lambda x, w: (x, w[:, :, :16]),
        lambda x, w: (x, w.transpose(0, 1).contiguous().transpose(0, 1)),
    ],
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match=r"times|one after another"):
        kernels.product(*arguments(*make(3, 32, 2)))


def test_no_rows_give_no_rows():
    _, weight = make(1, 32, 2)
    assert kernels.product(torch.empty(0, 32), weight).shape == (0, 64)


def test_unknown_instruction_sets_are_refused():
    with pytest.raises(ValueError, match="there are"):
        kernels.use("abacus")


@pytest.mark.real_clock
@pytest.mark.parametrize("wanted", ["numpy", "torch", *NATIVE])
def test_the_environment_chooses(wanted):
    code = "from p2pllm_native import kernels; print(kernels.isa(), kernels.runs())"
    environ = {**os.environ, "P2PLLM_NATIVE_ISA": wanted}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    name = wanted if wanted in NATIVE else "torch"
    assert done.stdout.split() == [name, str(name != "torch")]
