"""What the benchmarks share: arguments, tables, JSON files, the machine's description, a random checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flag that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")
    return parser


def show(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Print rows as a table; the first row's keys are the columns."""
    table = Table(title=title, title_justify="left", caption=note or None, caption_justify="left")
    for index, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=140, soft_wrap=False).print(table)


def save(out: Path | None, results: Mapping[str, Any]) -> None:
    """Write results with the machine's description, when a file was asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), **results}, indent=1))


def machine() -> dict[str, Any]:
    """What ran this: processor, cores, versions."""
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and minimum."""
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "min": ordered[0],
    }


@dataclass(frozen=True)
class Shape:
    """The shape of a random Llama checkpoint."""

    hidden: int = 512
    blocks: int = 8
    heads: int = 8
    kv_heads: int = 8
    intermediate: int = 1376
    vocab: int = 4096


def llama_config(shape: Shape) -> dict[str, Any]:
    """``config.json`` of a Llama of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """A random fp32 checkpoint in Hugging Face layout, without tokenizer."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def weight(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * size[-1] ** -0.5

    head = shape.hidden // shape.heads
    tensors = {
        "model.embed_tokens.weight": torch.randn(shape.vocab, shape.hidden, generator=generator),
        "model.norm.weight": torch.ones(shape.hidden),
        "lm_head.weight": weight(shape.vocab, shape.hidden),
    }
    for i in range(shape.blocks):
        prefix = f"model.layers.{i}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": weight(shape.heads * head, shape.hidden),
            prefix + "self_attn.k_proj.weight": weight(shape.kv_heads * head, shape.hidden),
            prefix + "self_attn.v_proj.weight": weight(shape.kv_heads * head, shape.hidden),
            prefix + "self_attn.o_proj.weight": weight(shape.hidden, shape.heads * head),
            prefix + "mlp.gate_proj.weight": weight(shape.intermediate, shape.hidden),
            prefix + "mlp.up_proj.weight": weight(shape.intermediate, shape.hidden),
            prefix + "mlp.down_proj.weight": weight(shape.hidden, shape.intermediate),
            prefix + "input_layernorm.weight": torch.ones(shape.hidden),
            prefix + "post_attention_layernorm.weight": torch.ones(shape.hidden),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = llama_config(shape)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
