"""What a client sees of its steps and tokens: one piece of code for every stack, in virtual time and on real sockets.

Invariants: works on a ``RemoteModel`` and trio's clock alone; prefill and warm-up steps do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.types import PeerId


@dataclass(frozen=True, slots=True)
class Load:
    """What a step carries: ``rows`` sequences of one new token each.

    Up to eight rows a message fits TCP's first window whatever the codec: a step is one flight of packets.
    """

    rows: int = field(default=1, metadata={"min": 1, "max": 256})
    activations: Literal["int8", "bf16", "fp16", "fp32"] = "int8"

    def __str__(self) -> str:
        return f"{self.rows} x {self.activations}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How steps are timed.

    Attributes:
        position: tokens in the caches before the first step.
        warmup: steps that do not count.
        steps: steps that do.
        gap_s: pause before each step; none for measuring a swarm.
    """

    position: int = 32
    warmup: int = 5
    steps: int = 16
    gap_s: float = 0.0

    @property
    def length(self) -> int:
        """Tokens in the caches at the end."""
        return self.position + self.warmup + self.steps


@dataclass(frozen=True, slots=True)
class Timed:
    """What came of it.

    Attributes:
        step_s: of every step that counts.
        chain: the spans that served.
    """

    step_s: tuple[float, ...]
    chain: tuple[str, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)

    @property
    def spread(self) -> float:
        """Half of all steps lie within so much of the median, as a share of it, to both sides."""
        if len(self.step_s) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.step_s, n=4)
        return (high - low) / (2 * self.median_s)


async def time_steps(model: RemoteModel, load: Load, pace: Pace) -> Timed:
    """Fill caches with ``pace.position`` tokens of each row, then time single-token steps."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.vocab_size, (load.rows, pace.position), generator=generator)
    token = torch.randint(model.vocab_size, (load.rows, 1), generator=generator)
    found = []
    async with model.session(pace.length, rows=load.rows, activations=load.activations) as session:
        await session.step(prompt, tail=1)
        for number in range(pace.warmup + pace.steps):
            if pace.gap_s:
                await trio.sleep(pace.gap_s)
            begun = trio.current_time()
            await session.step(token)
            if number >= pace.warmup:
                found.append(trio.current_time() - begun)
        return Timed(tuple(found), tuple(str(hop.span) for hop in session.route))


@dataclass(frozen=True, slots=True)
class Generated:
    """A generation whose user looked at the clock.

    Attributes:
        times_s: when each token came.
        recoveries: failures of servers that it survived.
        chain: the spans that served at its end.
    """

    tokens: tuple[int, ...]
    times_s: tuple[float, ...]
    recoveries: int
    chain: tuple[str, ...]

    @property
    def pause_s(self) -> float:
        """How much longer than usual the longest wait for a token was."""
        waits = [later - sooner for sooner, later in pairwise(self.times_s)]
        return max(waits) - statistics.median(waits)


async def generate(
    model: RemoteModel, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int, tuple[PeerId, ...]], None]
) -> Generated:
    """The likeliest continuation; ``on_token`` hears how many tokens there are, and who serves."""
    tokens: list[int] = []
    times: list[float] = []
    async with model.session(len(prompt) + new_tokens) as session:
        stream = model.stream([list(prompt)], max_new_tokens=new_tokens, ignore_eos=True, session=session)
        async for piece in stream:
            for token in piece.ids:
                tokens.append(token)
                times.append(trio.current_time())
                on_token(len(tokens), tuple(hop.peer_id for hop in session.route))
        return Generated(tuple(tokens), tuple(times), session.recoveries, tuple(str(hop.span) for hop in session.route))
