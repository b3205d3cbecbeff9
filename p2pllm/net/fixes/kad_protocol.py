"""Trap: KadDHT takes a protocol prefix and ignores it: every node joins the public IPFS DHT's protocol.

The constant is imported by name into five modules; all five get our name. This is the one fix that is global to the
process: nothing else of libp2p in this process may want the public DHT.
"""

from __future__ import annotations

import libp2p.kad_dht.common
import libp2p.kad_dht.kad_dht
import libp2p.kad_dht.peer_routing
import libp2p.kad_dht.provider_store
import libp2p.kad_dht.value_store
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import KadDHT

from p2pllm.net.fixes.digest import require

KAD_PROTOCOL = TProtocol("/p2pllm/kad/1.0.0")
REPLACED = "2802c96fee5efc51"
_MODULES = (
    libp2p.kad_dht.common,
    libp2p.kad_dht.kad_dht,
    libp2p.kad_dht.peer_routing,
    libp2p.kad_dht.provider_store,
    libp2p.kad_dht.value_store,
)


def install() -> None:
    """From now on KadDHT speaks our protocol. Idempotent."""
    require(KadDHT.__init__, REPLACED, "kad_protocol")
    for module in _MODULES:
        module.PROTOCOL_ID = KAD_PROTOCOL  # type: ignore[attr-defined]
