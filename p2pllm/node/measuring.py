"""What a swarm delivers to its users: steps per second through caches, tokens per second of whole sequences.

Invariants: the first step and the first pass warm up and do not count; random tokens, so no checkpoint needs a
tokenizer; times are what a client sees, its own ends included.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.errors import UserError


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of one measurement.

    Attributes:
        per_s: steps (inference, summed over clients) or tokens (forward) per second.
        p50_ms, p95_ms: of one step, or of one pass.
        prefill_per_s: prompt tokens per second, 0 for forward.
        route: spans of the (last) chain.
    """

    per_s: float
    p50_ms: float
    p95_ms: float
    prefill_per_s: float
    route: tuple[str, ...]


async def measure_inference(
    model: RemoteModel, vocab: int, *, batch: int, seq_len: int, steps: int, clients: int
) -> Measured:
    """Prefill ``seq_len`` tokens, then ``steps`` single-token steps, in ``clients`` sessions at once.

    Raises:
        UserError: the model's context is too short for that.
    """
    length = seq_len + steps + 1
    if length > model.max_positions:
        raise UserError(f"{seq_len} tokens and {steps} steps; the model's context holds {model.max_positions}")
    times: list[float] = []
    prefills: list[float] = []
    routes: list[tuple[str, ...]] = []
    begun: list[float] = []
    ended: list[float] = []
    ready = [trio.Event() for _ in range(clients)]

    async def one(index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        prompt = torch.randint(vocab, (batch, seq_len), generator=generator)
        token = torch.randint(vocab, (batch, 1), generator=generator)
        async with model.session(max_length=length, rows=batch) as session:
            started = trio.current_time()
            await session.step(prompt, tail=1)
            prefills.append(batch * seq_len / (trio.current_time() - started))
            await session.step(token)
            ready[index].set()
            for event in ready:
                await event.wait()
            begun.append(trio.current_time())
            for _ in range(steps):
                started = trio.current_time()
                await session.step(token)
                times.append(trio.current_time() - started)
            ended.append(trio.current_time())
            routes.append(tuple(str(hop.span) for hop in session.route))

    async with trio.open_nursery() as nursery:
        for index in range(clients):
            nursery.start_soon(one, index)
    rate = clients * steps / (max(ended) - min(begun))
    return Measured(rate, *_quantiles(times), sum(prefills) / len(prefills), routes[-1])


async def measure_forward(model: RemoteModel, vocab: int, *, batch: int, seq_len: int, steps: int) -> Measured:
    """``steps`` passes of ``batch`` sequences without caches."""
    ids = torch.randint(vocab, (batch, seq_len), generator=torch.Generator().manual_seed(0))
    await model.forward(ids)
    times = []
    for _ in range(steps):
        started = trio.current_time()
        await model.forward(ids)
        times.append(trio.current_time() - started)
    return Measured(batch * seq_len / statistics.median(times), *_quantiles(times), 0.0, ())


def _quantiles(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return 1000 * statistics.median(ordered), 1000 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
