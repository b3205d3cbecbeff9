"""Does to a swarm what a schedule says, and heals it again.

A host's state follows from the events that are active on it, however they overlap: it is hung while any of them hangs
it, as slow as all of them together make it, and so on.

    disorder = Disorder(SwarmPatients(swarm))
    nursery.start_soon(disorder.play, schedule_of(["crash@3=s1+10", "slow@5=s0+20*4"]))
    ...
    await disorder.heal()

Invariants: what happens is what can happen in the world: hosts are killed, silenced, slowed, cut off, their disks
filled and their clocks turned; of the production code only a liar's blocks are replaced. Everything is noted in the
trace, and all that is random follows from the world's seed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import trio

from p2pllm.dht.record import unpack_entry
from p2pllm.errors import StorageError
from p2pllm.types import PeerId
from sim.compute import SimCompute
from sim.disorder import Event, Fault, Schedule
from sim.disorder_patients import Patients
from sim.faults import flipped
from sim.links import Access
from sim.storage import MemoryStorage
from sim.swarm import MODEL
from sim.world import Tap, TappedStream


class Disorder:
    """What is wrong with a swarm at present."""

    def __init__(self, patients: Patients) -> None:
        self.active: list[Event] = []
        self.done: list[Event] = []
        """Everything that began, in order."""
        self._patients = patients
        self._world = patients.world
        self._accesses: dict[str, Access] = {}
        self._first: dict[PeerId, bytes] = {}
        """The oldest record of every server that was seen here."""
        self._inner: Tap | None = None
        self._tapped = False
        self._rng = patients.world.rng("disorder")
        self._messages = itertools.count()
        self._remember()

    async def play(self, schedule: Schedule, began_s: float | None = None) -> None:
        """Let everything happen at its moment; ``began_s`` is the beginning of time, by default now."""
        began_s = trio.current_time() if began_s is None else began_s
        for at_s, event, begins in heapq.merge(*map(moments, schedule), key=lambda moment: moment[0]):
            await trio.sleep_until(began_s + at_s)
            await (self.begin(event) if begins else self.end(event))

    async def begin(self, event: Event) -> None:
        """It happens now."""
        self._remember()
        self._world.note("disorder", event.target, "begins", str(event).encode())
        self.done.append(event)
        match event.kind:
            case Fault.CRASH:
                self._kill(event.target)
            case Fault.RESTART:
                self._kill(event.target)
                await self._revive(event.target)
            case Fault.STALE:
                self._spread_old(event.target)
            case _:
                self.active.append(event)
                self._settle(event)

    async def end(self, event: Event) -> None:
        """Its time is over."""
        self._world.note("disorder", event.target, "ends", str(event).encode())
        if event.kind is Fault.CRASH:
            await self._revive(event.target)
        elif event in self.active:
            self.active.remove(event)
            self._settle(event)

    async def heal(self, core: Iterable[str] | None = None) -> None:
        """All is well again, as far as the hosts of ``core`` are concerned; None: everybody.

        Whoever belongs to no core keeps what is wrong with it, but for partitions, which end.
        """
        healed = set(self._patients.names() if core is None else core)
        for event in list(self.active):
            if event.kind is Fault.PARTITION or event.target in healed:
                await self.end(event)
        for name in self._patients.names():
            if name in healed:
                await self._revive(name)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _settle(self, event: Event) -> None:
        """Make the world as the active events of this one's kind say."""
        if event.kind is Fault.PARTITION:
            split = [other for other in self.active if other.kind is Fault.PARTITION]
            self._world.partition(*(split[-1].groups if split else ()))
            return
        name = event.target
        mine = [other for other in self.active if other.kind is event.kind and other.target == name]
        match event.kind:
            case Fault.HANG | Fault.FLAP:
                self._silence(name)
            case Fault.FLAKY | Fault.LAG:
                self._degrade(name)
            case Fault.CORRUPT:
                self._listen()
            case Fault.CLOCK_JUMP:
                self._world.skew(name, sum(other.much for other in mine))
            case _:
                self._weaken(name)

    def _silence(self, name: str) -> None:
        silent = any(self._on(name, Fault.HANG, Fault.FLAP))
        (self._world.hang if silent else self._world.resume)(name)

    def _degrade(self, name: str) -> None:
        """Loss and delay come on top of what the host's access is like without."""
        base = self._accesses.setdefault(name, self._world.links.access(name))
        arrives = 1.0 - base.loss
        for event in self._on(name, Fault.FLAKY):
            arrives *= 1.0 - event.much
        lag_s = sum(event.much for event in self._on(name, Fault.LAG))
        self._world.set_access(name, replace(base, loss=1.0 - arrives, latency_s=base.latency_s + lag_s))

    def _weaken(self, name: str) -> None:
        """Devices, blocks and disk of a living host."""
        if not self._alive(name):
            return
        compute, disk = self._patients.compute(name), self._patients.disk(name)
        if isinstance(compute, SimCompute):
            compute.slower = 1.0
            for event in self._on(name, Fault.SLOW):
                compute.slower *= event.much
        if isinstance(disk, MemoryStorage):
            disk.fail(_full if any(self._on(name, Fault.DISK_FULL)) else None)
        self._patients.lie(name, any(self._on(name, Fault.WRONG)))

    def _on(self, name: str, *kinds: Fault) -> Iterator[Event]:
        return (event for event in self.active if event.kind in kinds and event.target == name)

    def _alive(self, name: str) -> bool:
        host = self._world.hosts.get(name)
        return host is not None and host.alive

    def _kill(self, name: str) -> None:
        if self._alive(name):
            self._world.kill(name)

    async def _revive(self, name: str) -> None:
        if not self._alive(name):
            await self._patients.restart(name)
            self._weaken(name)  # what is wrong with the machine outlives the process

    # -- messages

    def _listen(self) -> None:
        """Stand between the hosts while messages are corrupted, in front of whoever stood there before."""
        wanted = any(event.kind is Fault.CORRUPT for event in self.active)
        if wanted and not self._tapped:
            self._inner, self._world.tap = self._world.tap, self._message
        elif not wanted and self._tapped:
            self._world.tap, self._inner = self._inner, None
        self._tapped = wanted

    def _message(self, stream: TappedStream, data: bytes) -> bytes:
        if self._inner is not None:
            data = self._inner(stream, data)
        for event in self.active:
            if event.kind is Fault.CORRUPT and event.target in stream.ends and self._rng.random() < event.much:
                return flipped(data, next(self._messages))
        return data

    # -- records

    def _remember(self) -> None:
        for view in self._patients.views().values():
            for ann in view.announcements(MODEL):
                if ann.peer not in self._first:
                    entry = view.entry(MODEL, ann.peer, trio.current_time())
                    if entry is not None:
                        self._first[ann.peer] = unpack_entry(entry)[0]

    def _spread_old(self, name: str) -> None:
        """Somebody hands the oldest record of ``name`` on to everybody, as if it were news."""
        record = self._first.get(self._world.hosts[name].me)
        for member, view in self._patients.views().items():
            if record is not None and member != name:
                view.merge(record, trio.current_time(), self._world.wall_time(member))


def moments(event: Event) -> Iterator[tuple[float, Event, bool]]:
    """When an event begins and ends; a flapping link does so again and again."""
    if event.kind is not Fault.FLAP:
        yield event.at_s, event, True
        if event.for_s is not None:
            yield event.ends_s, event, False
        return
    at_s = event.at_s
    while at_s < event.ends_s:
        yield at_s, event, True
        yield min(at_s + event.much, event.ends_s), event, False
        at_s += 2 * event.much


def _full(operation: str, path: str) -> None:
    if operation in ("write", "append"):
        raise StorageError(f"disk full: cannot write {path}")
