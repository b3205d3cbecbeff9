"""A host's dealings with relays: reservations that it has or gives, and connections that begin through one.

Invariants: which relay serves is decided by the order in which reservations were made. A circuit's end is the end of
its connection, as both hosts see it, unless they have punched through by then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from p2pllm.errors import PeerLost
from sim.nat import Nat, dialable, punches

if TYPE_CHECKING:
    from sim.host import SimNetwork
    from sim.route import Route

RELAYS_WANTED = 2
"""A host behind a NAT keeps so many reservations."""
CIRCUIT_ROUND_TRIPS = 3
"""Connect and stop messages, Noise, yamux: what a circuit costs before its first stream."""
PUNCH_ROUND_TRIPS = 2
"""Both ends tell each other their addresses and agree on a moment (DCUtR), through the relay."""
DIRECT_ROUND_TRIPS = 3
"""The direct connection that then opens."""


class Circuits:
    """See the module; one for each host."""

    def __init__(self, host: SimNetwork) -> None:
        self._host = host
        self._relays: list[SimNetwork] = []
        self._guests: list[SimNetwork] = []
        self._routes: list[Route] = []

    def addrs(self) -> tuple[str, ...]:
        """Where this host is reached through relays."""
        return tuple(f"{relay.address}/p2p-circuit/p2p/{self._host.me}" for relay in self._relays)

    def takes_strangers(self) -> bool:
        """Whether who knows this host's own address can dial it now."""
        kind = self._host.access.nat
        return kind is Nat.PUBLIC or (dialable(kind) and bool(self._host.links))

    async def reserve(self, relay: SimNetwork) -> None:
        """Ask a relay that we are connected to for a reservation, if we need one and it has room."""
        host, limits = self._host, relay.access.relay
        if limits is None or dialable(host.access.nat) or len(self._relays) >= RELAYS_WANTED or relay in self._relays:
            return
        await host.round_trips(relay, 1)
        if (
            relay.me in host.links
            and relay not in self._relays
            and len(relay.circuits._guests) < limits.reservations_max
        ):
            self._relays.append(relay)
            relay.circuits._guests.append(host)
            host.world.note("reserve", host.name, relay.name, b"")

    async def dial(self, other: SimNetwork, known: Sequence[str]) -> None:
        """Connect to ``other`` through the first of its relays that takes us.

        Raises:
            PeerLost: none does.
        """
        host = self._host
        for relay, addr in zip(list(other.circuits._relays), other.circuits.addrs(), strict=True):
            if addr not in known:
                continue
            try:
                if relay.me not in host.links:
                    host.learn(relay.me, (relay.address,))
                await host.dial(relay.me)
                await self._through(relay, other)
            except PeerLost:
                continue
            return
        if not set(known) & set(other.circuits.addrs()):
            await trio.sleep(host.world.config.dial_timeout_s)  # a NAT drops what it does not know, and says nothing
        raise PeerLost(f"{other.me} is behind a NAT, and no relay leads to it")

    async def _through(self, relay: SimNetwork, other: SimNetwork) -> None:
        host, links, limits = self._host, self._host.world.links, relay.access.relay
        latency_s = links.latency(host.name, relay.name) + links.latency(relay.name, other.name)
        await host.round_trips(other, CIRCUIT_ROUND_TRIPS, latency_s=latency_s)
        if limits is None or other not in relay.circuits._guests or len(relay.circuits._routes) >= limits.circuits_max:
            raise PeerLost(f"{relay.me} does not relay to {other.me}")
        route = host.connect(other, relay)
        if route.relay is None:
            return
        relay.circuits._routes.append(route)
        timers = host.world.timers
        if punches(host.access.nat, other.access.nat):
            direct_s = links.latency(host.name, other.name) + links.latency(other.name, host.name)
            timers.after(PUNCH_ROUND_TRIPS * route.rtt_s + DIRECT_ROUND_TRIPS * direct_s, partial(_punch, route))
        if limits.circuit_s < math.inf:
            timers.after(limits.circuit_s, partial(_expire, route, relay))

    def lost(self, other: SimNetwork) -> None:
        """A connection is gone, and with it what it was needed for."""
        if other in self._relays:
            self._relays.remove(other)
            other.circuits._guests.remove(self._host)
        if other in self._guests:
            self._guests.remove(other)
            other.circuits._relays.remove(self._host)

    def ended(self, route: Route) -> None:
        """A circuit through this host is no more."""
        if route in self._routes:
            self._routes.remove(route)

    def close(self) -> None:
        """This relay is down: circuits break where packets of its end arrive."""
        for route in list(self._routes):
            for end in (route.a, route.b):
                self._host.world.later(self._host.name, end.name, partial(_break, end, route))
        self._routes.clear()


def _break(end: SimNetwork, route: Route) -> None:
    if route.relay is not None:
        end.lose(route.other(end), "the relay is gone", route)


def _punch(route: Route) -> None:
    if not route.cut and route.a.alive and route.b.alive and route.b.me in route.a.links:
        route.punched()


def _expire(route: Route, relay: SimNetwork) -> None:
    if route.relay is relay:
        route.lose("the relay cut the circuit: its time is over")
