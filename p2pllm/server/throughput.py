"""How fast this machine computes its span: measured on the real blocks, bytes in to bytes out, and remembered.

Invariants: measured through the Compute port, in the passes that serving uses, before anybody is served; bounded in
time also on a slow device. What is remembered is per block and device, so another span of the same model starts at
once. A machine never asks a speed-test service: what the network carries is learnt from traffic between peers.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from p2pllm.dht.record import Throughput
from p2pllm.errors import StorageError
from p2pllm.ports import Compute, Storage
from p2pllm.server.backend import SpanBackend, SpanTask
from p2pllm.server.scheduler import Slice, kind_of_step
from p2pllm.types import PeerId, Span, WorkKind
from p2pllm.wire import tensor as codec_of

log = logging.getLogger(__name__)

STEPS = 8
FORWARD_ROW = 128
FORWARD_ROWS = 8
SLOW_S = 0.5
"""A device that takes longer for one row is not asked for eight."""
CODEC = "int8"
CACHE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Speed:
    """One device and model shape, per block.

    Attributes:
        step_s: seconds of a single token in one block.
        forward_tokens_per_s: tokens of long sequences through one block.
    """

    step_s: float
    forward_tokens_per_s: float

    def of(self, span: Span) -> Throughput:
        """What a server of ``span`` announces: tokens per second that go in at its start and come out at its end."""
        blocks = len(span)
        inference = 1 / (self.step_s * blocks) if self.step_s > 0 else 0.0
        return Throughput(inference=inference, forward=self.forward_tokens_per_s / blocks)


async def measure(backend: SpanBackend, compute: Compute, device: str) -> Speed:
    """Time single-token steps, and a forward of up to 1,024 tokens, on blocks that nobody uses yet."""
    blocks = len(backend.model.span)

    async def timed(task: SpanTask) -> float:
        batch = [Slice(task, 0, task.tokens)]
        _, seconds = await compute.run(partial(backend.run, batch), backend.cost(batch), (device,))
        return seconds

    await timed(_step(backend, 0))  # the first pass touches memory for the first time
    step_s = median([await timed(_step(backend, 1 + number)) for number in range(STEPS)])
    tokens = FORWARD_ROW
    forward_s = await timed(_forward(backend, 1))
    if forward_s < SLOW_S:
        tokens = FORWARD_ROW * FORWARD_ROWS
        forward_s = await timed(_forward(backend, FORWARD_ROWS))
    return Speed(step_s / blocks, tokens * blocks / forward_s if forward_s > 0 else 0.0)


async def remembered(storage: Storage, path: str | None, key: str) -> Speed | None:
    """What was measured earlier under ``key``, if anything was."""
    if path is None:
        return None
    known = await storage.run(lambda: _read(storage, path))
    entry = known.get(key)
    return Speed(entry[0], entry[1]) if entry is not None else None


async def remember(storage: Storage, path: str | None, key: str, speed: Speed) -> None:
    """Keep a measurement; a disk that refuses costs the next start a second, no more."""
    if path is None:
        return

    def write() -> None:
        known = _read(storage, path)
        known[key] = [speed.step_s, speed.forward_tokens_per_s]
        storage.write(path, json.dumps(known, indent=1).encode())

    try:
        await storage.run(write)
    except StorageError as exc:
        log.warning("the measured speed was not kept: %s", exc)


def _read(storage: Storage, path: str) -> dict[str, list[float]]:
    """The file's sound entries; none when there is no such file."""
    try:
        size = storage.size(path)
        raw = json.loads(storage.read(path, 0, size)) if size <= CACHE_BYTES_MAX else {}
    except (StorageError, ValueError) as exc:
        log.debug("no earlier measurement: %s", exc)
        return {}
    known: dict[str, list[float]] = {}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        sound = isinstance(value, list) and len(value) == 2 and all(type(x) is float and x > 0 for x in value)
        if sound:
            known[key] = value
    return known


def _step(backend: SpanBackend, position: int) -> SpanTask:
    pages = tuple(range(backend.arena.pages)) if backend.arena is not None else ()
    return _task(backend, (1,), positions=(position,), rows=(pages,))


def _forward(backend: SpanBackend, rows: int) -> SpanTask:
    return _task(backend, (FORWARD_ROW,) * rows, kind=WorkKind.FORWARD, positions=(0,) * rows)


def _task(
    backend: SpanBackend,
    counts: tuple[int, ...],
    *,
    positions: tuple[int, ...],
    kind: WorkKind | None = None,
    rows: tuple[tuple[int, ...], ...] | None = None,
) -> SpanTask:
    hidden = np.random.default_rng(0).standard_normal((sum(counts), backend.model.config.hidden_size), np.float32)
    tensor, payload = codec_of.encode(hidden, "fp32", CODEC)
    return SpanTask(
        PeerId(""),
        object(),
        kind or kind_of_step(counts),
        counts,
        span=backend.model.span,
        tensor=tensor,
        payload=payload,
        codec=CODEC,
        returns=CODEC,
        positions=positions,
        rows=rows,
    )
