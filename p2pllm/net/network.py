"""The Network port on py-libp2p: the real arm.

Invariants: every wait on a peer has a deadline; libp2p's exceptions end here as ``PeerLost``. Handlers run in libp2p's
tasks but cannot harm it (``fixes.handlers``). Streams that we open do not pass through libp2p's host: its negotiation
costs a round trip more and its bookkeeping a dozen scheduler turns per message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio
from libp2p.abc import IHost, INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.errors import PeerLost, RemoteProtocolError, UserError
from p2pllm.net import negotiate
from p2pllm.net.addresses import bootstrap_address
from p2pllm.net.dialer import Dialer
from p2pllm.net.identity import Identity
from p2pllm.net.kad import Kad
from p2pllm.net.peers import Peers
from p2pllm.net.yamux import YamuxConnection, YamuxStream
from p2pllm.ports import EventSource, Stream, StreamHandler
from p2pllm.types import Path, PeerId, Reachability

logger = logging.getLogger(__name__)

JOIN_GRACE_S = 0.3
"""Once one bootstrap member has answered, the others have so long to answer too."""


class Libp2pNetwork:
    """See the module. Made by ``p2pllm.net.open_network``."""

    def __init__(
        self,
        config: NetConfig,
        identity: Identity,
        host: IHost,
        peers: Peers,
        dialer: Dialer,
        kad: Kad,
        bootstrap: Sequence[str],
        remembered: Callable[[], Sequence[str]],
    ) -> None:
        self._config = config
        self._identity = identity
        self._host = host
        self._peers = peers
        self._dialer = dialer
        self._kad = kad
        self._bootstrap = tuple(bootstrap)
        self._remembered = remembered

    @property
    def me(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addrs(self) -> tuple[str, ...]:
        return tuple(str(addr) for addr in self._host.get_addrs())

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign(data)

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        self._dialer.learn(peer, addrs)

    def reached(self) -> tuple[str, ...]:
        """Multiaddrs (with ``/p2p/``) of peers that this node reached, the latest first: worth remembering."""
        return self._dialer.reached()

    # --- streams ---

    async def open_stream(self, peer: PeerId, protocol: str, *, timeout_s: float | None = None) -> Stream:
        limit_s = self._config.dial_timeout_s + self._config.stream_timeout_s if timeout_s is None else timeout_s
        with trio.move_on_after(limit_s):
            reused = self._peers.best(peer)
            if reused is not None:
                try:
                    return await self._open_on(reused, protocol)
                except PeerLost:
                    if not reused.is_closed:
                        raise
            return await self._open_on(await self._dialer.connect(peer), protocol)
        raise PeerLost(f"{peer} did not open {protocol} within {limit_s:g} s")

    async def _open_on(self, conn: YamuxConnection, protocol: str) -> YamuxStream:
        stream = conn.open_nowait()
        agreed = False
        try:
            with trio.move_on_after(self._config.stream_timeout_s):
                await negotiate.propose(stream, protocol)
                agreed = True
                return stream
        except RemoteProtocolError as exc:
            raise PeerLost(f"{conn.peer} did not open {protocol}: {exc}") from exc
        finally:
            if not agreed:
                stream.abort()
        raise PeerLost(f"{conn.peer} did not agree on {protocol} within {self._config.stream_timeout_s:g} s")

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def handle(net_stream: INetStream) -> None:
            stream: YamuxStream = net_stream.muxed_stream  # type: ignore[attr-defined]
            await handler(stream)
            if stream.lost is None:
                await stream.aclose()

        self._host.set_stream_handler(TProtocol(protocol), handle)

    # --- peers ---

    @property
    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a live connection."""
        return self._peers.connected

    async def close_peer(self, peer: PeerId) -> None:
        async with trio.open_nursery() as nursery:
            for conn in self._peers.all(peer):
                nursery.start_soon(conn.close)

    def path(self, peer: PeerId) -> Path | None:
        return self._peers.path(peer)

    def peer_events(self) -> AbstractAsyncContextManager[EventSource]:
        return self._peers.subscribe()

    def reachability(self) -> Reachability:
        return Reachability.UNKNOWN

    # --- the DHT ---

    async def bootstrap(self) -> int:
        """Dial all bootstrap addresses and remembered members at once; the first that answers opens the door."""
        known: dict[PeerId, list[str]] = {}
        for text in (*self._bootstrap, *self._remembered()):
            try:
                peer, addr = bootstrap_address(text)
            except UserError as exc:  # what was remembered may be of another version; the user's were checked at start
                logger.info("%s", exc)
                continue
            if peer != self.me:
                known.setdefault(peer, []).append(addr)
        answered: list[PeerId] = []
        with trio.move_on_after(self._config.dial_timeout_s) as scope:
            async with trio.open_nursery() as nursery:

                async def meet(peer: PeerId) -> None:
                    try:
                        await self._dialer.connect(peer)
                    except PeerLost as exc:
                        logger.info("bootstrap member %s: %s", peer, exc)
                        return
                    await self._kad.admit(ID.from_base58(peer))
                    answered.append(peer)
                    scope.deadline = min(scope.deadline, trio.current_time() + JOIN_GRACE_S)

                for peer, addrs in known.items():
                    self._dialer.learn(peer, addrs)
                    nursery.start_soon(meet, peer)
        if answered:
            await self._kad.look_around()
        return len(answered)

    async def put(self, key: str, value: bytes) -> None:
        await self._kad.put(key, value)

    async def get(self, key: str) -> bytes | None:
        return await self._kad.get(key)

    async def provide(self, key: str) -> None:
        await self._kad.provide(key)

    async def find(self, key: str, limit: int = 32) -> tuple[PeerId, ...]:
        found = await self._kad.find(key, limit)
        for peer, addrs in found.items():
            self._dialer.learn(peer, addrs)
        return tuple(found)

    # --- life ---

    async def aclose(self) -> None:
        """Say goodbye to everybody at once."""
        async with trio.open_nursery() as nursery:
            for peer in self._peers.connected:
                nursery.start_soon(self.close_peer, peer)


class Arrivals(INotifee):
    """libp2p tells of connections that are ready; their end we hear from our muxer, sooner."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        if isinstance(conn.muxed_conn, YamuxConnection):
            self._peers.add(conn.muxed_conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """Known already."""

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Not of interest."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Not of interest."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Not of interest."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Not of interest."""
