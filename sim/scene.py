"""A whole play: hosts come, users ask, things go wrong; then all is healed, and everybody has to get through.

Invariants: the seed and the script decide everything. Times of users and faults count from the end of the warm-up, in
which hosts join. After the play nothing goes wrong any more: what does not end then, ends never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from p2pllm.config import Config
from p2pllm.errors import P2PLLMError
from p2pllm.ports import Compute
from p2pllm.server.serving import Serving
from sim import checkers
from sim.compute import SimCompute
from sim.disorder import Schedule
from sim.disorder_acts import Disorder
from sim.disorder_patients import NodePatients
from sim.hosts import Group
from sim.jobs import Job
from sim.kinds import Progress, quiet
from sim.nodes import Nodes, SimNode
from sim.observe import Meter, Observer, Sample
from sim.swarm import Blocks
from sim.workload import Users, Workload
from sim.world import World

SAMPLES = 120
LINGER_S = 5.0
"""More than a server's own patience with sessions whose owner is gone, until nothing may be left of them."""
PROBE_PROMPT = (1, 2, 3, 4)
PROBE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Script:
    """What is to be played.

    Attributes:
        seconds: users ask and things go wrong for so long.
        warmup_s: before that.
        settle_s: after that, until which every job has to be over; 0: nobody waits for that.
    """

    blocks: Blocks
    model: str
    config: Config
    groups: tuple[Group, ...]
    workloads: tuple[Workload, ...]
    schedule: Schedule
    seconds: float
    warmup_s: float
    settle_s: float
    leaks: bool = True
    progress: Progress = quiet


@dataclass(slots=True)
class Played:
    """What came of it.

    Attributes:
        jobs: of all workloads, in the order in which they began.
        stuck: jobs, and clients, that did not get through although all was healed; a line each.
        findings: what was wrong with the swarm's own accounts.
    """

    nodes: Nodes
    meter: Meter
    observer: Observer
    jobs: list[Job] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    origin_s: float = 0.0
    took_s: float = 0.0
    trace_hash: str = ""


class Scene:
    """One play in one world."""

    def __init__(self, world: World, script: Script) -> None:
        self._world = world
        self._script = script
        self._meter = Meter()
        self._nodes = Nodes(world, script.blocks, script.config, self._compute)
        self._users = [self._users_of(workload) for workload in script.workloads]
        self._observer = Observer(self._nodes, self._meter, self._jobs, script.warmup_s)
        self._played = Played(self._nodes, self._meter, self._observer, origin_s=script.warmup_s)
        self._watch = checkers.Watch(self._servings)

    async def play(self) -> Played:
        """Play it to its end."""
        script = self._script
        self._world.tap = self._meter
        async with trio.open_nursery() as lives:
            await self._come(lives)
            await trio.sleep_until(script.warmup_s)
            disorder = Disorder(NodePatients(self._nodes))
            await self._trouble(disorder)
            lives.cancel_scope.cancel()  # nobody comes and goes any more
        await disorder.heal()
        await self._settle()
        self._observer.count_known()
        self._played.jobs = sorted((job for users in self._users for job in users.jobs), key=lambda job: job.began_s)
        self._played.findings = [*self._watch.found, *self._played.findings]
        self._played.samples = self._observer.samples
        self._played.took_s = trio.current_time()
        self._played.trace_hash = self._world.trace_hash()
        return self._played

    # -- its parts

    async def _come(self, lives: trio.Nursery) -> None:
        """Hosts start to live; bootstrap nodes first, because everybody needs their addresses."""
        origin_s = self._script.warmup_s
        for group in sorted(self._script.groups, key=lambda group: group.role != "bootstrap"):
            for number in range(group.count):
                if group.role == "bootstrap" and not group.start_s(number, origin_s):
                    await lives.start(group.live, self._nodes, number, origin_s)
                else:
                    lives.start_soon(group.live, self._nodes, number, origin_s)

    async def _trouble(self, disorder: Disorder) -> None:
        """Users ask and things go wrong, for as long as the script says."""
        script = self._script
        every_s = max(0.1, script.seconds / SAMPLES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._observer.run, every_s)
            nursery.start_soon(self._watch.run)
            nursery.start_soon(disorder.play, script.schedule, script.warmup_s)
            nursery.start_soon(self._tell)
            for users in self._users:
                nursery.start_soon(users.run)
            await trio.sleep(script.seconds)
            nursery.cancel_scope.cancel()
        self._observer.look()

    async def _tell(self) -> None:
        total = max(1, round(self._script.seconds))
        for second in range(total):
            self._script.progress("virtual seconds", second, total)
            await trio.sleep(1.0)

    async def _settle(self) -> None:
        """All is well again: every job ends, every client gets through, and nothing is left behind."""
        script, played = self._script, self._played
        if not script.settle_s:
            return
        until_s = trio.current_time() + script.settle_s
        with trio.move_on_at(until_s):
            for users in self._users:
                await users.settle()
        played.stuck += [
            f"{job}: still under way {script.settle_s:g} s after everything was healed"
            for users in self._users
            for job in users.jobs
            if job.state == "running"
        ]
        for node in self._nodes.of("client"):
            played.stuck += await self._probe(node, until_s)
        if script.leaks and not played.stuck:
            await trio.sleep(script.config.server.linger_s + LINGER_S)
            played.findings += checkers.leaks(self._servings())
            disks = {node.name: node.disk for node in self._nodes.by_name.values()}
            played.findings += checkers.left_on_disk(disks)

    async def _probe(self, node: SimNode, until_s: float) -> list[str]:
        """Whether a client gets a new job done now."""
        why = f"no answer {self._script.settle_s:g} s after everything was healed"
        with trio.move_on_at(max(until_s, trio.current_time() + self._script.config.client.patience_s)):
            try:
                await node.wait_up()
                assert node.model is not None
                await node.model.generate([list(PROBE_PROMPT)], max_new_tokens=PROBE_TOKENS, ignore_eos=True)
                return []
            except P2PLLMError as error:
                why = f"{type(error).__name__}: {error}"
        return [f"{node.name}: a new job fails although everything was healed: {why}"]

    # -- what it asks for

    def _compute(self, name: str) -> Compute:
        group = next(group for group in self._script.groups if name in group.names)
        return SimCompute(group.compute.costs(self._script.model, group.role == "client"))

    def _users_of(self, workload: Workload) -> Users:
        script = self._script
        names = next(group.names for group in script.groups if group.name == workload.clients)

        def clients() -> Sequence[SimNode]:
            return [self._nodes.by_name[name] for name in names if name in self._nodes.by_name]

        return Users(self._world, workload, script.blocks.config.vocab_size, clients, script.warmup_s, script.seconds)

    def _jobs(self) -> tuple[int, int]:
        """How many are under way, and how many tokens came so far."""
        jobs = [job for users in self._users for job in users.jobs]
        return sum(job.state == "running" for job in jobs), sum(job.tokens_done for job in jobs)

    def _servings(self) -> dict[str, Serving]:
        nodes = self._nodes.of("server")
        servers = ((node.name, node.server) for node in nodes if node.serves is not None)
        return {name: server.serving for name, server in servers if server is not None and server.serving is not None}
