"""What goes wrong, to whom and when: a schedule of events as a value, and as a text that a user can type.

    crash@12.5=s3              s3 crashes after 12.5 s, for good
    crash@12.5=s3+20           the same, and comes back empty 20 s later
    slow@10=s2+30*4            for 30 s the passes of s2 take four times as long
    partition@40=s0&s1|s2+15   for 15 s two groups do not hear each other, nor anybody else

Invariants: pure; an event is its text, both ways. ``sim.disorder_processes`` draws schedules, ``sim.disorder_acts``
does to a swarm what they say, ``sim.shrink`` makes small ones of large ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from p2pllm.errors import UserError

FaultWord = Literal[
    "crash", "restart", "hang", "slow", "flaky", "lag", "flap", "corrupt", "wrong", "stale", "disk_full", "clock_jump"
]
"""What can happen to a single host, as scenarios name it."""


class Fault(Enum):
    """What can happen to a host."""

    CRASH = "crash"
    RESTART = "restart"
    HANG = "hang"
    SLOW = "slow"
    FLAKY = "flaky"
    LAG = "lag"
    FLAP = "flap"
    CORRUPT = "corrupt"
    WRONG = "wrong"
    STALE = "stale"
    DISK_FULL = "disk_full"
    CLOCK_JUMP = "clock_jump"
    PARTITION = "partition"


@dataclass(frozen=True, slots=True)
class Nature:
    """What a kind of fault is like.

    Attributes:
        lasts: whether it has a duration.
        amount: what the number behind ``*`` means; empty: there is none.
        usual: the amount when none is given.
        low, high: between which it lies, both included.
    """

    about: str
    lasts: bool = True
    amount: str = ""
    usual: float = 0.0
    low: float = 0.0
    high: float = math.inf


NATURES: dict[Fault, Nature] = {
    Fault.CRASH: Nature("the process ends; it starts again, empty, when the duration is over"),
    Fault.RESTART: Nature("the process ends, if it runs, and starts again at once", lasts=False),
    Fault.HANG: Nature("nothing reaches or leaves the host; its connections stay"),
    Fault.SLOW: Nature("passes take longer", amount="how many times as long", usual=4.0, low=1.0),
    Fault.FLAKY: Nature("packets are lost", amount="share of them", usual=0.05, high=0.9),
    Fault.LAG: Nature("everything takes longer on its way", amount="more seconds, one way", usual=0.2),
    Fault.FLAP: Nature("the link is silent and fine in turns", amount="seconds of each", usual=2.0, low=0.01),
    Fault.CORRUPT: Nature("one bit of a message flips", amount="share of messages", usual=0.01, high=1.0),
    Fault.WRONG: Nature("answers have the right shapes and wrong numbers"),
    Fault.STALE: Nature("its oldest signed record goes around again", lasts=False),
    Fault.DISK_FULL: Nature("nothing can be written any more"),
    Fault.CLOCK_JUMP: Nature("its clock on the wall jumps", amount="seconds", usual=60.0, low=-math.inf),
    Fault.PARTITION: Nature("only hosts of the same group hear each other; hosts of no group form one of their own"),
}

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_NAME = r"[A-Za-z0-9_.'-]+"
_EVENT = re.compile(
    rf"(?P<kind>[a-z_]+)@(?P<at>{_NUMBER})=(?P<target>{_NAME}(?:[&|]{_NAME})*)"
    rf"(?:\+(?P<for>{_NUMBER}))?(?:\*(?P<amount>{_NUMBER}))?"
)
FORM = "KIND@SECONDS=HOST, then +SECONDS for how long and *NUMBER for how much, such as slow@10=s2+30*4"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that goes wrong.

    Attributes:
        at_s: virtual seconds from the beginning.
        target: a host; for a partition its groups, as ``a&b|c``.
        for_s: how long; None: for good, or for what has no duration.
        amount: how much, see ``NATURES``; None: as usual.

    Raises:
        ValueError: there is no such event; in one line.
    """

    at_s: float
    kind: Fault
    target: str
    for_s: float | None = None
    amount: float | None = None

    def __post_init__(self) -> None:
        nature, word = NATURES[self.kind], self.kind.value
        if not (math.isfinite(self.at_s) and self.at_s >= 0):
            raise ValueError(f"{word}: {self.at_s:g} is no moment; seconds from the beginning are 0 or more")
        if self.for_s is not None and not nature.lasts:
            raise ValueError(f"{word} has no duration")
        if self.for_s is not None and not (math.isfinite(self.for_s) and self.for_s > 0):
            raise ValueError(f"{word}: a duration is more than 0 s, not {self.for_s:g}")
        if self.amount is not None and not nature.amount:
            raise ValueError(f"{word} takes no amount")
        if self.amount is not None and not (math.isfinite(self.amount) and nature.low <= self.amount <= nature.high):
            raise ValueError(
                f"{word}: {nature.amount} lies between {nature.low:g} and {nature.high:g}, not {self.amount:g}"
            )
        if self.kind is not Fault.PARTITION and re.fullmatch(_NAME, self.target) is None:
            raise ValueError(f"{word} happens to one host, not to {self.target!r}")

    def __str__(self) -> str:
        lasts = "" if self.for_s is None else f"+{number(self.for_s)}"
        amount = "" if self.amount is None else f"*{number(self.amount)}"
        return f"{self.kind.value}@{number(self.at_s)}={self.target}{lasts}{amount}"

    @property
    def ends_s(self) -> float:
        """When it is over by itself; infinity: never."""
        if not NATURES[self.kind].lasts:
            return self.at_s
        return math.inf if self.for_s is None else self.at_s + self.for_s

    @property
    def much(self) -> float:
        """The amount, as usual where none was given."""
        return NATURES[self.kind].usual if self.amount is None else self.amount

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The target of a partition."""
        return tuple(tuple(group.split("&")) for group in self.target.split("|"))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Everybody whom it names."""
        return tuple(name for group in self.groups for name in group)

    @classmethod
    def parse(cls, text: str) -> Event:
        """From its text.

        Raises:
            UserError: it is none; says what one looks like.
        """
        found = _EVENT.fullmatch(text)
        if found is None:
            raise UserError(f"{text!r} is no fault: {FORM}")
        words = {fault.value: fault for fault in Fault}
        kind = words.get(found["kind"])
        if kind is None:
            raise UserError(f"{text!r}: there is no fault {found['kind']!r}; there are: {', '.join(words)}")
        lasts, amount = found["for"], found["amount"]
        try:
            return cls(
                float(found["at"]), kind, found["target"],
                None if lasts is None else float(lasts), None if amount is None else float(amount),
            )  # fmt: skip
        except ValueError as exc:
            raise UserError(f"{text!r}: {exc}") from exc


Schedule = tuple[Event, ...]
"""In the order of its moments."""


def schedule_of(texts: Iterable[str]) -> Schedule:
    """From texts of one or several events each, separated by blanks.

    Raises:
        UserError: one of them is none.
    """
    return in_order(Event.parse(word) for text in texts for word in text.split())


def in_order(events: Iterable[Event]) -> Schedule:
    """Events as a schedule; who was named first stays first where moments are equal."""
    return tuple(sorted(events, key=lambda event: event.at_s))


def check_names(schedule: Schedule, names: Sequence[str]) -> None:
    """Whether everybody whom a schedule names is there.

    Raises:
        UserError: somebody is not.
    """
    for event in schedule:
        for name in event.hosts:
            if name not in names:
                raise UserError(f"{event}: there is no host {name!r}; there are: {', '.join(names)}")


def texts_of(schedule: Schedule) -> tuple[str, ...]:
    """One word per event, as ``--faults`` takes them."""
    return tuple(map(str, schedule))


def number(value: float) -> str:
    """The shortest text that gives the same number again."""
    short = f"{value:g}"
    return short if float(short) == value and "e+" not in short else repr(value).replace("e+", "e")
