"""Offloading: the papers' upper bound, computed as they do, and a real run of a small model for its shape.

The bound: every step loads all weights over PCIe, and nothing else takes time; a batch loads them once and computes.
The real run: blocks of a random checkpoint are read from its file for every step, by the production code that loads
weights, and computed on this machine's CPU, in real time; a step cannot take less than reading takes.

Invariants: the bounds are pure. The real run measures this machine, so nothing of it is a gate or enters a trace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from p2pllm.local.storage import DiskStorage
from p2pllm.model.attention import Segment
from p2pllm.model.checkpoint import CONFIG, SINGLE, Checkpoint
from p2pllm.model.config import block_tensors, ends_tensors, parse_config
from p2pllm.model.kv import KVArena
from p2pllm.model.source import FolderSource
from p2pllm.model.span import SpanModel
from p2pllm.types import Span
from sim.paper import OFFLOADS, Offload

MODEL_GB = 176.0
"""BLOOM-176B in 8 bits, "1 GB per billion parameters" [S]."""
BATCH_TOKENS = 64 * 128
SHARED_LINKS = 2.0
"""With three GPUs, two share a PCIe switch: the slower pair decides, and loads twice as long [S]."""


def load_s(row: Offload) -> float:
    """Bringing all weights to the GPUs once."""
    return MODEL_GB * 8 / row.gbit_per_s * (SHARED_LINKS if row.gpus > 1 else 1.0)


def compute_s(tokens_per_s: float, row: Offload) -> float:
    """What is left for computing one large batch on one GPU, by the cell of a row."""
    return row.gpus * (BATCH_TOKENS / tokens_per_s - load_s(row))


BATCH_S = compute_s(OFFLOADS[0].forward.value, OFFLOADS[0])
"""Of 64 x 128 tokens on one A100: 42.6 s, from the one cell 170.3."""


def step_rate(row: Offload) -> float:
    """Steps/s, whatever the length."""
    return 1 / load_s(row)


def forward_rate(row: Offload, batch_s: float = BATCH_S) -> float:
    """Tokens/s of 64 x 128 tokens."""
    return BATCH_TOKENS / (load_s(row) + batch_s / row.gpus)


def one_rate(row: Offload, batch_s: float = BATCH_S) -> float:
    """What the papers print for one sequence: a 64th of the batch's rate, not a pass of 1 x 128 tokens."""
    return forward_rate(row, batch_s) / 64


def honest_one_rate(row: Offload, batch_s: float = BATCH_S) -> float:
    """A real pass of 1 x 128 tokens under the same bound."""
    return 128 / (load_s(row) + batch_s / row.gpus / 64)


# -- the real run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A random Llama, in fp32."""

    hidden: int = 1024
    inter: int = 2816
    blocks: int = 8

    def write(self, folder: Path) -> None:
        """As a checkpoint in Hugging Face layout."""
        raw = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.inter, "num_hidden_layers": self.blocks, "num_attention_heads": 16,
            "num_key_value_heads": 4, "vocab_size": 64, "max_position_embeddings": 512, "tie_word_embeddings": True,
        }  # fmt: skip
        config = parse_config(raw)
        specs = [spec for block in range(self.blocks) for spec in block_tensors(config, block).values()]
        specs += ends_tensors(config).values()
        header, at = {}, 0
        for spec in specs:
            size = 4 * torch.Size(spec.shape).numel()
            header[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        noise = torch.Generator().manual_seed(self.hidden)
        with (folder / SINGLE).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for spec in specs:
                file.write((0.02 * torch.randn(spec.shape, generator=noise)).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        (folder / CONFIG).write_text(json.dumps(raw))


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds on this machine, the least of several tries.

    Attributes:
        resident_s: weights in memory. read_s: reading all of them, and nothing else. loaded_s: reading and building all
            blocks. offloaded_s: building each block, then computing it.
    """

    tokens: int
    resident_s: float
    read_s: float
    loaded_s: float
    offloaded_s: float
    weight_bytes: int


class RealRun:
    """Steps of a small model whose weights stay in its file.

    Args:
        clock: seconds, real ones.
        cold: drop what the operating system remembers of the file before each step.
    """

    def __init__(self, folder: Path, clock: Callable[[], float], cold: bool = False) -> None:
        self._path = folder / SINGLE
        self._clock = clock
        self._cold = cold
        self._checkpoint = Checkpoint(FolderSource(str(folder), DiskStorage()))
        self._whole = Span(0, self._checkpoint.config.num_blocks)
        self._tensors = self._checkpoint.span_tensors(self._whole, torch.float32)

    def time(self, tokens: int, tries: int = 3) -> Timed:
        """A step of ``tokens`` new tokens of one row, in all four ways."""
        resident = SpanModel.load(self._checkpoint.config, self._whole, self._tensors, torch.float32)
        arena = resident.arena(tokens)
        hidden = torch.zeros(tokens, self._checkpoint.config.hidden_size)
        segments = [Segment(tokens, 0, tuple(range(arena.pages)))]
        arenas = [self._one(block).arena(tokens) for block in self._whole]
        resident.run(hidden, segments, arena)  # the first pass touches the memory
        return Timed(
            tokens,
            self._least(lambda: resident.run(hidden, segments, arena), tries),
            self._least(self._read, tries),
            self._least(lambda: [self._one(block) for block in self._whole], tries),
            self._least(lambda: self._offloaded(hidden, segments, arenas), tries),
            self._tensors.total_bytes,
        )

    def _one(self, block: int) -> SpanModel:
        span = Span(block, block + 1)
        return SpanModel.load(
            self._checkpoint.config, span, self._checkpoint.span_tensors(span, torch.float32), torch.float32
        )

    def _offloaded(self, hidden: torch.Tensor, segments: Sequence[Segment], arenas: Sequence[KVArena]) -> None:
        for block, arena in enumerate(arenas):
            hidden = self._one(block).run(hidden, segments, arena)

    def _read(self) -> None:
        with self._path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass

    def _least(self, work: Callable[[], object], tries: int) -> float:
        took = []
        for _ in range(tries):
            if self._cold:
                with self._path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = self._clock()
            work()
            took.append(self._clock() - began)
        return min(took)
