"""Checks across fields: each refuses what no single field can tell, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from p2pllm.config import WireLimits
from p2pllm.errors import RemoteProtocolError
from p2pllm.types import ModelId, Span
from p2pllm.wire import checks
from p2pllm.wire import messages as m

LIMITS = WireLimits()
INPUTS = m.TensorHeader("fp32", (3, 8), 96)
BACKWARD = m.Backward(1, ModelId("ab" * 32), Span(0, 4), (1, 2), "fp32", INPUTS, INPUTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"counts": (1, 1)}, "counts sum to 2"),
        ({"counts": ()}, "at least one sequence"),
        ({"counts": (3, 0)}, "at least one token"),
        ({"codec_points": (2, 2)}, "ascending"),
        ({"gradient": m.TensorHeader("fp32", (2, 8), 64)}, "a gradient of shape"),
        ({"gradient": m.TensorHeader("bf16", (3, 9), 54)}, "a gradient of shape"),
    ],
)
def test_a_backward_is_a_forward_with_a_gradient_of_its_shape(changes: dict[str, object], reason: str) -> None:
    checks.check_backward(BACKWARD, LIMITS)
    with pytest.raises(RemoteProtocolError, match=reason):
        checks.check_backward(dataclasses.replace(BACKWARD, **changes), LIMITS)
