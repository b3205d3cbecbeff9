"""Kind "memory": what the client's half of the dual caches takes, against length and model, in memory and on disk.

The other half, the attention caches, is the servers'. The client keeps every hop's inputs as they travelled, so that a
lost server's cache can be made anew. Measured with the production history on payloads of the production codec, of the
models' real widths, beside the formula: width x bytes per number x tokens x hops.

Invariants: nothing is estimated but what says so; payloads are shared between steps, as only their sizes matter where
nothing is read back, and are all different where something is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from p2pllm.client.chunks import cut
from p2pllm.client.edge import Packed, pack
from p2pllm.client.past import Entry, entries_of
from p2pllm.client.replay import History
from p2pllm.config import MIB
from p2pllm.wire.messages import plain_size
from sim.kinds import Kind, Run
from sim.results import Cell, Outcome, Plot, Series, Table, combined, gate
from sim.run import run as run_virtual
from sim.shapes import SHAPES
from sim.storage import MemoryStorage

CHUNK = 128
"""Tokens per step: a prefill's chunk. Bytes do not depend on it."""
UNBOUNDED = 1 << 60
NEAR_FORMULA = 0.02
"""8-bit payloads carry a scale and a few 16-bit channels per token."""
BYTES = {"int8": 1, "bf16": 2}

ModelName = Literal["bloom-7.1b", "bloom-176b", "llama-2-70b", "llama-3.1-405b"]
CodecName = Literal["int8", "bf16"]


@dataclass(frozen=True, slots=True)
class Spill:
    """A history that does not fit into memory."""

    model: ModelName = "llama-2-70b"
    codec: CodecName = "int8"
    hops: int = field(default=3, metadata={"min": 1, "max": 64})
    tokens: int = field(default=8192, metadata={"min": CHUNK, "max": 131_072})
    memory_mib: float = field(default=32.0, metadata={"min": 1.0, "about": "bound of the history in memory"})


@dataclass(frozen=True, slots=True)
class Params:
    """Whose histories, how long, and how they travel."""

    models: tuple[ModelName, ...] = ("bloom-7.1b", "bloom-176b", "llama-2-70b", "llama-3.1-405b")
    codecs: tuple[CodecName, ...] = ("int8", "bf16")
    hops: tuple[int, ...] = field(default=(3, 12), metadata={"min": 1, "max": 126, "about": "servers of a chain"})
    tokens: tuple[int, ...] = field(
        default=(2048, 8192, 32_768, 131_072), metadata={"min": CHUNK, "about": "lengths; multiples of 128"}
    )
    spill: Spill = Spill()


@dataclass(frozen=True, slots=True)
class Measured:
    """One history."""

    model: str
    codec: str
    hops: int
    tokens: int
    bytes_: int
    formula_bytes: int
    servers_bytes: int
    """The attention caches of all servers together, in 16 bits."""


@dataclass(frozen=True, slots=True)
class Spilled:
    """A history beyond its bound, and what came back from the disk."""

    memory_bytes: int
    memory_bytes_max: int
    filed_bytes: int
    same: bool


def run(params: Params, how: Run) -> Outcome:
    """Measure all histories, then let one spill."""
    if how.quick:
        spill = replace(params.spill, tokens=1024, memory_mib=4.0)
        params = replace(params, models=params.models[:2], hops=params.hops[:1], tokens=params.tokens[:2], spill=spill)
    found = []
    for number, name in enumerate(params.models):
        how.progress("histories", number, len(params.models))
        found += [one for codec in params.codecs for one in measured(name, codec, params)]
    spilled = run_virtual(lambda: spill_over(params.spill), how.seed)
    ratios = [one.bytes_ / one.formula_bytes for one in found]
    bound = int(params.spill.memory_mib * MIB) + step_bytes(params.spill)
    return Outcome(
        tables=(sizes_table(found), spill_table(params.spill, spilled)),
        plots=tuple(plot(found, hops) for hops in params.hops),
        gates=(
            gate("largest of formula", max(ratios), 1.0, NEAR_FORMULA, "ours"),
            gate("smallest of formula", min(ratios), 1.0, NEAR_FORMULA, "ours"),
            gate("bytes in memory, of the bound and one step", spilled.memory_bytes_max, bound, 0.0, "ours", "at most"),
            gate("bytes that came back other than they went", int(not spilled.same), 0, 0.0, "ours"),
        ),
        results=tuple(result_of(one) for one in found),
        notes=(
            "The paper gives no figures for its client-side caches; 16-bit rows are what it describes.",
            "A row of one sequence; several rows take as many times as much.",
        ),
        trace_hash=combined(map(repr, [*found, spilled])),
    )


def measured(name: ModelName, codec: CodecName, params: Params) -> list[Measured]:
    """Histories of one model and codec."""
    shape = SHAPES[name]
    config, packed = shape.config, activations(CHUNK, shape.config.hidden_size, codec)
    found = []
    for hops in params.hops:
        history = History(MemoryStorage(), config.hidden_size, 1, UNBOUNDED)
        for tokens in sorted(params.tokens):
            while history.tokens < tokens:
                record(history, hops, packed)
            formula = config.hidden_size * BYTES[codec] * history.tokens * hops
            servers = shape.cache_bytes * config.num_blocks * history.tokens
            found.append(Measured(name, codec, hops, history.tokens, history.memory_bytes, formula, servers))
        history.close()
    return found


def record(history: History, hops: int, packed: Packed) -> Entry:
    """One more step of a session whose chain has so many hops."""
    chunks = cut((packed.tokens,), packed.tokens)
    (entry,) = entries_of(chunks, history.rows, (), number=history.entries, token=history.tokens)
    history.number([entry])
    for border in range(hops):
        history.record(border, entry, packed)
    history.rows = entry.after
    return entry


def activations(tokens: int, hidden: int, codec: str, seed: int = 0) -> Packed:
    """Like a model's: some channels are far larger than others."""
    generator = torch.Generator().manual_seed(1000 * seed + tokens)
    scales = torch.randn(hidden, generator=generator).exp()
    return pack(torch.randn(tokens, hidden, generator=generator) * scales, codec)


async def spill_over(spill: Spill) -> Spilled:
    """Record more than fits, as a session does between its steps, then read all of it back."""
    hidden, bound = SHAPES[spill.model].config.hidden_size, int(spill.memory_mib * MIB)
    disk = MemoryStorage()
    history = History(disk, hidden, 1, bound)
    digests = [hashlib.blake2b() for _ in range(spill.hops)]
    entries, most = [], 0
    for step in range(spill.tokens // CHUNK):
        packed = activations(CHUNK, hidden, spill.codec, step)
        await history.tidy()
        entries.append(record(history, spill.hops, packed))
        most = max(most, history.memory_bytes)
        for digest in digests:
            digest.update(packed.payload)
    await history.tidy()
    same = True
    for border, digest in enumerate(digests):
        back = hashlib.blake2b()
        for entry in entries:
            back.update((await history.packed(border, entry.runs)).payload)
        same = same and back.digest() == digest.digest()
    found = Spilled(history.memory_bytes, most, history.filed_bytes, same)
    history.close()
    return found


def step_bytes(spill: Spill) -> int:
    """What one step adds before the next one makes room again."""
    return plain_size(spill.codec, CHUNK, SHAPES[spill.model].config.hidden_size) * spill.hops


def sizes_table(found: list[Measured]) -> Table:
    """Megabytes by model, codec and hops; lengths side by side."""
    lengths = sorted({one.tokens for one in found})
    groups: dict[tuple[str, str, int], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.model, one.codec, one.hops), []).append(one)
    rows: list[tuple[Cell, ...]] = []
    for (model, codec, hops), ones in groups.items():
        last = ones[-1]
        per_token = last.bytes_ / last.tokens / hops
        servers = 100 * last.bytes_ / last.servers_bytes
        ratio = last.bytes_ / last.formula_bytes
        rows.append((model, codec, hops, per_token, ratio, servers, *(one.bytes_ / 1e6 for one in ones)))
    columns = ("model", "as", "hops", "B/token/hop", "of formula", "% of servers'", *(f"{n}: MB" for n in lengths))
    note = (
        "N: MB is the client's memory at N tokens; formula: width x bytes per number x tokens x hops; servers': the "
        "attention caches of all blocks, 16 bits"
    )
    return Table("The client's half of the dual caches", columns, tuple(rows), note)


def spill_table(spill: Spill, found: Spilled) -> Table:
    """What stays in memory, and what goes to disk."""
    row = (
        spill.model, spill.codec, spill.hops, spill.tokens, spill.memory_mib * MIB / 1e6, found.memory_bytes_max / 1e6,
        found.memory_bytes / 1e6, found.filed_bytes / 1e6, "yes" if found.same else "no",
    )  # fmt: skip
    columns = ("model", "as", "hops", "tokens", "bound MB", "most MB", "at the end MB", "on disk MB", "same bytes back")
    return Table("A history beyond its bound", columns, (row,), "the oldest goes to an anonymous temporary file")


def plot(found: list[Measured], hops: int) -> Plot:
    """Bytes against length."""
    lines: dict[str, list[Measured]] = {}
    for one in found:
        if one.hops == hops:
            lines.setdefault(f"{one.model}, {one.codec}", []).append(one)
    series = tuple(
        Series(name, tuple(float(one.tokens) for one in ones), tuple(one.bytes_ / 1e6 for one in ones))
        for name, ones in lines.items()
    )
    return Plot(f"The client's history, {hops} hops", "tokens", "MB", series, "line", log_x=True, log_y=True)


def result_of(one: Measured) -> dict[str, object]:
    """A history as JSON."""
    return {
        "model": one.model,
        "codec": one.codec,
        "hops": one.hops,
        "tokens": one.tokens,
        "client_bytes": one.bytes_,
        "formula_bytes": one.formula_bytes,
        "servers_bytes": one.servers_bytes,
    }


KIND = Kind("memory", "the client's half of the dual caches: bytes against length and model, and on disk", Params, run)
