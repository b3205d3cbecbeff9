"""What must hold of every case, and playing many of them at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from p2pllm.client.context import HopLost
from p2pllm.errors import CoverageError, SwarmError
from sim.failover import Case, Outcome, play
from sim.faults import FaultAt, Mishap

BLAMELESS = {Mishap.GONE, Mishap.BUSY}
"""Whoever says so is not to be held guilty of anything."""
MODES = [False]
"""Of ``Case.push``."""
MODE_NAMES = {False: "relay", True: "push"}
SLACK_S = dict.fromkeys(Mishap, 2.0) | {
    Mishap.BUSY: 6.0,
    Mishap.GONE: 4.0,  # the records are looked at anew
    Mishap.CORRUPT: 40.0,  # a length that was hit keeps the reader waiting for the rest
    Mishap.HANG: 40.0,
    Mishap.FREEZE: 40.0,
}
"""How much longer a generation may take, in virtual seconds."""
SHOWN = 5
"""Failing cases that are told in full."""

Player = Callable[[Case], Outcome]


def every_fault(clean: Outcome, case: Case, mishap: Mishap, indexes: Iterable[int] | None = None) -> Iterator[Case]:
    """``case`` with the fault at every message of its undisturbed run; between servers, at either end."""
    for index in range(len(clean.seen)) if indexes is None else indexes:
        message = clean.seen[index]
        yield replace(case, faults=(FaultAt(mishap, index),))
        if "client" not in (message.source, message.target) and mishap is not Mishap.RESET:
            yield replace(case, faults=(FaultAt(mishap, index, sender=True),))


def opened(clean: Outcome) -> int:
    """The first message after the chain was opened: earlier faults may give it other borders, and other rounding."""
    return next(index for index, message in enumerate(clean.seen) if "Step" in message.kind)


def named(error: SwarmError) -> tuple[int, ...]:
    """The blocks that an error names."""
    if isinstance(error, CoverageError):
        return error.missing
    assert isinstance(error, HopLost), error
    return tuple(error.hop.span)


def wrong_with(case: Case, outcome: Outcome, clean: Outcome) -> str:
    """What this outcome should not be; empty when all is well."""
    if outcome.error is not None:
        return f"ended with: {outcome.error}"
    if outcome.tokens != clean.tokens:
        first = next(i for i, (a, b) in enumerate(zip(outcome.tokens, clean.tokens, strict=False)) if a != b)
        return f"token {first} differs"
    guilty = {victim for fault, victim in outcome.struck if fault.mishap not in BLAMELESS}
    if outcome.blamed - guilty:
        return f"blamed {sorted(outcome.blamed)}, but hit were {[victim for _, victim in outcome.struck]}"
    if outcome.took_s > clean.took_s + sum(SLACK_S[fault.mishap] for fault in case.faults):
        return f"took {outcome.took_s:.1f} s instead of {clean.took_s:.1f}"
    return ""


def check_all(cases: Iterable[Case], clean: Outcome, player: Player = play) -> int:
    """Play cases and fail with the lines that repeat those that went wrong; how many were played."""
    played, wrong = 0, []
    with quiet():
        for case in cases:
            played += 1
            problem = wrong_with(case, player(case), clean)
            if problem:
                wrong.append(f"{case.command()}\n    {problem}")
    assert not wrong, f"{len(wrong)} of {played} cases, such as:\n" + "\n".join(wrong[:SHOWN])
    return played


@contextmanager
def quiet() -> Iterator[None]:
    """No log while thousands of servers die."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
