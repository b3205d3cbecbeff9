"""Kind "swarm": any hosts, any network, any users, and anything that goes wrong; all of it in one scenario file.

Safety first: every token that came is held against the model in one piece. Then everything is healed, and every job
and every client has to get through. What nobody can see yet, a server that computes wrongly on purpose, is counted and
told, never hidden.

Invariants: parameters and seed decide everything. The report is ``sim.verdicts``; this module only puts parts together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from p2pllm.errors import UserError
from sim.disorder import Schedule, in_order, schedule_of, texts_of
from sim.disorder_processes import Churn, Place, draw
from sim.hosts import Group
from sim.kinds import Kind, Run
from sim.models import blocks_of
from sim.results import Outcome
from sim.run import run
from sim.scene import Scene, Script
from sim.settings import configured
from sim.spec import NetworkSpec
from sim.stacks import open_world
from sim.swarm import Blocks
from sim.verdicts import Checks, outcome_of
from sim.workload import Workload
from sim.world import World

QUICK_S = 12.0
"""A reduced play takes at most so long, in virtual time."""
DEFAULT_GROUPS = (
    Group("boot", "bootstrap"),
    Group("s", "server", 4, ("0:4", "4:8")),
    Group("client", "client"),
)
DEFAULT_WORKLOADS = (Workload(),)
DEFAULT_CHECKS = Checks()
DEFAULT_NETWORK = NetworkSpec()


@dataclass(frozen=True, slots=True)
class Params:
    """A swarm and its story."""

    model: str = field(default="toy", metadata={"about": "toy, toy:BLOCKS, demo, a folder, or a shape's name"})
    preset: Literal["wan", "lan", "local"] = "wan"
    settings: dict[str, Any] = field(
        default_factory=dict, metadata={"about": "the product's settings, such as client.push"}
    )
    seconds: float = field(default=60.0, metadata={"min": 1.0, "max": 1e6, "about": "users ask for so long"})
    warmup_s: float = field(default=15.0, metadata={"min": 0.0, "max": 1e5, "about": "hosts join before time begins"})
    network: NetworkSpec = DEFAULT_NETWORK
    hosts: tuple[Group, ...] = DEFAULT_GROUPS
    workloads: tuple[Workload, ...] = DEFAULT_WORKLOADS
    faults: tuple[str, ...] = field(default=(), metadata={"about": "such as crash@12.5=s3+20; see sim.disorder"})
    churn: tuple[Churn, ...] = field(default=(), metadata={"about": "processes that break servers"})
    checks: Checks = DEFAULT_CHECKS

    def __post_init__(self) -> None:
        configured(self.preset, self.settings)
        names = [name for group in self.hosts for name in group.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"hosts: two are called {twice[0]!r}")
        groups = {group.name: group for group in self.hosts}
        for workload in self.workloads:
            group = groups.get(workload.clients)
            if group is None or group.role != "client":
                clients = [name for name, one in groups.items() if one.role == "client"]
                raise ValueError(
                    f"workloads: {workload.name!r} wants clients {workload.clients!r}; groups with the role client: "
                    f"{', '.join(clients) or 'none'}"
                )
        if len({workload.name for workload in self.workloads}) < len(self.workloads):
            raise ValueError("workloads: give each another name")
        for event in schedule_of(self.faults):
            for name in event.hosts:
                if name not in names:
                    raise ValueError(f"faults: {event}: there is no host {name!r}; there are: {', '.join(names)}")


def play_swarm(params: Params, how: Run) -> Outcome:
    """Play it, and say what came of it."""
    if how.quick and params.seconds > QUICK_S:
        params = shortened(params, QUICK_S / params.seconds)
    blocks = blocks_of(params.model, max((workload.tokens_max for workload in params.workloads), default=1))
    _fit(params, blocks)
    config = configured(params.preset, params.settings)

    async def main() -> Outcome:
        async with open_world(how.stack, how.seed, config.net) as world:
            _connect(world, params)
            schedule = _schedule(world, params, how)
            script = Script(
                blocks, params.model, config, params.hosts, params.workloads, schedule, params.seconds,
                params.warmup_s, params.checks.settle_s, params.checks.leaks, how.progress,
            )  # fmt: skip
            played = await Scene(world, script).play()
        return outcome_of(played, script, params.checks)

    return run(main, how.seed)


def shortened(params: Params, share: float) -> Params:
    """The same story in less time: whatever happens at a moment happens so much earlier, and lasts so much shorter."""
    events = tuple(
        replace(
            event, at_s=round(share * event.at_s, 3), for_s=event.for_s and max(0.001, round(share * event.for_s, 3))
        )
        for event in schedule_of(params.faults)
    )
    churn = tuple(
        replace(one, start_s=share * one.start_s, between_s=share * one.between_s, repair_s=share * one.repair_s)
        for one in params.churn
    )
    groups = tuple(
        replace(
            group, starts_s=group.starts_s and share * group.starts_s,
            lives_s=group.lives_s and max(0.1, share * group.lives_s),
            away_s=group.away_s and max(0.1, share * group.away_s),
        )
        for group in params.hosts
    )  # fmt: skip
    return replace(params, seconds=share * params.seconds, faults=texts_of(events), churn=churn, hosts=groups)


def _fit(params: Params, blocks: Blocks) -> None:
    """Whether the model has what the scenario asks of it.

    Raises:
        UserError: it has not.
    """
    total, positions = blocks.config.num_blocks, blocks.config.max_positions
    for group in params.hosts:
        for number in range(len(group.blocks) if group.role == "server" else 0):
            span = group.spec(number, configured(params.preset, params.settings)).span
            if span is not None and span.end > total:
                raise UserError(f"hosts: {group.name} serves blocks {span}, and model {params.model} has {total}")
        group.compute.costs(params.model, group.role == "client")
    for workload in params.workloads:
        if workload.tokens_max > positions:
            raise UserError(
                f"workloads: {workload.name} needs {workload.tokens_max} tokens, and the context of model "
                f"{params.model} holds {positions}"
            )


def _connect(world: World, params: Params) -> None:
    """Lay the cables."""
    regions = {name: group.region for group in params.hosts for name in group.names if group.region}
    params.network.apply(world, regions)
    for group in params.hosts:
        if group.access is not None:
            for name in group.names:
                world.set_access(name, group.access.access())


def _schedule(world: World, params: Params, how: Run) -> Schedule:
    """What goes wrong: as asked, else what the scenario says and its processes draw."""
    if how.faults is not None:
        return schedule_of(how.faults)
    drawn = [
        event
        for number, churn in enumerate(params.churn)
        for event in draw(churn, list(_places(params)), params.seconds, world.rng("churn", str(number)))
    ]
    return in_order([*schedule_of(params.faults), *drawn])


def _places(params: Params) -> Iterator[Place]:
    """Servers that are there from the beginning: whom processes may break."""
    for group in params.hosts:
        if group.role == "server" and group.starts_s is None:
            for number, name in enumerate(group.names):
                span = group.spec(number, configured(params.preset, params.settings)).span
                yield Place(name, group.region, span)


KIND = Kind("swarm", "any hosts, network, users and faults: tokens stay right, and everybody gets through", Params,
            play_swarm, ("ports", "libp2p"))  # fmt: skip
