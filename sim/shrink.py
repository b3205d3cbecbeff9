"""Makes a small failing schedule of a large one: first fewer events (ddmin), then simpler ones.

Delta debugging after Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002).

Invariants: pure; whether something fails is the caller's word, asked once per candidate. What comes out fails, and is
1-minimal: without any one of its events it does not. It ends, because every step removes an event or simplifies one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from sim.disorder import Event, Schedule, in_order

T = TypeVar("T", bound=Hashable)

Fails = Callable[[Schedule], bool]
"""Whether a run under a schedule still goes wrong."""

DIGITS = (0, 1, 2)
"""Of simpler numbers, tried from the coarsest on."""
BRIEF_S = (0.5, 1.0, 5.0)
"""Durations that are simpler than longer ones."""


def ddmin(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """A part of ``items`` that fails, in their order, none of which can be left out.

    Raises:
        ValueError: all of them together do not fail.
    """
    ask = _remembering(fails)
    left = tuple(items)
    if not ask(left):
        raise ValueError("nothing fails here")
    parts = 2
    while left:
        found = _smaller(left, parts, ask)
        if found is not None:
            left, parts = found
        elif parts >= len(left):
            break
        else:
            parts = min(len(left), 2 * parts)
    return left


def _smaller(
    left: tuple[T, ...], parts: int, fails: Callable[[tuple[T, ...]], bool]
) -> tuple[tuple[T, ...], int] | None:
    """One of ``parts`` parts, or all without one of them, that fails; and in how many parts to cut that."""
    parts = min(parts, len(left))
    cuts = [len(left) * part // parts for part in range(parts + 1)]
    for start, stop in itertools.pairwise(cuts):
        if stop - start < len(left) and fails(left[start:stop]):
            return left[start:stop], 2
    for start, stop in itertools.pairwise(cuts):
        rest = left[:start] + left[stop:]
        if fails(rest):
            return rest, max(parts - 1, 2)
    return None


def shrink(schedule: Schedule, fails: Fails) -> Schedule:
    """A small and simple schedule that fails as ``schedule`` does.

    Raises:
        ValueError: ``schedule`` does not fail.
    """
    ask = _remembering(fails)
    left = ddmin(schedule, ask)
    while True:
        simple = _simplified(left, ask)
        # Simpler events may do the work of several; what is left out then may be simplified further.
        small = ddmin(simple, ask)
        if small == left:
            return left
        left = small


def _simplified(schedule: Schedule, fails: Fails) -> Schedule:
    """Every event as simple as it can be while the schedule fails."""
    for index in range(len(schedule)):
        improved = True
        while improved:
            improved = False
            for simpler in simpler_events(schedule[index]):
                candidate = (*schedule[:index], simpler, *schedule[index + 1 :])
                # Only where the order stays: else the next index would be another event.
                if in_order(candidate) == candidate and fails(candidate):
                    schedule, improved = candidate, True
                    break
    return schedule


def simpler_events(event: Event) -> Iterator[Event]:
    """The same event with one plainer number, the plainest first; nothing leads back to ``event``."""
    if event.amount is not None:
        yield replace(event, amount=None)
    if event.for_s is not None:
        yield from (replace(event, for_s=brief) for brief in BRIEF_S if brief < event.for_s)
    if event.at_s:
        yield replace(event, at_s=0.0)
    for digits in DIGITS:
        at_s = round(event.at_s, digits)
        if at_s < event.at_s or (at_s != event.at_s and _digits(at_s) < _digits(event.at_s)):
            yield replace(event, at_s=at_s)


def _digits(value: float) -> int:
    """Behind the point, as it is printed."""
    return len(repr(value).partition(".")[2].rstrip("0"))


def _remembering(fails: Callable[[tuple[T, ...]], bool]) -> Callable[[tuple[T, ...]], bool]:
    """Ask about the same candidate once only: a run takes long, and is the same every time."""
    known: dict[tuple[T, ...], bool] = {}

    def ask(items: tuple[T, ...]) -> bool:
        if items not in known:
            known[items] = fails(items)
        return known[items]

    return ask
