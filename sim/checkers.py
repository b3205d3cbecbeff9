"""What must hold of a swarm at any moment, and what when everything is over: safety first.

Invariants: looks only, changes nothing. Every finding is one line that names the server or job and what is wrong with
it; no findings means that all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from p2pllm.server.serving import Serving
from sim.storage import MemoryStorage

Servings = Callable[[], Mapping[str, Serving]]
"""The living servers at this moment, by name."""

LOOK_S = 0.5
"""How often the accounts are looked at while things go wrong."""


def accounts(servings: Mapping[str, Serving]) -> list[str]:
    """Pages of caches that are lost or owned twice, on any server."""
    found = []
    for name, serving in servings.items():
        try:
            serving.room.cache.check_integrity()
        except AssertionError as exc:
            found.append(f"{name}: the cache's accounts are wrong: {exc}")
    return found


def leaks(servings: Mapping[str, Serving]) -> list[str]:
    """What a server still holds although nobody uses it any more."""
    found = []
    for name, serving in servings.items():
        cache, engine = serving.room.cache, serving.engine
        held = {
            "sessions are open": serving.sessions,
            "tokens of its cache are not free": cache.tokens - cache.tokens_free,
            "requests stand in line for its cache": cache.waiting,
            "steps wait for its device": engine.waiting,
            "bytes of steps are counted as waiting": engine.bytes_waiting,
        }
        found += [f"{name}: {count} {what}, and nobody uses it" for what, count in held.items() if count]
    return found


def left_on_disk(disks: Mapping[str, MemoryStorage]) -> list[str]:
    """Temporary files that nobody closed."""
    return [f"{name}: {len(disk.scratches)} temporary files are left" for name, disk in disks.items() if disk.scratches]


def difference(job: str, expected: Sequence[int], got: Sequence[int], done: bool) -> list[str]:
    """Whether tokens are those of the undisturbed run: all where the job is ``done``, else as far as it came."""
    for index, (mine, theirs) in enumerate(zip(expected, got, strict=False)):
        if mine != theirs:
            return [f"{job}: token {index} is {theirs}, undisturbed it is {mine}"]
    if len(got) > len(expected):
        return [f"{job}: {len(got)} tokens, undisturbed there are {len(expected)}"]
    if done and len(got) < len(expected):
        return [f"{job}: only {len(got)} of {len(expected)} tokens came, and nobody said why"]
    return []


class Watch:
    """Looks at the accounts again and again; what it finds is told once."""

    def __init__(self, servings: Servings) -> None:
        self.found: list[str] = []
        self._servings = servings

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_S)

    def look(self) -> None:
        """Look now."""
        self.found += [line for line in accounts(self._servings()) if line not in self.found]
