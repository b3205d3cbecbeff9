"""Plays a scenario: the one door that the command, the checker and the tests go through.

Invariants: what comes out follows from the scenario and from ``Run`` (wall time is nowhere in it), and says in one line
how to get it again.
"""

from __future__ import annotations

import shlex

from p2pllm.errors import UserError
from sim.catalog import Scenario
from sim.kinds import STACKS, Run, Skipped, Stack
from sim.netlab.doctor import missing
from sim.store import NOTHING, Played


def stack_of(scenario: Scenario, asked: str | None) -> Stack:
    """The stack to play on; None: the usual one, or where this machine cannot play on real sockets, the next one.

    Raises:
        UserError: the scenario cannot be played on that one, or this machine cannot.
    """
    able, lacking = scenario.kind.stacks, missing()
    if asked is None:
        return next((stack for stack in able if stack != "real" or not lacking), able[0])
    for stack in STACKS:
        if stack in able and stack == asked:
            if stack == "real" and lacking:
                raise UserError(f"--stack real needs network namespaces; missing on this machine: {', '.join(lacking)}")
            return stack
    raise UserError(f"scenario {scenario.asked!r} cannot be played on --stack {asked}; allowed: {', '.join(able)}")


def command(scenario: Scenario, how: Run) -> str:
    """The line that plays it again."""
    words = ["python -m sim run", shlex.quote(scenario.asked), f"--seed {how.seed}"]
    words += [f"--stack {how.stack}"] * (how.stack != scenario.kind.stacks[0])
    words += ["--quick"] * how.quick
    words += [f'--faults "{" ".join(how.faults)}"'] if how.faults is not None else []
    return " ".join(words)


def play(scenario: Scenario, how: Run) -> Played:
    """Play it; what this machine cannot play comes back as skipped, with the reason."""
    skipped = ""
    try:
        outcome = scenario.kind.play(scenario.params, how)
    except Skipped as reason:
        outcome, skipped = NOTHING, " ".join(str(reason).split())
    return Played(
        scenario=scenario.name, about=scenario.about, kind=scenario.kind.name, seed=how.seed, stack=how.stack,
        quick=how.quick, repeat=command(scenario, how), outcome=outcome, skipped=skipped,
    )  # fmt: skip
