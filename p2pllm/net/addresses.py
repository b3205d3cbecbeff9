"""Multiaddrs as text: what may be announced, what may be dialled. Pure, except for reading the interface list.

Invariants: an unspecified address (0.0.0.0, ::) is neither announced nor dialled: listening on it means listening on
every interface, so it is replaced by the interfaces' own. Loopback is announced last.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from libp2p.utils.address_validation import get_available_interfaces
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from p2pllm.errors import UserError
from p2pllm.types import PeerId

ADDRESSES_PER_PEER_MAX = 16


def parse(text: str) -> Multiaddr | None:
    """A TCP multiaddr, or None: a peer's word about addresses is never an error."""
    try:
        addr = Multiaddr(text)
        names = [protocol.name for protocol in addr.protocols()]
    except (MultiaddrError, ValueError, LookupError, TypeError):
        return None
    return addr if "tcp" in names and not {"ws", "wss"} & set(names) else None


def peer_of(addr: Multiaddr) -> PeerId | None:
    """The last ``/p2p/`` part."""
    found = [value for protocol, value in addr.items() if protocol.name == "p2p"]
    return PeerId(str(found[-1])) if found else None


def ip_of(addr: Multiaddr) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address's IP; None for a name."""
    for protocol, value in addr.items():
        if protocol.name in {"ip4", "ip6"}:
            return ipaddress.ip_address(str(value))
    return None


def dialable(texts: Iterable[str], peer: PeerId) -> tuple[str, ...]:
    """Those of ``texts`` that could lead to ``peer``, without their ``/p2p/`` end, without repeats, bounded."""
    out: dict[str, None] = {}
    for text in texts:
        addr = parse(text)
        if addr is None or peer_of(addr) not in {None, peer}:
            continue
        ip = ip_of(addr)
        if ip is not None and (ip.is_unspecified or ip.is_multicast):
            continue
        out[without_peer(addr)] = None
    return tuple(out)[:ADDRESSES_PER_PEER_MAX]


def without_peer(addr: Multiaddr) -> str:
    """The address as text, without ``/p2p/...`` at its end."""
    text = str(addr)
    at = text.rfind("/p2p/")
    return text if at < 0 or "/p2p-circuit" in text[at + 5 :] else text[:at]


def bootstrap_address(text: str) -> tuple[PeerId, str]:
    """A user's bootstrap address as peer and address.

    Raises:
        UserError: it is not a TCP multiaddr that ends in /p2p/<peer id>.
    """
    addr = parse(text)
    peer = None if addr is None else peer_of(addr)
    if addr is None or peer is None:
        raise UserError(
            f"not a bootstrap address: {text!r} (expected such as /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW...)"
        )
    return peer, without_peer(addr)


def listen_address(text: str) -> Multiaddr:
    """A user's listen address.

    Raises:
        UserError: it is not /ip4 or /ip6 with /tcp.
    """
    addr = parse(text)
    if addr is None or ip_of(addr) is None:
        raise UserError(f"not a listen address: {text!r} (expected such as /ip4/0.0.0.0/tcp/4001)")
    return addr


def expand(listening: Sequence[Multiaddr], interfaces: Sequence[Multiaddr] | None = None) -> list[Multiaddr]:
    """What to announce when listening on ``listening``: unspecified ones become the interfaces' own, loopback last."""
    out: dict[str, Multiaddr] = {}
    for addr in listening:
        ip = ip_of(addr)
        port = int(addr.value_for_protocol("tcp") or 0)
        if ip is None or not ip.is_unspecified:
            out[str(addr)] = addr
            continue
        for own in get_available_interfaces(port) if interfaces is None else interfaces:
            own_ip = ip_of(own)
            if own_ip is None or own_ip.version != ip.version or own_ip.is_link_local or own_ip.is_unspecified:
                continue
            text = f"/ip{ip.version}/{own_ip}/tcp/{port}"
            out[text] = Multiaddr(text)
    return sorted(out.values(), key=_is_loopback)


def _is_loopback(addr: Multiaddr) -> bool:
    ip = ip_of(addr)
    return ip is not None and ip.is_loopback
