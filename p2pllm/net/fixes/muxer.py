"""Trap: libp2p's yamux (``p2pllm.net.yamux`` says what it does), and that choosing another class does not replace it.

``MuxerMultistream.new_conn`` builds its own class for the yamux protocol whatever class is registered for it. So the
upgrader's multistream object is replaced by one that builds ours.
"""

from __future__ import annotations

from collections.abc import Callable

from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID

from p2pllm.config import NetConfig
from p2pllm.net.fixes.digest import require
from p2pllm.net.noise import NoiseSession
from p2pllm.net.yamux import YamuxConnection

REPLACED = "a12cc217e2a8d3a9"


def install(swarm: Swarm, config: NetConfig, on_lost: Callable[[YamuxConnection], None]) -> None:
    """Connections of ``swarm`` are multiplexed by our yamux."""
    require(MuxerMultistream.new_conn, REPLACED, "muxer")

    class Muxer(MuxerMultistream):
        async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
            await self.select_transport(conn)
            if not isinstance(conn, NoiseSession):
                raise MuxedConnError(f"cannot multiplex a {type(conn).__name__}")
            return YamuxConnection(conn, peer_id, config, on_lost)

    swarm.upgrader.muxer_multistream = Muxer({TProtocol(PROTOCOL_ID): YamuxConnection}, int(config.dial_timeout_s) or 1)
