"""Users as seeded processes: when they come, what they ask for, and what became of every job.

Invariants: arrivals and prompts follow from the world's seed and the workload's name, never from how fast the swarm
is (but that a closed loop waits for its answers). A job runs in tasks of its client's host, so that a client that dies
takes its jobs with it; every job ends in one of the states below.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from p2pllm.errors import P2PLLMError, UserError
from sim.jobs import Ask, Job, JobKind, perform
from sim.nodes import SimNode
from sim.world import World

RETRY_S = 1.0
"""A user whose client is down looks again so soon."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Many short ones and a few long ones: log-normal.

    Attributes:
        median: half of them are shorter.
        sigma: deviation of the logarithm; 1: one in six is more than 2.7 times as long.
        most: longer ones are cut to this.
    """

    median: float = field(metadata={"min": 1.0})
    sigma: float = field(default=0.7, metadata={"min": 0.0, "max": 3.0})
    most: int = field(default=1024, metadata={"min": 1})


Length = int | tuple[int, int] | Tail
"""A number of tokens: always the same, anything between two bounds, or a long tail."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What some users do; a table of a scenario.

    Attributes:
        name: of the workload, in tables.
        job: ``generate`` texts, ``forward`` whole batches, ``session``: step by step.
        clients: the group of hosts that they sit at.
        arrivals: ``poisson``, ``closed`` (each user waits for the answer, thinks, asks again), or a ``trace``.
    """

    name: str = "chat"
    job: JobKind = "generate"
    clients: str = "client"
    arrivals: Literal["poisson", "closed", "trace"] = "poisson"
    rate_per_s: float = field(default=0.5, metadata={"min": 1e-6, "about": "poisson: jobs, of all clients together"})
    users: int = field(default=1, metadata={"min": 1, "max": 10_000, "about": "closed: users, spread over the clients"})
    think_s: float = field(default=1.0, metadata={"min": 0.0, "about": "closed: mean pause between jobs"})
    trace: Path | None = field(
        default=None, metadata={"about": "trace: CSV with at_s and, where wanted, client, prompt_tokens, new_tokens"}
    )
    start_s: float = field(default=0.0, metadata={"min": 0.0, "about": "the first job comes after that"})
    stop_s: float = field(default=math.inf, metadata={"min": 0.0, "max": math.inf, "about": "no job begins later"})
    jobs_max: int | None = field(default=None, metadata={"min": 1, "about": "no more jobs than that"})
    prompt_tokens: Length = field(default=(4, 16), metadata={"min": 1})
    new_tokens: Length = field(default=(8, 32), metadata={"min": 1, "about": "of a generation, or steps of a session"})
    rows: int = field(default=1, metadata={"min": 1, "max": 256, "about": "sequences in a batch"})
    pause_s: float = field(default=0.0, metadata={"min": 0.0, "about": "session: between two steps"})
    timeout_s: float = field(default=300.0, metadata={"min": 0.1, "about": "a job that takes longer is given up"})

    def __post_init__(self) -> None:
        if (self.arrivals == "trace") != (self.trace is not None):
            raise ValueError("arrivals from a trace need one, and only they: set both arrivals and trace, or neither")
        for what, length in (("prompt_tokens", self.prompt_tokens), ("new_tokens", self.new_tokens)):
            if isinstance(length, tuple) and length[0] > length[1]:
                raise ValueError(f"{what}: {list(length)} has its larger bound first")

    @property
    def tokens_max(self) -> int:
        """The longest sequence that a job may need."""
        return longest(self.prompt_tokens) + (0 if self.job == "forward" else longest(self.new_tokens))


def longest(length: Length) -> int:
    """The most that a length may be."""
    match length:
        case Tail():
            return length.most
        case tuple():
            return length[1]
    return length


def draw_length(length: Length, rng: random.Random) -> int:
    """One of them."""
    match length:
        case Tail():
            return max(1, min(length.most, round(length.median * math.exp(rng.gauss(0.0, length.sigma)))))
        case tuple():
            return rng.randint(*length)
    return length


@dataclass(frozen=True, slots=True)
class Arrival:
    """A line of a trace."""

    at_s: float
    client: str = ""
    prompt_tokens: int | None = None
    new_tokens: int | None = None


def read_trace(path: Path) -> list[Arrival]:
    """A CSV file of arrivals.

    Raises:
        UserError: the file is no such table; names the line.
    """
    known = {"at_s", "client", "prompt_tokens", "new_tokens"}
    lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    columns = set(lines.fieldnames or ())
    if "at_s" not in columns or columns - known:
        raise UserError(f"{path}: the columns are at_s and any of client, prompt_tokens, new_tokens")
    found = []
    for line in lines:
        try:
            prompt, new = (int(line[key]) if line.get(key) else None for key in ("prompt_tokens", "new_tokens"))
            arrival = Arrival(float(line["at_s"]), line.get("client") or "", prompt, new)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {lines.line_num}: {error}") from error
        if (
            not (math.isfinite(arrival.at_s) and arrival.at_s >= 0)
            or 0 in (prompt, new)
            or min(prompt or 1, new or 1) < 1
        ):
            raise UserError(f"{path}, line {lines.line_num}: moments are 0 or more, numbers of tokens 1 or more")
        found.append(arrival)
    return sorted(found, key=lambda arrival: arrival.at_s)


class Users:
    """The users of one workload."""

    def __init__(
        self,
        world: World,
        spec: Workload,
        vocab: int,
        clients: Callable[[], Sequence[SimNode]],
        origin_s: float,
        seconds: float,
    ) -> None:
        self.spec = spec
        self.jobs: list[Job] = []
        self._world = world
        self._vocab = vocab
        self._clients = clients
        self._begin_s = origin_s + spec.start_s
        self._until_s = origin_s + min(seconds, spec.stop_s)
        self._rng = world.rng("users", spec.name)

    async def run(self) -> None:
        """Come and ask until the time is over; jobs may still be under way then, see ``settle``."""
        with trio.move_on_at(self._until_s):
            match self.spec.arrivals:
                case "poisson":
                    await self._poisson()
                case "closed":
                    await self._closed()
                case _:
                    await self._traced()

    @property
    def running(self) -> int:
        """Jobs that are under way."""
        return sum(job.state == "running" for job in self.jobs)

    async def settle(self) -> None:
        """Wait until every job is over."""
        for job in self.jobs:
            await job.over.wait()

    # -- arrivals

    async def _poisson(self) -> None:
        await trio.sleep_until(self._begin_s)
        while self._room():
            await trio.sleep(self._rng.expovariate(self.spec.rate_per_s))
            up = self._up()
            self._begin(up[self._rng.randrange(len(up))] if up else None)

    async def _closed(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self.spec.users):
                nursery.start_soon(self._user, number, self._world.rng("users", self.spec.name, str(number)))

    async def _user(self, number: int, rng: random.Random) -> None:
        await trio.sleep_until(self._begin_s)
        while self._room():
            await trio.sleep(rng.expovariate(1 / self.spec.think_s) if self.spec.think_s else 0.0)
            clients = self._clients()
            node = clients[number % len(clients)]
            if not node.up:
                await trio.sleep(RETRY_S)
            elif self._room():
                await self._begin(node).over.wait()

    async def _traced(self) -> None:
        assert self.spec.trace is not None
        for arrival in read_trace(self.spec.trace):
            await trio.sleep_until(self._begin_s + arrival.at_s)
            up = [node for node in self._up() if arrival.client in ("", node.name)]
            if self._room():
                self._begin(up[len(self.jobs) % len(up)] if up else None, arrival)

    def _room(self) -> bool:
        return self.spec.jobs_max is None or len(self.jobs) < self.spec.jobs_max

    def _up(self) -> list[SimNode]:
        return [node for node in self._clients() if node.up]

    # -- jobs

    def _begin(self, node: SimNode | None, arrival: Arrival | None = None) -> Job:
        number = len(self.jobs)
        ask = self._ask(self._world.rng("job", self.spec.name, str(number)), arrival)
        job = Job(self.spec.name, number, ask, node.name if node is not None else "", trio.current_time())
        self.jobs.append(job)
        if node is None:
            job.end("cut", "no client was up")
        else:
            node.host.spawn(self._play, job, node)
        return job

    def _ask(self, rng: random.Random, arrival: Arrival | None) -> Ask:
        spec = self.spec
        prompt, new = draw_length(spec.prompt_tokens, rng), draw_length(spec.new_tokens, rng)
        if arrival is not None:
            prompt, new = arrival.prompt_tokens or prompt, arrival.new_tokens or new
        tokens = prompt + new if spec.job == "session" else prompt
        rows = tuple(tuple(_ids(rng, tokens, self._vocab)) for _ in range(spec.rows))
        return Ask(spec.job, rows, prompt, new, spec.pause_s)

    async def _play(self, job: Job, node: SimNode) -> None:
        try:
            with trio.move_on_after(self.spec.timeout_s) as patience:
                model = node.model
                if model is not None:
                    await perform(job, model)
                    job.end("done")
            if patience.cancelled_caught:
                job.end("late", f"given up after {self.spec.timeout_s:g} s")
        except P2PLLMError as error:
            job.end("failed", f"{type(error).__name__}: {error}")
        finally:
            job.end("cut", "its client died")


def _ids(rng: random.Random, count: int, vocab: int) -> Iterator[int]:
    for _ in range(count):
        yield rng.randrange(vocab)
