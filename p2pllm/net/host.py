"""Puts the real network together: libp2p's host with every fix installed, the dialer, the DHT.

Invariants: the one place where libp2p objects are made. ``open_network`` either yields a network that listens where it
was told, or raises ``UserError``; on leaving it says goodbye to every peer, within a bound.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import trio
from libp2p import new_host
from libp2p.abc import IHost, ITransport
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.errors import PeerLost, RemoteProtocolError, UserError
from p2pllm.net import negotiate
from p2pllm.net.addresses import bootstrap_address, expand, ip_of, listen_address
from p2pllm.net.dialer import Dialer
from p2pllm.net.fixes import choosing, dialing, handlers, muxer, stream_order
from p2pllm.net.fixes.peerstore import BoundedPeerStore
from p2pllm.net.fixes.short_reads import TcpTransport
from p2pllm.net.identity import Identity
from p2pllm.net.kad import open_kad
from p2pllm.net.network import Arrivals, Libp2pNetwork
from p2pllm.net.noise import NoiseTransport
from p2pllm.net.peers import Peers
from p2pllm.types import PeerId

CONNECTIONS_PER_PEER_MAX = 4


@asynccontextmanager
async def open_network(
    config: NetConfig,
    *,
    identity: Identity,
    wall_time: Callable[[], float],
    listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",),
    announce: Sequence[str] = (),
    bootstrap: Sequence[str] = (),
    remembered: Callable[[], Sequence[str]] = tuple,
    serve_dht: bool = True,
    transport: ITransport | None = None,
) -> AsyncIterator[Libp2pNetwork]:
    """A network under ``identity``, open until the block ends. It has not bootstrapped yet.

    Args:
        config: deadlines and limits.
        identity: who we are.
        wall_time: for the ages of DHT records.
        listen: multiaddrs to listen on; none for a node that only dials.
        announce: multiaddrs to announce instead of the ones listened on.
        bootstrap: multiaddrs with ``/p2p/`` of members to join through.
        remembered: more of them, asked for at each bootstrap.
        serve_dht: answer others' DHT questions; off for short-lived clients.
        transport: instead of TCP, for tests and simulations.

    Raises:
        UserError: an address is wrong or in use.
    """
    listening = [listen_address(text) for text in listen]
    announced = [listen_address(text) for text in announce]
    for text in bootstrap:
        bootstrap_address(text)
    if transport is None:
        _check_free(listening)
    peers = Peers()
    try:
        async with (
            _running(config, identity, peers, listening, announced, transport) as host,
            open_kad(
                host,
                speaks=partial(_speaks, peers),
                wall_time=wall_time,
                timeout_s=config.dht_timeout_s,
                serve=serve_dht,
            ) as kad,
            trio.open_nursery() as nursery,
        ):
            swarm = cast("Swarm", host.get_network())
            dialer = Dialer(swarm, peers, nursery, identity.peer_id, config)
            dialing.install(swarm, dialer.connect)
            peers.on_left = lambda peer: kad.disconnected(ID.from_base58(peer))
            network = Libp2pNetwork(config, identity, host, peers, dialer, kad, bootstrap, remembered)
            try:
                yield network
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + config.close_timeout_s):
                    await network.aclose()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nurseries inside are ours, not the caller's: what the block raised leaves as it was.
        raise _only(group) from None


@asynccontextmanager
async def _running(
    config: NetConfig,
    identity: Identity,
    peers: Peers,
    listening: Sequence[Multiaddr],
    announced: Sequence[Multiaddr],
    transport: ITransport | None,
) -> AsyncIterator[IHost]:
    host = new_host(
        key_pair=identity.keys,
        sec_opt={NOISE: NoiseTransport(identity.keys, new_noise_keys().private_key)},
        peerstore_opt=BoundedPeerStore(ID.from_base58(identity.peer_id)),
        transports=[TcpTransport() if transport is None else transport],
        connection_config=_limits(config),
        addrs_factory=lambda candidates: list(announced or expand(candidates)),
        disable_identify_address_discovery=True,
    )
    swarm = cast("Swarm", host.get_network())
    swarm.retry_config = RetryConfig(max_retries=0)  # whoever wants to try again, says so
    swarm.set_resource_manager(None)  # its limits count attempts, not resources; ours are in the muxer and above
    dialing.stay_put(swarm)
    choosing.install(swarm)
    stream_order.install()
    muxer.install(swarm, config, peers.remove)
    handlers.install(host, config.stream_timeout_s)
    swarm.register_notifee(Arrivals(peers))
    async with host.run(listen_addrs=list(listening)):
        if len(swarm.listeners) < len({str(addr) for addr in listening}):
            missing = [str(addr) for addr in listening if str(addr) not in swarm.listeners]
            raise UserError(f"cannot listen on {', '.join(missing)}")
        yield host


async def _speaks(peers: Peers, peer: PeerId, protocol: str) -> bool:
    """Whether a connected peer speaks ``protocol``: one round trip, nothing else."""
    conn = peers.best(peer)
    if conn is None:
        return False
    try:
        stream = conn.open_nowait()
    except PeerLost:
        return False
    try:
        await negotiate.propose(stream, protocol)
    except (PeerLost, RemoteProtocolError):
        return False
    finally:
        stream.abort()
    return True


def _limits(config: NetConfig) -> ConnectionConfig:
    """libp2p's connection manager, told to keep to our limits and to dial nobody on its own."""
    return ConnectionConfig(
        max_connections=config.connections_max,
        min_connections=0,
        low_watermark=0,
        high_watermark=config.connections_max,
        max_connections_per_peer=CONNECTIONS_PER_PEER_MAX,
        dial_timeout=config.dial_timeout_s,
        inbound_upgrade_timeout=config.dial_timeout_s,
        outbound_upgrade_timeout=config.dial_timeout_s,
        inbound_stream_protocol_negotiation_timeout=config.stream_timeout_s,
        outbound_stream_protocol_negotiation_timeout=config.stream_timeout_s,
        connection_close_timeout=config.close_timeout_s,
    )


def _check_free(listening: Sequence[Multiaddr]) -> None:
    """libp2p listens with SO_REUSEPORT: a second node on one port would silently share it with the first."""
    for addr in listening:
        ip, port = ip_of(addr), int(addr.value_for_protocol("tcp") or 0)
        if ip is None or not port:
            continue
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(ip), port))
            except OSError as exc:
                why = "another program uses that port" if exc.errno == errno.EADDRINUSE else exc.strerror
                raise UserError(f"cannot listen on {addr}: {why}") from exc


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception inside nested groups, or the group."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
