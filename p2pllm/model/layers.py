"""Parts that blocks and ends are assembled from, and the names of dtypes.

Invariants: functions of tensors; nothing here knows a family.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from p2pllm.errors import CheckpointError, UserError
from p2pllm.model.config import TensorSpec

TensorGetter = Callable[[str], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        UserError: blocks cannot compute in it.
    """
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in DTYPES.values():
        raise UserError(f"dtype {name} is not supported; choose one of {', '.join(DTYPES)}")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16`` or ``float16``."""
    return str(dtype).removeprefix("torch.")


def checked(get: TensorGetter, spec: TensorSpec) -> Tensor:
    """Fetch a tensor and make sure that it is the one that the config implies.

    Raises:
        CheckpointError: it is missing or has another shape.
    """
    try:
        tensor = get(spec.name)
    except KeyError as exc:
        raise CheckpointError(f"tensor {spec.name} is missing") from exc
    if tuple(tensor.shape) != spec.shape:
        raise CheckpointError(f"tensor {spec.name} has shape {tuple(tensor.shape)}, expected {spec.shape}")
    return tensor


class RMSNorm:
    """x / rms(x) * weight over the last dimension; the statistics are in fp32 whatever the dtype."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self._eps = torch.tensor(eps, dtype=torch.float32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float32 else x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.addcmul(self._eps, norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
        scaled = wide * inverse
        return scaled.mul_(self.weight) if x.dtype == torch.float32 else scaled.to(x.dtype).mul_(self.weight)
