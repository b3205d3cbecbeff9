"""Where schedules come from: independent failures, whole regions at once, cascades of overload, recorded traces.

Invariants: pure; the generator is an argument, and the same draws give the same schedule. Moments and durations are
whole milliseconds, so that a schedule reads well. What a process draws is only what goes wrong: whether anybody
notices is the swarm's doing.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from p2pllm.errors import UserError
from p2pllm.types import Span
from sim.disorder import NATURES, Event, Fault, FaultWord, Schedule, in_order

BRIEFEST_S = 0.001


@dataclass(frozen=True, slots=True)
class Churn:
    """A process that breaks things; a table of a scenario.

    Attributes:
        process: ``poisson`` each host for itself, ``correlated`` whole regions, ``cascading`` survivors of an
            overload, ``trace`` what a file says.
        faults: what happens; each time one of these.
    """

    process: Literal["poisson", "correlated", "cascading", "trace"] = "poisson"
    faults: tuple[FaultWord, ...] = field(default=("crash",), metadata={"about": "what happens: each time one of them"})
    between_s: float = field(
        default=60.0, metadata={"min": 0.001, "about": "mean time between failures of a host (of a region)"}
    )
    repair_s: float = field(default=20.0, metadata={"min": 0.001, "about": "mean time to repair"})
    start_s: float = field(default=0.0, metadata={"min": 0.0, "about": "until then all is well"})
    spread_s: float = field(default=1.0, metadata={"min": 0.0, "about": "correlated: the region dies within so long"})
    share: float = field(
        default=1.0, metadata={"min": 0.0, "max": 1.0, "about": "correlated: of a region's hosts, how many are hit"}
    )
    load: float = field(
        default=0.6, metadata={"min": 0.0, "about": "cascading: load of a server while all live; 1 is its capacity"}
    )
    steepness: float = field(
        default=1.0, metadata={"min": 0.0, "about": "cascading: a load of 1 + x kills with 1 - exp(-steepness x)"}
    )
    round_s: float = field(default=5.0, metadata={"min": 0.001, "about": "cascading: how often an overload may kill"})
    trace: str = field(
        default="", metadata={"about": "trace: a CSV file with the columns at_s, kind, target, for_s, amount"}
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A host that can fail, where it stands, and what it serves."""

    name: str
    region: str = ""
    span: Span | None = None


def draw(churn: Churn, places: Sequence[Place], until_s: float, rng: random.Random) -> Schedule:
    """What goes wrong up to ``until_s``.

    Raises:
        UserError: no fault to draw from, or a trace that is none.
    """
    match churn.process:
        case "trace":
            return tuple(event for event in trace_of(churn.trace) if event.at_s < until_s)
        case "cascading":
            return cascading(churn, places, until_s, rng)
        case "correlated":
            regions: dict[str, list[str]] = {}
            for place in places:
                regions.setdefault(place.region, []).append(place.name)
            return correlated(churn, regions, until_s, rng)
        case _:
            return poisson(churn, [place.name for place in places], until_s, rng)


def poisson(churn: Churn, names: Iterable[str], until_s: float, rng: random.Random) -> Schedule:
    """Every host is well for an exponential time, and not for another, for itself."""
    kinds = faults_of(churn)
    events = []
    for name in names:
        now = churn.start_s + rng.expovariate(1 / churn.between_s)
        while now < until_s:
            event = _event(now, rng.choice(kinds), name, rng.expovariate(1 / churn.repair_s))
            events.append(event)
            now += (event.for_s or 0.0) + rng.expovariate(1 / churn.between_s)
    return in_order(events)


def correlated(churn: Churn, regions: Mapping[str, Sequence[str]], until_s: float, rng: random.Random) -> Schedule:
    """A region (a site, a provider) fails as a whole, its hosts shortly after each other, and comes back so."""
    kinds = faults_of(churn)
    events = []
    for _, names in sorted(regions.items()):
        now = churn.start_s + rng.expovariate(1 / churn.between_s)
        while now < until_s:
            kind, outage_s = rng.choice(kinds), rng.expovariate(1 / churn.repair_s)
            hit = sorted(rng.sample(list(names), math.ceil(churn.share * len(names))))
            events += [_event(now + rng.uniform(0, churn.spread_s), kind, name, outage_s) for name in hit]
            now += churn.spread_s + outage_s + rng.expovariate(1 / churn.between_s)
    return in_order(events)


def cascading(churn: Churn, places: Sequence[Place], until_s: float, rng: random.Random) -> Schedule:
    """Single failures, each of which may bring down those who take over its load, and so on.

    Every block's load is shared evenly by the living servers that hold it; a server's load is the mean of its blocks'.
    While some block is held by nobody there is no load at all: nothing gets through the chain. Every ``round_s`` each
    server beyond its capacity draws whether it fails.
    """
    kinds = faults_of(churn)
    servers = {place.name: place.span for place in places if place.span is not None}
    back: dict[str, float] = {}
    events: list[Event] = []

    def fail(now: float, name: str) -> None:
        events.append(_event(now, rng.choice(kinds), name, rng.expovariate(1 / churn.repair_s)))
        back[name] = max(events[-1].ends_s, now + BRIEFEST_S)

    usual = loads(servers, servers)
    first = churn.start_s + rng.expovariate(len(servers) / churn.between_s) if servers else until_s
    now = first
    while now < until_s:
        back = {name: end for name, end in back.items() if end > now}
        if not back:  # all is well again: wait for the next accident
            now = max(now, first)
            fail(now, rng.choice(sorted(servers)))
            first = now + rng.expovariate(len(servers) / churn.between_s)
        else:
            carried = loads({name: span for name, span in servers.items() if name not in back}, servers)
            for name, load in sorted(carried.items()):
                beyond = churn.load * load / usual[name] - 1 if usual[name] else 0.0
                if beyond > 0 and rng.random() < -math.expm1(-churn.steepness * beyond):
                    fail(now + rng.uniform(0, churn.round_s / 2), name)
        now += churn.round_s
    return in_order(event for event in events if event.at_s < until_s)


def loads(alive: Mapping[str, Span], everybody: Mapping[str, Span]) -> dict[str, float]:
    """What each living server carries of one stream of work through all blocks; 0 where the chain is broken."""
    holders: dict[int, int] = {}
    for span in alive.values():
        for block in span:
            holders[block] = holders.get(block, 0) + 1
    broken = any(block not in holders for span in everybody.values() for block in span)
    return {
        name: 0.0 if broken else sum(1 / holders[block] for block in span) / len(span) for name, span in alive.items()
    }


def trace_of(path: str) -> Schedule:
    """A recorded trace: a CSV file with the columns at_s, kind, target and, where wanted, for_s and amount.

    Raises:
        UserError: the file cannot be read, or a line is no event; names the file and the line.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"cannot read the trace {path!r}: {exc}") from exc
    return parse_trace(text, path)


def parse_trace(text: str, name: str) -> Schedule:
    """The same of a text; ``name`` is how errors call it."""
    lines = csv.DictReader(io.StringIO(text))
    needed = {"at_s", "kind", "target"}
    columns = set(lines.fieldnames or ())
    if not needed <= columns <= needed | {"for_s", "amount"}:
        raise UserError(f"{name}: the columns are at_s,kind,target,for_s,amount, not {','.join(sorted(columns))}")
    events = []
    for line in lines:
        lasts, amount = line.get("for_s"), line.get("amount")
        word = f"{line['kind']}@{line['at_s']}={line['target']}"
        word += (f"+{lasts}" if lasts else "") + (f"*{amount}" if amount else "")
        try:
            events.append(Event.parse(word))
        except UserError as exc:
            raise UserError(f"{name}, line {lines.line_num}: {exc}") from exc
    return in_order(events)


def faults_of(churn: Churn) -> list[Fault]:
    """The kinds that a churn draws from.

    Raises:
        UserError: it names none.
    """
    if not churn.faults:
        raise UserError(f"faults: name at least one of: {', '.join(get_args(FaultWord))}")
    return [Fault(word) for word in churn.faults]


def _event(at_s: float, kind: Fault, name: str, for_s: float) -> Event:
    lasts = max(BRIEFEST_S, round(for_s, 3)) if NATURES[kind].lasts else None
    return Event(round(at_s, 3), kind, name, lasts)
