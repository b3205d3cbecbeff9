"""Checkpoints made by hand for tests: safetensors bytes, tiny configs, and a source that counts what is read."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save

from p2pllm.errors import CheckpointError
from p2pllm.model.config import block_tensors, ends_tensors, parse_config

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def weights(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights with the names and shapes that the config asks for."""
    parsed = parse_config(config)
    generator = torch.Generator().manual_seed(0)
    specs = [*ends_tensors(parsed).values()]
    for block in range(parsed.num_blocks):
        specs += block_tensors(parsed, block).values()
    return {spec.name: torch.randn(spec.shape, generator=generator).to(dtype) for spec in specs}


def single(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The files of a checkpoint in one piece."""
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors)}


def sharded(config: dict[str, Any], tensors: dict[str, torch.Tensor], shards: int = 3) -> dict[str, bytes]:
    """The files of the same checkpoint in several pieces."""
    names = sorted(tensors)
    parts = [names[i::shards] for i in range(shards)]
    titles = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    files = {t: save({n: tensors[n] for n in part}) for t, part in zip(titles, parts, strict=True)}
    table = {n: t for t, part in zip(titles, parts, strict=True) for n in part}
    index = json.dumps({"metadata": {}, "weight_map": table}).encode()
    return {"config.json": json.dumps(config).encode(), "model.safetensors.index.json": index, **files}


class CountingSource:
    """Files in memory; remembers every range that was read."""

    title = "checkpoint"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.reads: list[tuple[str, int, int]] = []

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def size(self, name: str) -> int:
        return len(self._file(name))

    def read(self, name: str, start: int, stop: int) -> bytes:
        self.reads.append((name, start, stop))
        data = self._file(name)[start:stop]
        assert len(data) == stop - start, "read past the end of a file"
        return data

    def digests(self) -> dict[str, str] | None:
        return None

    def stamp(self, name: str) -> str | None:
        return None

    def _file(self, name: str) -> bytes:
        if name not in self.files:
            raise CheckpointError(f"{name} is missing")
        return self.files[name]
