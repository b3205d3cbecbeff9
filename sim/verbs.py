"""What the worlds of both stacks have in common: identities, clocks, generators, who hears whom, and the trace.

Invariants: what a verb says about hosts holds by name, whether they are up or not. A world's own part is what becomes
of bytes: it overrides ``_settle`` and ``_cuts_changed``.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

import trio

from p2pllm.config import NetConfig
from sim.events import saw
from sim.links import Access, Links
from sim.world import EPOCH_S, Tap

PORT = 4001
"""At which every host listens."""


def key_seed(seed: int, name: str) -> bytes:
    """What the private key of a host is made from: the same identity on every stack."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def ip_of(name: str) -> str:
    """The address of a host."""
    number = hashlib.sha256(name.encode()).digest()
    return f"10.{number[0]}.{number[1]}.{number[2]}"


class Verbs:
    """See ``sim.world.World``, which says what each verb does."""

    def __init__(self, seed: int, links: Links, config: NetConfig) -> None:
        self.seed = seed
        self.links = links
        self.config = config
        self.tap: Tap | None = None
        self._skews: dict[str, float] = {}
        self._side: dict[str, int] = {}
        self._hung: set[str] = set()
        self._trace = hashlib.blake2b(digest_size=16)

    def rng(self, *purpose: str) -> random.Random:
        """See ``World.rng``."""
        return random.Random("/".join((str(self.seed), *purpose)))

    def wall_time(self, name: str) -> float:
        """See ``World.wall_time``."""
        return EPOCH_S + trio.current_time() + self._skews.get(name, 0.0)

    def skew(self, name: str, seconds: float) -> None:
        """See ``World.skew``."""
        self._skews[name] = seconds

    # -- what lies between

    def latency(self, a: str, b: str) -> float:
        """See ``World.latency``."""
        return self.links.latency(a, b)

    def set_latency(self, a: str, b: str, seconds: float) -> None:
        """See ``World.set_latency``."""
        self.links.set_latency(a, b, seconds)

    def set_access(self, name: str, access: Access) -> None:
        """See ``World.set_access``."""
        self.links.set_access(name, access)

    def set_bandwidth(self, name: str, up_bytes_per_s: float | None) -> None:
        """See ``World.set_bandwidth``."""
        self.set_access(name, replace(self.links.access(name), up_bytes_per_s=up_bytes_per_s))

    @property
    def divided(self) -> bool:
        """Whether somebody does not hear somebody else now."""
        return bool(self._side or self._hung)

    def cut(self, a: str, b: str) -> bool:
        """Whether nothing passes between two hosts now (their packets wait, as in TCP)."""
        return self._side.get(a, 0) != self._side.get(b, 0) or a in self._hung or b in self._hung

    def hang(self, name: str) -> None:
        """See ``World.hang``."""
        self._settle()
        self.note("hang", name, name, b"")
        self._hung.add(name)
        self._cuts_changed()

    def resume(self, name: str) -> None:
        """See ``World.resume``."""
        self.note("resume", name, name, b"")
        self._hung.discard(name)
        self._cuts_changed()

    def partition(self, *groups: Sequence[str]) -> None:
        """See ``World.partition``."""
        self._settle()
        self._side = {name: side for side, group in enumerate(groups, 1) for name in group}
        self.note("partition", "", "", repr(sorted(self._side.items())).encode())
        self._cuts_changed()

    def heal(self) -> None:
        """See ``World.heal``."""
        self.partition()

    def _settle(self) -> None:
        """What has come by now has come, whatever is cut in the next moment."""
        raise NotImplementedError

    def _cuts_changed(self) -> None:
        """Who hears whom is different from now on."""
        raise NotImplementedError

    # -- trace

    def note(self, event: str, source: str, target: str, data: bytes) -> None:
        """See ``World.note``."""
        at_s = trio.current_time()
        self._trace.update(f"{at_s:.9f} {event} {source} {target} {len(data)}\n".encode())
        self._trace.update(data)
        saw(at_s, event, source, target, data)

    def trace_hash(self) -> str:
        """See ``World.trace_hash``."""
        return self._trace.hexdigest()
