"""Parts of blocks against their formulas."""

from __future__ import annotations

import pytest
import torch

from p2pllm.errors import CheckpointError, UserError
from p2pllm.model.config import TensorSpec
from p2pllm.model.layers import RMSNorm, as_dtype, checked, dtype_name


@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (3, 4, 24)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm(shape: tuple[int, ...], scale: float) -> None:
    x, weight = torch.randn(shape) * scale, torch.randn(24)
    expected = torch.nn.functional.rms_norm(x.double(), (24,), weight.double(), 1e-5).float()
    torch.testing.assert_close(RMSNorm(weight, 1e-5)(x), expected, atol=1e-6, rtol=1e-5)
    assert not RMSNorm(weight, 1e-5)(torch.zeros(shape)).any()


def test_rms_norm_in_half_precision_has_statistics_in_full() -> None:
    x = torch.full((2, 24), 300.0, dtype=torch.float16)  # squares overflow fp16
    y = RMSNorm(torch.ones(24, dtype=torch.float16), 1e-5)(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, torch.ones_like(y))


def test_dtypes_by_name() -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert dtype_name(as_dtype(name)) == name
        assert as_dtype(as_dtype(name)) == as_dtype(name)
    for wrong in ("float64", torch.int8):
        with pytest.raises(UserError, match="not supported"):
            as_dtype(wrong)


def test_checked_names_the_tensor() -> None:
    spec = TensorSpec("a.weight", (2, 3))
    with pytest.raises(CheckpointError, match=r"a\.weight is missing"):
        checked({}.__getitem__, spec)
    with pytest.raises(CheckpointError, match=r"a\.weight has shape \(3, 2\), expected \(2, 3\)"):
        checked({"a.weight": torch.zeros(3, 2)}.__getitem__, spec)
