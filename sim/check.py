"""Many seeds of a scenario, each played in two processes that share nothing but the seed, and compared.

One process plays the seeds upwards, the other one downwards, with another hashing of strings: what depends on the order
of a set, or on what was played before, shows. A seed fails when a promise is broken, a gate fails, the play crashes, or
the two processes saw different things.

Invariants: the parent plays nothing while the two are at it; what it prints repeats a failure by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from p2pllm.errors import P2PLLMError, UserError
from sim import events
from sim.catalog import Scenario
from sim.disorder import schedule_of, texts_of
from sim.kinds import Progress, Run, quiet
from sim.play import play
from sim.results import Outcome
from sim.show import text
from sim.shrink import ddmin, shrink
from sim.store import jsonable

COMMAND = (sys.executable, "-m", "sim")
HASHINGS = ("1", "2")
"""``PYTHONHASHSEED`` of the two processes."""
PLAYS_MAX = 200
"""Of shrinking one seed's faults."""


class CheckError(P2PLLMError):
    """A process of the check ended early: nothing is known of the seeds that were left."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one process tells of one seed.

    Attributes:
        digest: of all that is printed and written; empty where wall time is in it.
        problems: why the play is a failure; empty: it is none.
    """

    seed: int
    trace_hash: str
    digest: str
    problems: tuple[str, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What both processes told of one seed."""

    one: Told
    other: Told

    @property
    def seed(self) -> int:
        return self.one.seed

    @property
    def same(self) -> bool:
        return (self.one.trace_hash, self.one.digest) == (self.other.trace_hash, self.other.digest)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.one.problems or self.other.problems

    @property
    def ok(self) -> bool:
        return self.same and not self.problems


@dataclass(frozen=True, slots=True)
class Task:
    """What to play, but for the seed: the words that tell a process of it."""

    scenario: Scenario
    how: Run
    command: tuple[str, ...] = field(default_factory=lambda: COMMAND)

    def words(self, seeds: Sequence[int], record: Path | None = None) -> list[str]:
        words = [*self.command, "side", self.scenario.asked, "--stack", self.how.stack, "--seeds", *map(str, seeds)]
        words += ["--quick"] * self.how.quick
        return words + (["--record", str(record)] if record is not None else [])


# -- in one of the two processes -----------------------------------------------------------------------------------


def told(scenario: Scenario, how: Run) -> Told:
    """Play, and tell; a crash is a failure like others, of this seed alone.

    Raises:
        UserError: it cannot be played like that.
    """
    try:
        outcome = play(scenario, replace(how, processes=1)).outcome
    except UserError:
        raise
    except Exception as error:  # whatever the code under test raises is what the check looks for
        where = traceback.extract_tb(error.__traceback__)[-1]
        crash = f"crashed: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Told(how.seed, "", "", (" ".join(crash.split()),), ())
    everything = json.dumps(jsonable(asdict(outcome)), sort_keys=True)
    timeless = not scenario.kind.measured and how.stack != "real"
    digest = hashlib.blake2b(everything.encode(), digest_size=16).hexdigest() if timeless else ""
    return Told(how.seed, outcome.trace_hash, digest, problems(outcome), outcome.faults)


def problems(outcome: Outcome) -> tuple[str, ...]:
    """What is wrong with an outcome, a line each."""
    failed = (
        f"gate {gate.name!r}: ours {text(gate.ours)}, wanted {gate.sense} {text(gate.wanted)}"
        for gate in outcome.gates
        if gate.failed
    )
    return (*outcome.violations, *failed)


def recorded(scenario: Scenario, how: Run, path: Path) -> Told:
    """Play, with every event of its worlds as a line of a file."""
    with path.open("w", encoding="utf-8") as file, events.recording(lambda line: file.write(line + "\n")):
        return told(scenario, how)


# -- in the process that asked --------------------------------------------------------------------------------------


async def verdicts(task: Task, seeds: Sequence[int], on_verdict: Callable[[Verdict], None]) -> None:
    """Let two processes play every seed; ``on_verdict`` gets each one as soon as both have told.

    Raises:
        CheckError: one of them ended early.
    """
    waiting: dict[int, Told] = {}

    def hear(line: str) -> None:
        found = _parsed(line)
        if found.seed in waiting:
            on_verdict(Verdict(waiting.pop(found.seed), found))
        else:
            waiting[found.seed] = found

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_side, task.words(list(seeds)), HASHINGS[0], hear)
        nursery.start_soon(_side, task.words(list(reversed(seeds))), HASHINGS[1], hear)


async def _side(words: Sequence[str], hashing: str, hear: Callable[[str], None]) -> None:
    """One process, to its end; every line that it prints is heard at once."""
    env = {**os.environ, "PYTHONHASHSEED": hashing}
    process = await trio.lowlevel.open_process(list(words), stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    rest = b""
    try:
        async for piece in process.stdout:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                hear(line.decode())
        code = await process.wait()
    finally:
        process.kill()  # does nothing once it has ended
    if code or rest:
        raise CheckError(f"a process of the check ended with exit code {code}, before it was done")


async def difference(task: Task, seed: int, folder: Path) -> events.Difference | None:
    """Play a seed again in two processes, with their events recorded: where do they part? None: not this time."""
    paths = [folder / hashing for hashing in HASHINGS]
    async with trio.open_nursery() as nursery:
        for path, hashing in zip(paths, HASHINGS, strict=True):
            nursery.start_soon(_side, task.words([seed], path), hashing, lambda _: None)
    with paths[0].open(encoding="utf-8") as one, paths[1].open(encoding="utf-8") as other:
        return events.first_difference(map(str.rstrip, one), map(str.rstrip, other))


def shrunk(task: Task, verdict: Verdict, progress: Progress = quiet, plays_max: int = PLAYS_MAX) -> tuple[str, ...]:
    """Fewer and simpler faults with which the seed still fails: all of them where it does not fail because of them.

    Played in this process, which no loop may be running in; after ``plays_max`` plays the best so far is good enough.
    """
    faults = verdict.one.faults
    plays = 0
    best = faults

    def fails(candidate: tuple[str, ...]) -> bool:
        nonlocal plays, best
        if plays >= plays_max:
            return False
        plays += 1
        progress("making faults fewer", plays, plays_max)
        try:
            found = told(task.scenario, replace(task.how, seed=verdict.seed, faults=candidate, progress=quiet))
        except UserError:
            return False  # a schedule that cannot be
        if found.problems:
            best = candidate
        return bool(found.problems)

    if not faults or not fails(faults):
        return faults
    try:
        schedule = schedule_of(faults)
    except (UserError, ValueError):  # faults of another kind than those with a time
        ddmin(faults, fails)
    else:
        shrink(schedule, lambda candidate: fails(texts_of(candidate)))
    return best


def _parsed(line: str) -> Told:
    data: dict[str, Any] = json.loads(line)
    return Told(**(data | {"problems": tuple(data["problems"]), "faults": tuple(data["faults"])}))
