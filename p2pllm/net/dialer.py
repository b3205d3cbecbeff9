"""Reaching a peer: all its addresses at once, the first that answers wins, one dial per peer at a time.

Invariants: callers that want the same peer share one dial, which no single caller's cancellation ends; it ends with
its own deadline. A failure is not remembered: whoever asks again, tries again. Addresses learned from signed records
replace older ones; the book is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.errors import PeerLost
from p2pllm.net.addresses import dialable
from p2pllm.net.peers import Peers
from p2pllm.net.yamux import YamuxConnection
from p2pllm.types import PeerId

PEERS_KNOWN_MAX = 16384


class _Dial:
    """One dial under way, and how it ended."""

    def __init__(self, addrs: tuple[str, ...]) -> None:
        self.addrs = addrs
        self.ended = trio.Event()
        self.conn: YamuxConnection | None = None
        self.failures: list[str] = []


class Dialer:
    """See the module."""

    def __init__(self, swarm: Swarm, peers: Peers, nursery: trio.Nursery, me: PeerId, config: NetConfig) -> None:
        self._swarm = swarm
        self._peers = peers
        self._nursery = nursery
        self._me = me
        self._config = config
        self._book: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()
        self._worked: OrderedDict[PeerId, str] = OrderedDict()
        self._dials: dict[PeerId, _Dial] = {}

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Where ``peer`` may be dialled; replaces what was known, unless nothing of it can be dialled."""
        usable = dialable(addrs, peer)
        if peer == self._me or not usable:
            return
        self._book[peer] = usable
        self._book.move_to_end(peer)
        while len(self._book) > PEERS_KNOWN_MAX:
            self._book.popitem(last=False)

    def reached(self) -> tuple[str, ...]:
        """Addresses, with ``/p2p/``, at which peers were reached, the latest first: what is worth remembering."""
        return tuple(f"{addr}/p2p/{peer}" for peer, addr in reversed(self._worked.items()))

    async def connect(self, peer: PeerId) -> YamuxConnection:
        """A live connection to ``peer``.

        Raises:
            PeerLost: no address is known, or none answered within the dial deadline.
        """
        conn = self._peers.best(peer)
        if conn is not None:
            return conn
        if peer == self._me:
            raise PeerLost("a node does not dial itself")
        while True:
            dial = self._dials.get(peer)
            if dial is None:
                dial = self._dials[peer] = _Dial(self._addresses(peer))
                self._nursery.start_soon(self._dial, peer, dial)
            await dial.ended.wait()
            if dial.conn is not None and not dial.conn.is_closed:
                return dial.conn
            if dial.addrs == self._addresses(peer):  # else others were learned meanwhile
                why = "; ".join(dial.failures) or "no address is known"
                raise PeerLost(f"cannot reach {peer}: {why}")

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        known = self._book.get(peer)
        if known:
            return known
        try:
            stored = self._swarm.peerstore.addrs(ID.from_base58(peer))
        except (LookupError, ValueError):  # the peerstore's own error is a KeyError
            return ()
        return dialable([str(addr) for addr in stored], peer)

    async def _dial(self, peer: PeerId, dial: _Dial) -> None:
        try:
            with trio.move_on_after(self._config.dial_timeout_s) as scope:
                async with trio.open_nursery() as nursery:
                    for addr in dial.addrs:
                        nursery.start_soon(self._try, peer, addr, dial, nursery.cancel_scope)
            if scope.cancelled_caught and dial.conn is None:
                dial.failures.append(f"no answer within {self._config.dial_timeout_s:g} s")
        finally:
            del self._dials[peer]
            dial.ended.set()

    async def _try(self, peer: PeerId, addr: str, dial: _Dial, race: trio.CancelScope) -> None:
        try:
            conn = await self._swarm.dial_addr(Multiaddr(addr), ID.from_base58(peer))
        except (BaseLibp2pError, OSError, ValueError) as exc:
            dial.failures.append(f"{addr}: {_root(exc)}")
            return
        muxed = conn.muxed_conn
        if dial.conn is None and isinstance(muxed, YamuxConnection):
            dial.conn = muxed
            self._peers.add(muxed)
            self._worked[peer] = addr
            self._worked.move_to_end(peer)
            while len(self._worked) > PEERS_KNOWN_MAX:
                self._worked.popitem(last=False)
        race.cancel()


def _root(exc: BaseException) -> str:
    """What went wrong at the bottom, in a few words."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return (str(exc) or type(exc).__name__).splitlines()[0][:120]
