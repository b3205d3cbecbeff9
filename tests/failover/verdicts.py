"""What must hold of every case, and playing many of them at once."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from p2pllm.client.context import HopLost
from p2pllm.errors import CoverageError, SwarmError
from sim.failover import Case, Outcome, play
from sim.faults import FaultAt, Mishap

BLAMELESS = {Mishap.GONE, Mishap.BUSY}
"""Whoever says so is not to be held guilty of anything."""
MODES = [False, True]
"""Of ``Case.push``."""
MODE_NAMES = {False: "relay", True: "push"}
FOR_GOOD = {Mishap.KILL, Mishap.HANG}
FOR_LONG = {*FOR_GOOD, Mishap.FREEZE}
SLACK_S = dict.fromkeys(Mishap, 3.0) | {  # two servers may stand in for one, and connecting takes six round trips
    Mishap.BUSY: 6.0,
    Mishap.GONE: 4.0,  # the records are looked at anew
    Mishap.CORRUPT: 40.0,  # a length that was hit keeps the reader waiting for the rest
    Mishap.HANG: 20.0,
    Mishap.FREEZE: 20.0,
}
"""How much longer a generation may take, in virtual seconds."""
MANY = 40
"""Cases that are worth waking other processes for."""
SHOWN = 5
"""Failing cases that are told in full."""

Player = Callable[[Case], Outcome]


def every_fault(clean: Outcome, case: Case, mishap: Mishap, indexes: Iterable[int] | None = None) -> Iterator[Case]:
    """``case`` with the fault at every message of its undisturbed run; between two servers, both are lost in turn."""
    for index in range(len(clean.seen)) if indexes is None else indexes:
        message = clean.seen[index]
        between = "client" not in (message.source, message.target)
        both = between and mishap in FOR_GOOD
        for sender in (False, True) if both else (between and index % 2 == 1,):
            yield replace(case, faults=(FaultAt(mishap, index, sender),))


def opened(clean: Outcome) -> int:
    """The first message after the chain was opened: earlier faults may give it other borders, and other rounding."""
    return next(index for index, message in enumerate(clean.seen) if "Step" in message.kind)


def named(error: SwarmError) -> tuple[int, ...]:
    """The blocks that an error names."""
    if isinstance(error, CoverageError):
        return error.missing
    assert isinstance(error, HopLost), error
    return tuple(error.hop.span)


def out_of_replicas(case: Case, outcome: Outcome) -> bool:
    """Whether the run ended with an error that names blocks which indeed nobody serves any more.

    Who is frozen, or fails again and again, may be of no use for longer than the client's patience.
    """
    hits = Counter(victim for _, victim in outcome.struck)
    lost = {victim for fault, victim in outcome.struck if fault.mishap in FOR_LONG or hits[victim] > 2}
    served = {block for i, (a, b) in enumerate(case.spans) if f"s{i}" not in lost for block in range(a, b)}
    return outcome.error is not None and bool(set(named(outcome.error)) - served)


def wrong_with(case: Case, outcome: Outcome, clean: Outcome) -> str:
    """What this outcome should not be; empty when all is well."""
    if outcome.error is not None:
        return "" if out_of_replicas(case, outcome) else f"ended with: {outcome.error}"
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
    """Play cases and fail with the lines that repeat those that went wrong; how many were played.

    Cases know nothing of each other, so many of them are played on all cores.
    """
    listed = list(cases)
    if player is play and len(listed) >= MANY:
        found = list(_players().map(_judge, listed, itertools.repeat(clean), chunksize=4))
    else:
        with quiet():
            found = [wrong_with(case, player(case), clean) for case in listed]
    wrong = [f"{case.command()}\n    {problem}" for case, problem in zip(listed, found, strict=True) if problem]
    assert not wrong, f"{len(wrong)} of {len(listed)} cases, such as:\n" + "\n".join(wrong[:SHOWN])
    return len(listed)


@functools.cache
def _players() -> concurrent.futures.ProcessPoolExecutor:
    """Fresh processes, one for each core, for the rest of the run."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context)


def _judge(case: Case, clean: Outcome) -> str:
    with quiet():
        return wrong_with(case, play(case), clean)


@contextmanager
def quiet() -> Iterator[None]:
    """No log while thousands of servers die."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
