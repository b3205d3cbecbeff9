"""The way that a connection between two hosts takes: direct, or through a relay until both have punched through.

Through a relay a piece crosses four links: the sender's uplink, both of the relay's, the receiver's downlink. TCP's
congestion window is kept for direct ways only; a relay ends TCP on both of its sides.

Invariants: streams follow their connection's route, also when it changes under way. ``cut`` is what the world says of
partitions and silent hosts, kept here because every piece asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from sim.congestion import Congestion
from sim.credit import Pool
from sim.queues import Piece

if TYPE_CHECKING:
    from sim.host import SimNetwork
    from sim.network import SimWorld


class Route:
    """Between ``a`` and ``b``; ``relay``: through whom, None: direct."""

    def __init__(self, world: SimWorld, a: SimNetwork, b: SimNetwork, relay: SimNetwork | None) -> None:
        self.a = a
        self.b = b
        self.relay = relay
        self.began_at = trio.current_time()
        self.relayed_bytes = 0
        self.cut = False
        """Whether nothing passes now (packets wait, as in TCP)."""
        self.pools = {a.name: Pool(), b.name: Pool()}
        self._world = world
        self._stuck: list[Callable[[], None]] = []
        self._windows: dict[str, Congestion | None] = {}
        self._last_first_at: dict[str, float] = {}
        self.look()

    def other(self, end: SimNetwork) -> SimNetwork:
        """The host at the other end."""
        return self.b if end is self.a else self.a

    def known(self) -> bool:
        """Whether one of the ends still believes in it."""
        return any((link := end.links.get(self.other(end).me)) and link.route is self for end in (self.a, self.b))

    def latency(self, source: str) -> float:
        """Seconds from the host of this name to the other one, without jitter and queues."""
        one, two = (self.a.name, self.b.name) if source == self.a.name else (self.b.name, self.a.name)
        if self.relay is None:
            return self._world.links.latency(one, two)
        return self._world.links.latency(one, self.relay.name) + self._world.links.latency(self.relay.name, two)

    @property
    def rtt_s(self) -> float:
        return self.latency(self.a.name) + self.latency(self.b.name)

    def look(self) -> bool:
        """See whether it is cut now; True when it just ceased to be."""
        before, cut = self.cut, self._world.cut
        if self.relay is None:
            self.cut = cut(self.a.name, self.b.name)
        else:
            self.cut = cut(self.a.name, self.relay.name) or cut(self.relay.name, self.b.name)
        if self.cut or not before:
            return False
        stuck, self._stuck = self._stuck, []
        for call in stuck:
            call()
        return True

    def later(self, source: str, call: Callable[[], None]) -> None:
        """Do something when a packet that leaves ``source`` now has arrived."""

        def arrive() -> None:
            if self.cut:
                self._stuck.append(call)
            else:
                call()

        self._world.timers.after(self.latency(source), arrive)

    def congestion(self, sender: SimNetwork, receiver: SimNetwork) -> Congestion | None:
        """TCP's window of this direction; None: nothing limits it."""
        if self.relay is not None:
            return None
        if sender.name not in self._windows:
            links = self._world.links
            needed = links.slow_start or receiver.downlink.lossy or links.loss(sender.name, receiver.name) > 0
            back_s = links.latency(receiver.name, sender.name)
            self._windows[sender.name] = Congestion(back_s) if needed else None
        return self._windows[sender.name]

    def leave(self, piece: Piece, host: SimNetwork) -> None:
        """A piece begins to leave ``host``: its sender, or the relay."""
        receiver = piece.pipe.receiver
        if self.relay is not None and host is piece.pipe.sender:
            self._travel(piece, host, self.relay)
            relay = self.relay
            self._world.timers.at(piece.arrival, lambda: self._at_relay(piece, relay))
            return
        piece.final = True
        self._travel(piece, host, receiver)
        if host is piece.pipe.sender:
            window = self.congestion(host, receiver)
            if window is not None:
                window.sent(piece, piece.left_at)
        piece.pipe.coming(piece)

    def _travel(self, piece: Piece, source: SimNetwork, target: SimNetwork) -> None:
        links = self._world.links
        delay_s, losses = links.journey(source.name, target.name, piece.size)
        first_at = piece.left_at + delay_s
        if not links.reordering:
            first_at = self._last_first_at[source.name] = max(first_at, self._last_first_at.get(source.name, 0.0))
        piece.losses, piece.rtt_s = losses, 2 * links.latency(source.name, target.name)
        target.downlink.take(piece, first_at, first_at + piece.ends_at - piece.left_at)

    def _at_relay(self, piece: Piece, relay: SimNetwork) -> None:
        now = trio.current_time()
        if not piece.settled and piece.where is not None:
            piece.where.settle(now)
        if not piece.settled or piece.arrival > now:
            self._world.timers.at(piece.arrival, lambda: self._at_relay(piece, relay))
        elif relay.alive:
            self.relayed_bytes += len(piece.data)
            piece.settled, piece.where = False, None
            limits = relay.access.relay
            if self.relay is relay and limits is not None and self.relayed_bytes > limits.circuit_bytes:
                self.lose("the relay cut the circuit: too many bytes")
            else:
                relay.uplink.forward(piece)

    def punched(self) -> None:
        """Both ends have a direct connection now: streams go on over it."""
        if self.relay is not None:
            self._world.note("punch", self.a.name, self.b.name, b"")
            self.relay.circuits.ended(self)
            self.relay = None
            self.look()

    def lose(self, reason: str) -> None:
        """Both ends lose the connection now."""
        self.a.lose(self.b, reason, self)
        self.b.lose(self.a, reason, self)
