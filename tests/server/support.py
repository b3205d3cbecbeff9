"""A small random model, and the pieces of a server around it, for the tests of this folder."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from p2pllm.model.config import ModelConfig, block_tensors, parse_config
from p2pllm.model.exact import check_exact
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from p2pllm.wire import tensor as codec_of
from p2pllm.wire.messages import TensorHeader

BLOCKS = 4
HIDDEN = 32
WHOLE = Span(0, BLOCKS)


@functools.cache
def config() -> ModelConfig:
    raw: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }
    return parse_config(raw)


def weights(name: str) -> torch.Tensor:
    """The tensor of that name: always the same numbers."""
    specs = {s.name: s for block in range(BLOCKS) for s in block_tensors(config(), block).values()}
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    tensor = torch.randn(specs[name].shape, generator=generator)
    return 1 + 0.1 * tensor if tensor.ndim == 1 else tensor / tensor.shape[1] ** 0.5


@functools.cache
def model(span: Span = WHOLE, exact: bool = True) -> SpanModel:
    torch.set_num_threads(1)
    made = SpanModel.load(config(), span, weights, exact=exact)
    if exact:
        assert check_exact(made)
    return made


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Hidden states [count, HIDDEN]."""
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def packed(hidden: torch.Tensor, codec: str = "fp32") -> tuple[TensorHeader, bytes]:
    header, payload = codec_of.encode(hidden.numpy(), "fp32", codec)
    return header, bytes(payload)


def unpacked(header: TensorHeader, payload: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(codec_of.decode(header, payload, "fp32")))


def alone(hidden: torch.Tensor, span: Span = WHOLE) -> torch.Tensor:
    """What the span gives for one whole sequence, by itself."""
    return model(span).run(hidden, [Segment(len(hidden))]).clone()
