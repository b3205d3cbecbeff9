"""How large a session's history is, and what keeping it costs: real activations through the real codec and history.

Part of ``benchmarks.failover``. Totals are bytes of payload on one side, and what Python needs around them when every
token came as a step of its own, on the other.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import torch

from benchmarks.common import show
from p2pllm.client.chunks import cut
from p2pllm.client.edge import Packed, pack
from p2pllm.client.past import entries_of
from p2pllm.client.replay import History
from sim.storage import MemoryStorage

MODELS = {"Llama-2-70B": (8192, 80), "BLOOM-176B": (14336, 70)}
"""Hidden size and blocks."""
LENGTHS = (2048, 8192)
HOPS = (3, 12)
CHUNK = 128
UNBOUNDED = 1 << 50


def activations(tokens: int, hidden: int, codec: str) -> Packed:
    """Like a model's: some channels are far larger than others."""
    generator = torch.Generator().manual_seed(tokens)
    return pack(
        torch.randn(tokens, hidden, generator=generator) * torch.randn(hidden, generator=generator).exp(), codec
    )


def history_of(hidden: int, hops: int, tokens: int, per_step: int, packed: Packed) -> History:
    """The history of a session that took so many tokens in steps of ``per_step``.

    The payload is one and the same each time: histories keep references, and count the bytes behind them.
    """
    kept = History(MemoryStorage(), hidden, 1, UNBOUNDED)
    for _ in range(tokens // per_step):
        entries = entries_of(cut((per_step,), per_step), kept.rows, (), number=kept.entries, token=kept.tokens)
        kept.number(entries)
        for entry in entries:
            for border in range(hops):
                kept.record(border, entry, packed)
        kept.rows = entries[-1].after
    return kept


def sizes() -> list[dict[str, Any]]:
    """Megabytes by model, codec, length and hops."""
    rows = []
    for name, (hidden, blocks) in MODELS.items():
        for codec in ("int8", "bf16"):
            packed = activations(CHUNK, hidden, codec)
            one = history_of(hidden, 1, CHUNK, CHUNK, packed)
            row: dict[str, Any] = {"model": name, "hidden": hidden, "blocks": blocks, "codec": codec}
            row["bytes/token/hop"] = one.memory_bytes // CHUNK
            for hops in HOPS:
                for tokens in LENGTHS:
                    kept = history_of(hidden, hops, tokens, CHUNK, packed)
                    row[f"{hops} hops, {tokens} tokens: MB"] = round(kept.memory_bytes / 1e6)
            rows.append(row)
    return rows


def around(hidden: int = 8192, tokens: int = 2048, hops: int = 3) -> dict[str, float]:
    """What each token costs beside its payload, when it came in a step of its own."""
    packed = activations(1, hidden, "int8")
    tracemalloc.start()
    kept = history_of(hidden, hops, tokens, 1, packed)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    began = time.perf_counter()
    history_of(hidden, hops, tokens, 1, packed)
    took_s = time.perf_counter() - began
    return {
        "payload bytes/token/hop": kept.memory_bytes // tokens // hops,
        "Python's bytes/token/hop": held / tokens / hops,
        "us/step": took_s / tokens * 1e6,
        "hops": hops,
    }


def measure() -> dict[str, Any]:
    """Sizes and costs."""
    return {"sizes": sizes(), "around": around()}


def report(results: dict[str, Any]) -> None:
    """Print them."""
    show("The history of a session", results["sizes"])
    show("Tokens that come one by one", [results["around"]], "us/step: keeping one step's inputs of all hops")
