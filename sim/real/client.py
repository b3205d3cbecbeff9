"""A client as a process: ``python -m sim.real.client JOB``; JOB and what it prints are JSON, an object a line.

It measures with the code that the simulated stacks run, or generates and says every token as it comes, so that whoever
started it can break something in mid-sentence.

Invariants: everything goes through ``p2pllm.connect``, as in any program.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

import p2pllm
from sim.measuring import Load, Pace, generate, time_steps


@dataclass(frozen=True, slots=True)
class Job:
    """What a client is to do.

    Attributes:
        push: ``on``, ``off`` or ``auto``.
        loads: to be timed, one after the other, ``repeats`` times.
        prompt: to be continued by ``new_tokens`` tokens, after the loads.
    """

    bootstrap: tuple[str, ...]
    cache_dir: str
    push: str = "auto"
    activations: str = "int8"
    loads: tuple[Load, ...] = ()
    pace: Pace = field(default_factory=Pace)
    repeats: int = 1
    prompt: tuple[int, ...] = ()
    new_tokens: int = 0

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Job:
        """From the command line."""
        data: dict[str, Any] = json.loads(text)
        loads, pace = tuple(Load(**load) for load in data.pop("loads")), Pace(**data.pop("pace"))
        data |= {key: tuple(data[key]) for key in ("bootstrap", "prompt")}
        return cls(**data, loads=loads, pace=pace)


def say(**values: Any) -> None:
    """One line for whoever listens."""
    print(json.dumps(values), flush=True)


async def do(job: Job) -> None:
    """Connect, and do it."""
    async with p2pllm.connect(
        "demo",
        bootstrap=job.bootstrap,
        push=job.push,
        activations=job.activations,
        exact=True,
        threads=1,
        cache_dir=job.cache_dir,
    ) as model:
        for _ in range(job.repeats):
            for load in job.loads:
                timed = await time_steps(model, load, job.pace)
                say(rows=load.rows, activations=load.activations, step_s=timed.step_s, chain=timed.chain)
        if job.new_tokens:
            done = await generate(model, job.prompt, job.new_tokens, lambda count, peers: say(count=count, peers=peers))
            say(**asdict(done))


if __name__ == "__main__":
    trio.run(do, Job.of(sys.argv[1]))
