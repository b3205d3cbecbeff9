"""A swarm of real processes: a bootstrap node, servers, and clients, each in a network namespace of its own.

Not trio: it starts processes, waits for files and lines with deadlines, and ends everything; the processes are what is
of interest.

Invariants: a process that dies early or is late is an error that quotes what it wrote last. Leaving the context ends
all processes and removes all namespaces, also after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pllm.errors import SwarmError
from sim.kinds import Skipped
from sim.netlab import Lab
from sim.netlab.doctor import missing
from sim.real.client import Job
from sim.real.passes import NICE

ROOT = Path(__file__).parents[2]
BOOT, CLIENT = "boot", "client"
READY_S = 120.0
POLL_S = 0.05
QUEUE_MS = 200.0
FIRST = ("nice", "-n", str(NICE))
"""Hosts of an experiment share this machine's cores with whatever else runs there."""


@dataclass(frozen=True, slots=True)
class RealSpec:
    """What to build: servers of the demo model, in exact mode, as in ``sim.checkpoints``.

    Attributes:
        servers: the blocks of each, by host name.
        latency_ms: one way, between any two hosts.
        mbit: up and down, of each host; None: no limit.
        congestion: TCP's; a namespace may choose only among those that the machine allows everybody.
    """

    servers: Mapping[str, tuple[int, int]]
    latency_ms: float = 0.0
    mbit: float | None = None
    congestion: str = "reno"
    seed: int = 0

    def lab(self) -> dict[str, Any]:
        """The configuration of its network: each host adds half of a latency."""
        rate = self.mbit or 0.0
        link = {"delay_ms": self.latency_ms / 2, "uplink_mbit": rate, "downlink_mbit": rate, "queue_ms": QUEUE_MS}
        hosts = [{"name": name, **link} for name in (BOOT, *self.servers, CLIENT)]
        return {"hosts": hosts, "seed": self.seed + 1, "tcp_cc": self.congestion}


@dataclass(eq=False)
class Member:
    """A process that serves, or will."""

    name: str
    process: subprocess.Popen[bytes]
    ready: Path
    log: Path
    peer: str = ""
    addrs: tuple[str, ...] = ()

    def await_ready(self, deadline: float) -> None:
        """Wait until it serves.

        Raises:
            SwarmError: it ended, or is late.
        """
        while not self.ready.exists():
            if self.process.poll() is not None:
                raise SwarmError(f"{self.name} ended with exit code {self.process.returncode}: {self.tail()}")
            if time.monotonic() > deadline:
                raise SwarmError(f"{self.name} did not serve within {READY_S:.0f} s: {self.tail()}")
            time.sleep(POLL_S)
        said = json.loads(self.ready.read_text())
        self.peer, self.addrs = said["peer_id"], tuple(said["addrs"])

    def tail(self) -> str:
        """What it wrote last."""
        return tail(self.log)


@dataclass(eq=False)
class RealSwarm:
    """A running swarm; made by ``open_real``."""

    lab: Lab
    folder: Path
    spec: RealSpec
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def bootstrap(self) -> tuple[str, ...]:
        return self.members[BOOT].addrs

    def start(self, name: str, *arguments: str) -> Member:
        """Run a ``p2pllm`` command at host ``name``; it only begins to."""
        ready, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        words = [*arguments, "--listen", f"/ip4/{self.lab.addr(name)}/tcp/4001", "--ready-file", str(ready)]
        words += ["--cache-dir", str(self.folder / name), "--threads", "1"]
        with log.open("wb") as errors:
            process = self._popen(name, ["p2pllm", *words], errors, errors)
        member = self.members[name] = Member(name, process, ready, log)
        return member

    def kill(self, name: str) -> None:
        """SIGKILL: gone in mid-sentence."""
        self.members[name].process.kill()
        self.members[name].process.wait()

    def ask(self, job: Job, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Run a client; what it says, as it says it.

        Raises:
            SwarmError: it failed, or took longer than ``timeout_s``.
        """
        log = self.folder / "client.log"
        with log.open("wb") as errors:
            process = self._popen(CLIENT, ["sim.real.client", job.text()], subprocess.PIPE, errors)
        with process:
            try:
                for line in _lines(process, time.monotonic() + timeout_s):
                    yield json.loads(line)
            except TimeoutError:
                raise SwarmError(f"the client took longer than {timeout_s:.0f} s: {tail(log)}") from None
            finally:
                if process.poll() is None:
                    process.kill()
        if process.returncode:
            raise SwarmError(f"the client ended with exit code {process.returncode}: {tail(log)}")

    def _popen(self, name: str, words: Sequence[str], out: Any, errors: Any) -> subprocess.Popen[bytes]:
        command = [*FIRST, sys.executable, "-m", *words]
        return self.lab.popen(
            name, command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment()
        )

    def job(self, **wishes: Any) -> Job:
        """A job for a client of this swarm."""
        return Job(bootstrap=self.bootstrap, cache_dir=str(self.folder / CLIENT), **wishes)

    def named(self, peer: str) -> str:
        """The member of an identity."""
        return next(name for name, member in self.members.items() if member.peer == peer)


@contextmanager
def open_real(spec: RealSpec) -> Iterator[RealSwarm]:
    """A swarm whose servers all serve when the body begins.

    Raises:
        Skipped: this machine cannot do that; names what is missing.
        SwarmError: a process did not start.
    """
    if lacking := missing():
        raise Skipped(f"real sockets need network namespaces; missing on this machine: {', '.join(lacking)}")
    with tempfile.TemporaryDirectory(prefix="p2pllm-real-") as folder, Lab(spec.lab()) as lab:
        swarm = RealSwarm(lab, Path(folder), spec)
        deadline = time.monotonic() + READY_S
        swarm.start(BOOT, "bootstrap").await_ready(deadline)
        for name, (start, end) in spec.servers.items():
            flags = ["--blocks", f"{start}:{end}", "--bootstrap", swarm.bootstrap[0]]
            swarm.start(name, "node", "demo", *flags, "--exact")
        for member in swarm.members.values():
            member.await_ready(deadline)
        yield swarm


def environment() -> dict[str, str]:
    """One thread per process: hosts share this machine's cores, and would not in the world."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def tail(log: Path) -> str:
    """The last lines of a log, as one."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:]) or "it wrote nothing"


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Whole lines of a process's output, until it closes it or the time is over."""
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        if not (data := os.read(descriptor, 1 << 16)):
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
