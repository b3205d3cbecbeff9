"""Whom to ask and whom to tell: a few steady partners, chance for the rest.

Invariants: pure, ``now`` and ``rng`` are arguments. Partners are few and steady because a cursor into a member's log is
worth something only when one comes back to it; one is exchanged from time to time, so that no clique forms. Members
that fail or lie are left alone for a while, longer each time. Everything is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from random import Random

from p2pllm.dht.pace import slower
from p2pllm.dht.roster import Roster
from p2pllm.dht.view import SwarmView
from p2pllm.types import PeerId

PARTNERS = 2
ROUNDS_PER_EXCHANGE = 12
"""After so many rounds one partner makes room for somebody else."""
TRIES_MAX = 6
MET_MAX = 256
FAILED_MAX = 4096
FAIL_PAUSE_S, FAIL_PAUSE_MAX_S = 5.0, 300.0
LIE_PAUSE_S = 1800.0
LIE_COUNT = 10
"""A lie weighs like so many failures in a row."""


class Partners:
    """Members that one node talks with."""

    def __init__(self, me: PeerId, rng: Random, remembered: Sequence[tuple[PeerId, Sequence[str]]] = ()) -> None:
        self._me = me
        self._rng = rng
        self._remembered = tuple((peer, tuple(addrs)) for peer, addrs in remembered[:MET_MAX] if peer != me)
        self._partners: list[PeerId] = []
        self._met: OrderedDict[PeerId, None] = OrderedDict()
        self._answering: OrderedDict[PeerId, None] = OrderedDict()
        self._failed: OrderedDict[PeerId, tuple[int, float]] = OrderedDict()
        self._round = 0

    def remembered(self) -> tuple[tuple[PeerId, tuple[str, ...]], ...]:
        """Members of last time, with their addresses."""
        return self._remembered

    # -- what happened

    def met(self, peer: PeerId) -> None:
        """A peer connected: perhaps a member."""
        if self._failed.get(peer, (0, 0.0))[0] < LIE_COUNT:
            self._failed.pop(peer, None)
        _remember(self._met, peer)

    def answered(self, peer: PeerId) -> None:
        """It is a member."""
        self._failed.pop(peer, None)
        _remember(self._answering, peer)
        if peer not in self._partners and len(self._partners) < PARTNERS:
            self._partners.append(peer)

    def failed(self, peer: PeerId, now: float) -> None:
        """It did not answer."""
        count = min(self._failed.pop(peer, (0, 0.0))[0] + 1, LIE_COUNT - 1)
        self._rest(peer, count, now + min(FAIL_PAUSE_S * 2 ** (count - 1), FAIL_PAUSE_MAX_S))

    def lied(self, peer: PeerId, now: float) -> None:
        """It handed on something forged."""
        self._rest(peer, LIE_COUNT, now + LIE_PAUSE_S)

    def forgive(self) -> None:
        """It was we who were cut off: failures say nothing. Lies stay."""
        self._failed = OrderedDict((peer, entry) for peer, entry in self._failed.items() if entry[0] >= LIE_COUNT)

    def _rest(self, peer: PeerId, count: int, until: float) -> None:
        self._answering.pop(peer, None)
        if peer in self._partners:
            self._partners.remove(peer)
        self._failed[peer] = (count, until)
        if len(self._failed) > FAILED_MAX:
            self._failed.popitem(last=False)

    # -- whom to talk to

    def answering(self) -> tuple[PeerId, ...]:
        """Members that answered, the latest first."""
        return tuple(reversed(self._answering))

    def next_round(self, view: SwarmView, now: float) -> list[PeerId]:
        """Whom to ask this time, in this order, until one answers."""
        self._round += 1
        if view.count() > PARTNERS:
            # Bootstrap nodes keep less than servers do, and there are few of them for everybody.
            self._partners = [peer for peer in self._partners if view.serves(peer)]
        # Somebody new is asked for everything, which is more in a large swarm.
        if self._round % int(ROUNDS_PER_EXCHANGE * slower(view.count())) == 0 and len(self._partners) == PARTNERS:
            self._partners.pop(0)
        if self._partners:
            turn = self._round % len(self._partners)
            steady = self._partners[turn:] + self._partners[:turn]
        else:
            steady = []
        others = self._candidates(view, TRIES_MAX, lambda peer: self._fine(peer, now) and peer not in self._partners)
        order = [*others[:1], *steady, *others[1:]] if len(self._partners) < PARTNERS else [*steady, *others]
        if not order:  # everybody is resting; rather disturb some of them than stay alone
            known = dict.fromkeys([*(peer for peer, _ in self._remembered), *self._met, *self._failed])
            tired = [peer for peer in known if self._failed.get(peer, (0, 0.0))[0] < LIE_COUNT and peer != self._me]
            order = sorted(tired, key=lambda peer: self._failed.get(peer, (0, 0.0))[1])[:TRIES_MAX]
        return order[:TRIES_MAX]

    def stranger(self, view: SwarmView, now: float) -> PeerId | None:
        """A server whose record we have, and whom nobody here ever reached."""
        found = view.strangers.pick(self._rng, 1, lambda peer: self._fine(peer, now))
        return found[0] if found else None

    def choose(self, view: SwarmView, count: int, now: float) -> list[PeerId]:
        """Whom to tell news: chance servers, and always somebody who is none (bootstrap nodes have no record)."""
        chosen = self._candidates(view, count, lambda peer: self._fine(peer, now))
        others = [peer for peer in self._acquaintances() if not view.serves(peer) and self._fine(peer, now)]
        if others and not any(peer in others for peer in chosen):
            chosen = [*chosen[: count - 1], self._rng.choice(others)]
        return chosen

    def _candidates(self, view: SwarmView, count: int, fine: Callable[[PeerId], bool]) -> list[PeerId]:
        """Up to ``count`` worth talking to, in the order of promise, within a group by chance."""
        order: dict[PeerId, None] = {}
        groups: tuple[Callable[[], Roster | list[PeerId]], ...] = (
            lambda: view.servers_met,
            self._acquaintances,
            lambda: view.strangers,
            lambda: [peer for peer, _ in self._remembered],
        )
        for group in groups:
            if len(order) >= count:
                break
            peers = group()
            if isinstance(peers, Roster):
                order.update(dict.fromkeys(peers.pick(self._rng, count, fine)))
            else:
                able = [peer for peer in peers if fine(peer)]
                order.update(dict.fromkeys(self._rng.sample(able, len(able))))
        return list(order)[:count]

    def _acquaintances(self) -> list[PeerId]:
        return [*self._answering, *(peer for peer in self._met if peer not in self._answering)]

    def _fine(self, peer: PeerId, now: float) -> bool:
        return peer != self._me and self._failed.get(peer, (0, 0.0))[1] <= now


def _remember(peers: OrderedDict[PeerId, None], peer: PeerId) -> None:
    peers[peer] = None
    peers.move_to_end(peer)
    if len(peers) > MET_MAX:
        peers.popitem(last=False)
