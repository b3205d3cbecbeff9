"""The client's edge: torch tensors on one side, payload bytes on the other.

Invariants: pure; runs inside compute passes. NumPy has no bfloat16, so such tensors cross as their bit patterns with a
dtype tag. What comes from a peer is validated by the codec and raises RemoteProtocolError, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from p2pllm.ports import Buffer
from p2pllm.wire import tensor as codec_of
from p2pllm.wire.messages import TensorHeader

TAGS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Compute dtypes by the name of the codec that carries them without loss."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Hidden states [tokens, hidden] as they travel."""

    tensor: TensorHeader
    payload: Buffer

    @property
    def tokens(self) -> int:
        return self.tensor.shape[0]


def pack(hidden: torch.Tensor, codec: str) -> Packed:
    """Hidden states [T, H] as a payload of ``codec``."""
    hidden = hidden.detach().to("cpu").contiguous()
    array = hidden.view(torch.uint16).numpy() if hidden.dtype is torch.bfloat16 else hidden.numpy()
    header, payload = codec_of.encode(array, TAGS[hidden.dtype], codec)
    return Packed(header, payload)


def unpack(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """A payload as hidden states [T, H] of the client's dtype.

    Raises:
        RemoteProtocolError: the bytes are not what the header says.
    """
    array = np.ascontiguousarray(codec_of.decode(packed.tensor, packed.payload, TAGS[dtype]))
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor
