"""A whole swarm on this machine: a bootstrap node and servers, each a separate process on loopback.

What ``p2pllm demo``, the benchmarks and the end-to-end tests stand on. Invariants: every process is a real
``p2pllm`` command, found through the DHT like a stranger; leaving the context ends all of them within a bound, whatever
happened inside; a process that dies early is reported with the last lines it wrote.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from p2pllm.errors import SwarmError
from p2pllm.types import PeerId, Span

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@dataclass(slots=True)
class Member:
    """One process of the swarm, once it serves."""

    process: trio.Process
    peer_id: PeerId
    addrs: tuple[str, ...]
    span: Span | None
    log: Path

    def kill(self) -> None:
        """SIGKILL: gone in mid-sentence, without a goodbye."""
        self.process.kill()

    def alive(self) -> bool:
        return self.process.poll() is None


class LocalSwarm:
    """Starts members and keeps track of them; made by ``open_local_swarm``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self._processes: list[trio.Process] = []
        self._numbers = itertools.count()

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """Addresses under which others join: the first member's."""
        return self.members[0].addrs

    @property
    def servers(self) -> list[Member]:
        return [m for m in self.members if m.span is not None]

    async def start(self, *arguments: str) -> Member:
        """Run ``p2pllm <arguments>`` and wait until it serves.

        Raises:
            SwarmError: it ended, or did not serve within two minutes; with the last lines of its log.
        """
        number = next(self._numbers)
        ready, log = self.folder / f"{number}.json", self.folder / f"{number}.log"
        command = [sys.executable, "-m", "p2pllm", *arguments, "--listen", LOOPBACK, "--ready-file", str(ready)]
        command += ["--identity", str(self.folder / f"{number}.key"), "--cache-dir", str(self.folder / f"{number}")]
        command += ["--preset", "local"]
        with log.open("wb") as errors:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we end them in order
            )
        self._processes.append(process)
        with trio.move_on_after(READY_TIMEOUT_S):
            while not ready.exists() and process.poll() is None:  # noqa: ASYNC110 - another process makes the file
                await trio.sleep(POLL_S)
        if not ready.exists():
            state = "still starting" if process.poll() is None else f"ended with exit code {process.returncode}"
            tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise SwarmError(f"`p2pllm {' '.join(arguments[:2])}` is {state}, it wrote: {tail or 'nothing'}")
        return self._joined(process, json.loads(ready.read_text()), log)

    def _joined(self, process: trio.Process, said: dict[str, Any], log: Path) -> Member:
        span = Span(*said["span"]) if said["span"] else None
        member = Member(process, PeerId(said["peer_id"]), tuple(said["addrs"]), span, log)
        self.members.append(member)
        return member

    async def stop(self) -> None:
        """End every process: politely, then by force."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        with trio.move_on_after(STOP_TIMEOUT_S):
            for process in self._processes:
                await process.wait()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                await process.wait()


@asynccontextmanager
async def open_local_swarm(
    model: str, spans: Sequence[tuple[int, int]], *, flags: Sequence[str] = (), on_ready: Any = None
) -> AsyncIterator[LocalSwarm]:
    """A bootstrap node and one server per entry of ``spans``, all serving when the body begins.

    Args:
        model: folder, hub id or ``demo``.
        spans: the blocks of each server; repeated spans are replicas.
        flags: more ``p2pllm node`` flags for every server.
        on_ready: called with each member as it begins to serve (progress).
    """
    with tempfile.TemporaryDirectory(prefix="p2pllm-") as folder:
        swarm = LocalSwarm(Path(folder))
        try:
            first = await swarm.start("bootstrap")
            if on_ready is not None:
                on_ready(first)

            async def one(a: int, b: int) -> None:
                member = await swarm.start("node", model, "--blocks", f"{a}:{b}", "--bootstrap", first.addrs[0], *flags)
                if on_ready is not None:
                    on_ready(member)

            async with trio.open_nursery() as nursery:
                for a, b in spans:
                    nursery.start_soon(one, a, b)
            yield swarm
        finally:
            with trio.CancelScope(shield=True):
                await swarm.stop()


def split(blocks: int, servers: int, replicas: int = 1) -> list[tuple[int, int]]:
    """Cut ``blocks`` into ``servers`` spans of nearly equal length, each ``replicas`` times."""
    cuts = [round(i * blocks / servers) for i in range(servers + 1)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b for _ in range(replicas)]
