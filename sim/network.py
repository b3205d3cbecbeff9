"""The simulated network: a world of hosts in one process, in virtual time, with the port of the real one.

Invariants: every identity, latency and choice follows from the seed; nothing here reads a clock or randomness of the
system; all that a host does to another takes its latency. What lies between hosts is ``sim.links``; what each verb
does is said by ``sim.world.World``.

    async with SimWorld(seed=7) as world:
        server, client = world.host("server"), world.host("client")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import trio

from p2pllm.config import NetConfig
from p2pllm.types import PeerId
from sim.dht import SimDht
from sim.host import SimNetwork
from sim.links import Access, Links
from sim.route import Route
from sim.timers import Timers
from sim.verbs import Verbs
from sim.world import EPOCH_S

__all__ = ["EPOCH_S", "SimWorld"]


class SimWorld(Verbs):
    """All hosts, and what lies between them. Use it as ``async with``."""

    stack = "ports"

    def __init__(
        self, seed: int = 0, latency_s: float = 0.010, config: NetConfig | None = None, links: Links | None = None
    ) -> None:
        super().__init__(seed, links or Links(seed, latency_s), config or NetConfig())
        self.timers = Timers()
        self.hosts: dict[str, SimNetwork] = {}
        self.dht = SimDht(self)
        self._peers: dict[PeerId, SimNetwork] = {}
        self._routes: dict[int, Route] = {}
        self._passable = trio.Event()
        self._nursery_manager = trio.open_nursery()
        self.nursery: trio.Nursery

    async def __aenter__(self) -> Self:
        self.nursery = await self._nursery_manager.__aenter__()
        self.nursery.start_soon(self.timers.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        self.nursery.cancel_scope.cancel()
        return await self._nursery_manager.__aexit__(kind, exc, tb)

    # -- hosts

    def host(self, name: str, bootstrap: Sequence[str] | None = None) -> SimNetwork:
        """A new host; it bootstraps through ``bootstrap``, by default through the world's first host.

        A name that was killed comes back with the same identity and an empty memory.
        """
        if name in self.hosts and self.hosts[name].alive:
            raise ValueError(f"host {name} is up already")
        if bootstrap is None:
            first = next(iter(self.hosts.values()), None)
            bootstrap = first.addrs if first is not None and first.name != name else ()
        host = self.hosts[name] = SimNetwork(self, name, bootstrap)
        self._peers[host.me] = host
        return host

    async def start(self, name: str, *, bootstrap: Sequence[str] | None = None) -> SimNetwork:
        """See ``World.start``."""
        await trio.lowlevel.checkpoint()
        return self.host(name, bootstrap)

    def by_peer(self, peer: PeerId) -> SimNetwork | None:
        """The host of an identity."""
        return self._peers.get(peer)

    def set_access(self, name: str, access: Access) -> None:
        """See ``World.set_access``."""
        super().set_access(name, access)
        if name in self.hosts:
            self.hosts[name].plug(access)

    # -- connections

    def connect(self, a: SimNetwork, b: SimNetwork, relay: SimNetwork | None) -> Route:
        """A new connection between two hosts."""
        route = Route(self, a, b, relay)
        self._routes[id(route)] = route
        return route

    def disconnected(self, route: Route) -> None:
        """One end of a connection is gone."""
        if not route.known():
            self._routes.pop(id(route), None)
        if route.relay is not None:
            route.relay.circuits.ended(route)

    def open_to(self, a: str, b: str) -> bool:
        """Whether ``a`` would get an answer from ``b`` now."""
        return self.hosts[b].alive and not self.cut(a, b)

    async def wait_passable(self, a: str, b: str) -> None:
        """Wait until packets pass between two hosts: retransmissions then arrive."""
        while self.cut(a, b):
            await self._passable.wait()

    # -- faults

    def kill(self, name: str) -> None:
        """See ``World.kill``."""
        self.note("kill", name, name, b"")
        self.hosts[name].die()
        if name in self._hung:  # its machine answers again, and refuses
            self._hung.discard(name)
            self._cuts_changed()

    def _settle(self) -> None:
        now = trio.current_time()
        for host in self.hosts.values():
            host.downlink.settle(now)

    def _cuts_changed(self) -> None:
        config = self.config
        cut = []
        for route in list(self._routes.values()):
            before = route.cut
            if route.look():
                for end in (route.a, route.b):
                    end.wake(route.other(end))
            elif route.cut and not before:
                cut.append(route)
        if cut:
            # Connections that stay cut for as long as heartbeats need are lost, on both sides.
            self.timers.after(config.heartbeat_interval_s + config.heartbeat_timeout_s, partial(_lose_cut, cut))
        for host in self.hosts.values():
            host.downlink.retry()
        self._passable.set()
        self._passable = trio.Event()

    # -- time

    def later(self, a: str, b: str, call: Callable[[], None]) -> None:
        """See ``World.later``."""
        self.timers.after(self.latency(a, b), call)


def _lose_cut(routes: Sequence[Route]) -> None:
    for route in routes:
        if route.cut:
            route.lose("no heartbeat")
