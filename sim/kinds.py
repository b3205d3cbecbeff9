"""Kinds of experiments: what a scenario file names with ``kind = "..."``, and what its other keys fill.

A kind is a module ``sim/experiments/<name>.py`` with ``KIND = Kind(...)``, and one line in ``KINDS``. Its parameters
are a frozen dataclass; ``sim.reader`` fills it from a scenario's TOML, so its fields are the keys of the file:

    @dataclass(frozen=True, slots=True)
    class Params:
        servers: int = field(default=6, metadata={"min": 1, "about": "how many join"})
        mode: Literal["push", "relay"] = "push"
        network: NetworkSpec = NetworkSpec()             # a table
        hosts: tuple[HostSpec, ...] = ()                 # an array of tables

    KIND = Kind("swarm", "any swarm with any workload", Params, play, ("ports", "libp2p"))

Invariants: modules are imported only when their kind is used; ``play`` depends on its parameters and ``Run`` alone.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import Any, Generic, Literal, TypeVar, get_args

from p2pllm.errors import UserError
from sim.results import Outcome

P = TypeVar("P")
Job = TypeVar("Job")
Made = TypeVar("Made")

Stack = Literal["ports", "libp2p", "real"]
STACKS: tuple[Stack, ...] = get_args(Stack)

KINDS: dict[str, str] = {
    "beyond": "sim.experiments.beyond:KIND",
    "finetune": "sim.experiments.finetune:KIND",
    "performance": "sim.experiments.performance:KIND",
    "agreement": "sim.experiments.agreement:KIND",
    "recovery": "sim.experiments.recovery:KIND",
    "disorder": "sim.experiments.disorder:KIND",
    "failure-table": "sim.experiments.failure_table:KIND",
    "adversary": "sim.experiments.adversary:KIND",
    "memory": "sim.experiments.memory:KIND",
    "patterns": "sim.experiments.patterns:KIND",
    "failover": "sim.experiments.failover:KIND",
    "swarm": "sim.experiments.swarm:KIND",
    "offload": "sim.experiments.offload:KIND",
    "placement": "sim.experiments.placement:KIND",
    "scale": "sim.experiments.scale:KIND",
}
"""By name, where each is defined."""


class Skipped(Exception):
    """This machine cannot play it (no root, no such tool); the message says what is missing. Nobody's fault."""


def quiet(text: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Run:
    """How to play a scenario, beside its parameters.

    Attributes:
        faults: in text form, instead of what the scenario draws; None: as the scenario says.
        quick: a reduced version of a few seconds, for tests.
        processes: how many may compute at once; with 1 everything happens in this process.
    """

    seed: int = 0
    stack: Stack = "ports"
    progress: Progress = quiet
    faults: tuple[str, ...] | None = None
    quick: bool = False
    processes: int = os.cpu_count() or 1

    def map(self, work: Callable[[Job], Made], jobs: Iterable[Job], text: str = "") -> list[Made]:
        """``work`` of every job, in order, in several processes where allowed, with progress.

        ``work`` is a module's function, and jobs and what it gives can be pickled by the pool.
        """
        todo = list(jobs)
        if min(self.processes, len(todo)) <= 1:
            return [self._told(work(job), text, done, len(todo)) for done, job in enumerate(todo, 1)]
        with _pool(min(self.processes, len(todo))) as pool:
            futures = [pool.submit(work, job) for job in todo]
            for done, future in enumerate(as_completed(futures), 1):
                self._told(future.result(), text, done, len(todo))
            return [future.result() for future in futures]

    def _told(self, made: Made, text: str, done: int, total: int) -> Made:
        self.progress(text, done, total)
        return made


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that ends at once, with what it is at, when a job fails or the user has had enough."""
    pool = ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn"), initializer=_in_worker)
    try:
        yield pool
    except BaseException:
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_worker() -> None:
    """Ctrl-C ends a worker without a word: its parent has one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True, slots=True)
class Kind(Generic[P]):
    """A kind of experiment.

    Attributes:
        about: one line for ``list`` and the documentation.
        params: a frozen dataclass; its defaults are the full experiment.
        stacks: those on which it can be played, the usual one first.
        parallel: it spreads its work over processes (``Run.map``), so nothing else should run beside it.
        measured: some of its figures are this machine's wall time, so that only its trace is the same every time.
    """

    name: str
    about: str
    params: type[P]
    play: Callable[[P, Run], Outcome]
    stacks: tuple[Stack, ...] = ("ports",)
    parallel: bool = False
    measured: bool = False


def kind_of(name: str) -> Kind[Any]:
    """The kind of that name.

    Raises:
        UserError: there is none; names the nearest ones.
    """
    if name not in KINDS:
        raise UserError(f"there is no kind {name!r}{nearest(name, KINDS)}; there are: {', '.join(sorted(KINDS))}")
    module, attribute = KINDS[name].split(":")
    kind = getattr(importlib.import_module(module), attribute)
    assert isinstance(kind, Kind), f"{KINDS[name]} is no Kind"
    return kind


def nearest(word: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing when nothing is near."""
    found: Sequence[str] = difflib.get_close_matches(word, list(words), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
