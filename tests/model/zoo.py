"""Tiny random checkpoints of every family, and the reference implementation to hold them against."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from p2pllm.model.config import ModelConfig, parse_config

torch.set_num_threads(1)  # two cores are shared; tests that want more say so

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama-gqa": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-biased": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": (transformers.LlamaConfig, {"head_dim": 20}),
    "llama-3": (
        transformers.LlamaConfig,
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}},
    ),
    "llama-linear": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama-dynamic": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama-yarn": (
        transformers.LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 5}),
    "mistral-full": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 24}),
    "qwen3-biased": (transformers.Qwen3Config, {"head_dim": 12, "attention_bias": True}),
}


def reference(name: str, seed: int = 0, **overrides: Any) -> Any:
    """A random checkpoint of this family as a transformers model, in eval mode."""
    config_class, traits = FAMILIES[name]
    config = config_class(**{**BASE, **traits, **overrides})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide mistakes
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ours(model: Any) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same checkpoint as its config.json and tensors would give it to us."""
    raw = model.config.to_dict()
    raw["architectures"] = [type(model).__name__]
    return parse_config(raw), dict(model.state_dict())
