"""Jobs in a swarm in which things go wrong: safety first, then all is healed, and every job has to end.

A job is a generation of some user, who tries again from where it stopped when an error is reported. While a schedule
is played, tokens have to be those of the undisturbed run and the servers' accounts have to be right. Then everything
is healed, and within a bound every job ends; after that no server may hold anything of anybody.

Invariants: a trial is a value, and its report follows from it alone, bit for bit. Whatever goes wrong in our code, in
any task of any host, becomes a violation of the report.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace

import trio

from p2pllm.client.failover import Recovery
from p2pllm.client.session import Session
from p2pllm.config import MIB, Config
from p2pllm.errors import StorageError, SwarmError
from p2pllm.server.serving import Serving
from sim.checkers import Watch, accounts, difference, leaks, left_on_disk
from sim.compute import SimCompute, flat_cost
from sim.cost import FailureSetup
from sim.disorder import Fault, Schedule, check_names
from sim.disorder_acts import Disorder
from sim.disorder_patients import SwarmPatients
from sim.run import run
from sim.storage import MemoryStorage
from sim.swarm import SimClient, SimSwarm, open_swarm
from sim.toy import ToyModel

AGAIN_S = 1.0
"""A user who was told of an error tries again after so long."""


@dataclass(frozen=True, slots=True)
class Job:
    """A generation, by a client of the same name."""

    name: str
    prompt: tuple[int, ...]
    new_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be played.

    Attributes:
        spans: servers ``s0``, ``s1``, ... each hold one of these.
        regions: of each server; empty: all in one. Clients belong to the first.
        near_s, far_s: one way, within a region and between regions.
        setup: what passes cost; None: ``pass_s`` each.
        heal_s: when everything is healed.
        bound_s: so long after that, every job has ended.
        pings: clients measure the ways to their servers, as they do in production.
        history_bytes: of each client's history in memory; what is more goes to its disk.
    """

    spans: tuple[tuple[int, int], ...]
    jobs: tuple[Job, ...]
    schedule: Schedule = ()
    seed: int = 0
    push: str = "auto"
    activations: str = "fp32"
    regions: tuple[str, ...] = ()
    near_s: float = 0.005
    far_s: float = 0.04
    setup: FailureSetup | None = None
    pass_s: float = 0.01
    patience_s: float = 60.0
    heal_s: float = 60.0
    bound_s: float = 120.0
    history_bytes: int = MIB
    pings: bool = False

    @property
    def blocks(self) -> int:
        return max(end for _, end in self.spans)

    @property
    def longest(self) -> int:
        """Tokens of the longest job."""
        return max(len(job.prompt) + job.new_tokens for job in self.jobs)


@dataclass(slots=True)
class JobReport:
    """What came of a job.

    Attributes:
        errors: that its user was told, each at a moment.
        recoveries: failures of servers that it survived without an error.
        times_s: when each token came.
        chains: the servers of its chain, by name, and since when.
        broken: a bug of ours ended it.
    """

    job: Job
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    recoveries: tuple[Recovery, ...] = ()
    chains: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    broken: bool = False
    ended_s: float | None = None

    @property
    def lost(self) -> int:
        """Tokens that never came."""
        return self.job.new_tokens - len(self.tokens)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a trial.

    Attributes:
        violations: promises that were broken, each as one line.
        took_s: until the last job was over.
    """

    jobs: tuple[JobReport, ...]
    violations: tuple[str, ...]
    trace: str
    took_s: float

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        return tuple(recovery for job in self.jobs for recovery in job.recoveries)


def play(trial: Trial, expected: Report | None = None) -> Report:
    """Play ``trial`` in virtual time; ``expected`` is the undisturbed one, if it has been played already.

    Raises:
        UserError: the schedule names a host that is not there.
    """
    check_names(
        trial.schedule, (*(f"s{index}" for index in range(len(trial.spans))), *(job.name for job in trial.jobs))
    )
    with hushed():
        if expected is None and trial.schedule:
            expected = play(replace(trial, schedule=(), heal_s=0.0))
        try:
            return run(lambda: _Play(trial, expected).run(), trial.seed)
        except Exception as exc:  # a bug that broke the whole run is what a trial looks for
            return Report((), (f"the run broke: {_told(exc)}",), "", 0.0)


@contextmanager
def hushed() -> Iterator[None]:
    """No log while servers die on purpose."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def config_of(trial: Trial) -> Config:
    """What users get, but exact, with caches that fit all jobs at once."""
    base = Config()
    room = (trial.longest + base.server.page_tokens) * len(trial.jobs)
    client = replace(
        base.client, activations=trial.activations, exact=True, push=trial.push, patience_s=trial.patience_s,
        history_bytes_max=trial.history_bytes,
    )  # fmt: skip
    return replace(base, server=replace(base.server, cache_tokens=room), client=client)


class _Play:
    """One play of a trial."""

    def __init__(self, trial: Trial, expected: Report | None) -> None:
        self.trial = trial
        self.found: list[str] = []
        self.jobs = [JobReport(job) for job in trial.jobs]
        self._expected = {} if expected is None else {one.job.name: one.tokens for one in expected.jobs}
        self._disorder: Disorder

    async def run(self) -> Report:
        trial = self.trial
        model, cost = ToyModel(trial.blocks, trial.longest + 8), flat_cost(trial.pass_s)
        if trial.setup is not None:
            cost = trial.setup.cost_model()
        opening = open_swarm(
            model, trial.spans, config_of(trial), seed=trial.seed, latency_s=trial.near_s,
            compute=lambda: SimCompute(cost),
        )  # fmt: skip
        async with opening as swarm, AsyncExitStack() as stack:
            names = [job.name for job in trial.jobs]
            self._spread(swarm, names)
            clients = {name: await stack.enter_async_context(swarm.client(name, pings=trial.pings)) for name in names}
            self._disorder = Disorder(SwarmPatients(swarm))
            await self._play(swarm, clients)
            took_s = trio.current_time()
            await self._look_after(swarm, clients)
            return Report(tuple(self.jobs), tuple(self.found), swarm.world.trace_hash(), took_s)

    def _spread(self, swarm: SimSwarm, clients: list[str]) -> None:
        """Put hosts into their regions."""
        trial = self.trial
        if not trial.regions:
            return
        where = {name: trial.regions[index] for index, name in enumerate(swarm.servers)}
        where |= dict.fromkeys(clients, trial.regions[0])
        for one, here in where.items():
            for other, there in where.items():
                if one < other and here != there:
                    swarm.world.set_latency(one, other, trial.far_s)

    async def _play(self, swarm: SimSwarm, clients: dict[str, SimClient]) -> None:
        """Jobs, and what goes wrong; then all is healed, and jobs end, or are given up."""
        trial, watch = self.trial, Watch(lambda: living(swarm))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            async with trio.open_nursery() as jobs:
                for job in self.jobs:
                    jobs.start_soon(self._work, job, swarm, clients[job.job.name])
                if trial.schedule:
                    nursery.start_soon(self._disturb, nursery.cancel_scope, jobs.cancel_scope)
            nursery.cancel_scope.cancel()
        self.found += watch.found
        for job in self.jobs:
            name, done = job.job.name, job.ended_s is not None
            if not (done or job.broken):
                self.found.append(
                    f"{name}: not over {trial.bound_s:g} s after all was healed; {len(job.tokens)} tokens came"
                )
            self.found += difference(name, self._expected.get(name, job.tokens), job.tokens, done)

    async def _disturb(self, watching: trio.CancelScope, jobs: trio.CancelScope) -> None:
        """Play the schedule, heal, and give the jobs their time."""
        trial = self.trial
        with trio.move_on_at(trial.heal_s):
            await self._disorder.play(trial.schedule, 0.0)
            await trio.sleep_until(trial.heal_s)
        await self._disorder.heal()
        await trio.sleep(trial.bound_s)
        jobs.cancel()

    async def _work(self, report: JobReport, swarm: SimSwarm, client: SimClient) -> None:
        """One user's generation, to its end."""
        job = report.job
        await trio.sleep(job.at_s)
        async with client.model.session(len(job.prompt) + job.new_tokens) as session:
            while report.lost:
                prompt = [*job.prompt, *report.tokens]
                stream = client.model.stream([prompt], max_new_tokens=report.lost, ignore_eos=True, session=session)
                try:
                    async with stream:
                        async for piece in stream:
                            report.tokens += piece.ids
                            report.times_s += [trio.current_time()] * len(piece.ids)
                            _note_chain(report, swarm, session)
                except (SwarmError, StorageError) as exc:
                    report.errors.append((trio.current_time(), str(exc)))
                    self._judge(report, exc)
                    await trio.sleep(AGAIN_S)
                except Exception as exc:  # a trial tells of every bug, whatever its class
                    self.found.append(f"{job.name}: {_told(exc)}")
                    report.broken = True
                    return
                finally:
                    report.recoveries = session.recovered
            report.ended_s = trio.current_time()

    def _judge(self, report: JobReport, error: Exception) -> None:
        """No error may reach a user while servers that nothing happened to hold all blocks."""
        struck = {name for event in self._disorder.done for name in event.hosts}
        whole = {
            block
            for index, (start, end) in enumerate(self.trial.spans)
            if f"s{index}" not in struck
            for block in range(start, end)
        }
        mine = report.job.name in struck
        split = any(event.kind is Fault.PARTITION for event in self._disorder.done)
        if len(whole) == self.trial.blocks and not mine and not split:
            self.found.append(
                f"{report.job.name}: gave up though every block had a server that nothing happened to: {error}"
            )

    async def _look_after(self, swarm: SimSwarm, clients: dict[str, SimClient]) -> None:
        """When everybody is done, and who was lost is forgotten, nobody holds anything."""
        await self._disorder.heal()
        settings = swarm.config
        await trio.sleep(
            settings.server.linger_s + settings.net.heartbeat_interval_s + settings.net.heartbeat_timeout_s
        )
        left = living(swarm)
        self.found += [line for line in accounts(left) if line not in self.found]
        if all(job.ended_s is not None for job in self.jobs):
            self.found += leaks(left)
            self.found += left_on_disk(disks_of(clients))


def _note_chain(report: JobReport, swarm: SimSwarm, session: Session) -> None:
    """Write down who serves the session now, if that is news."""
    found = [swarm.by_peer(hop.peer_id) for hop in session.route]
    names = tuple(server.name for server in found if server is not None)
    if not report.chains or report.chains[-1][1] != names:
        report.chains.append((trio.current_time(), names))


def living(swarm: SimSwarm) -> dict[str, Serving]:
    """The servers whose process runs."""
    return {name: server.serving for name, server in swarm.servers.items() if server.network.alive}


def disks_of(clients: dict[str, SimClient]) -> dict[str, MemoryStorage]:
    """The clients' disks."""
    disks = {name: client.model._context.ports.storage for name, client in clients.items()}
    return {name: disk for name, disk in disks.items() if isinstance(disk, MemoryStorage)}


def _told(exc: BaseException) -> str:
    """An exception in one line; of a group, what is inside."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {exc}".replace("\n", " ")
