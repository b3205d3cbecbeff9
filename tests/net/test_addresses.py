"""p2pllm.net.addresses: what is announced, what is dialled, what a user may type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pllm.errors import UserError
from p2pllm.net.addresses import ADDRESSES_PER_PEER_MAX, bootstrap_address, dialable, expand, listen_address
from p2pllm.types import PeerId

PEER = PeerId("12D3KooWGk9bNNNiuogQ4Xh6iXJXymgG9QdofAY555qLKwpdvuBM")
OTHER = "12D3KooWKPPaqTUw9d4W1L2VqViTtDBAWLRYF9w7rkzSWM4Sf6Ey"
INTERFACES = [Multiaddr(f"/ip4/{ip}/tcp/1") for ip in ("127.0.0.1", "192.168.1.7", "169.254.3.3")] + [
    Multiaddr(f"/ip6/{ip}/tcp/1") for ip in ("::1", "2001:db8::7", "fe80::1")
]


def texts(*addrs: str) -> list[str]:
    return [str(addr) for addr in expand([Multiaddr(addr) for addr in addrs], INTERFACES)]


def test_unspecified_addresses_become_the_interfaces_own_loopback_last() -> None:
    assert texts("/ip4/0.0.0.0/tcp/4001") == ["/ip4/192.168.1.7/tcp/4001", "/ip4/127.0.0.1/tcp/4001"]
    assert texts("/ip6/::/tcp/4001") == ["/ip6/2001:db8::7/tcp/4001", "/ip6/::1/tcp/4001"]


def test_chosen_addresses_stay() -> None:
    assert texts("/ip4/127.0.0.1/tcp/4001") == ["/ip4/127.0.0.1/tcp/4001"]
    assert texts("/ip4/10.1.2.3/tcp/5", "/ip4/0.0.0.0/tcp/5")[0] == "/ip4/10.1.2.3/tcp/5"


def test_the_machines_own_interfaces_are_read() -> None:
    own = expand([Multiaddr("/ip4/0.0.0.0/tcp/4001")])
    assert own
    assert not any("0.0.0.0" in str(addr) for addr in own)


def test_what_cannot_lead_to_the_peer_is_not_dialled() -> None:
    good = "/ip4/10.0.0.1/tcp/1"
    assert dialable(
        [
            f"{good}/p2p/{PEER}",
            good,
            f"/ip4/10.0.0.2/tcp/1/p2p/{OTHER}",
            "/ip4/0.0.0.0/tcp/1",
            "/ip6/::/tcp/1",
            "/ip4/224.0.0.1/tcp/1",
            "/ip4/10.0.0.3/udp/1/quic-v1",
            "/ip4/10.0.0.3/tcp/1/ws",
            "/dns4/example.org/tcp/1",
            "nonsense",
        ],
        PEER,
    ) == (good, "/dns4/example.org/tcp/1")
    assert len(dialable([f"/ip4/10.0.0.1/tcp/{port}" for port in range(1, 100)], PEER)) == ADDRESSES_PER_PEER_MAX


@given(st.lists(st.one_of(st.text(max_size=40), st.from_regex(r"(/(ip4|ip6|tcp|p2p|dns4)/[0-9a-z.:]{0,12}){0,4}"))))
def test_a_peers_word_about_addresses_is_never_an_error(words: list[str]) -> None:
    dialable(words, PEER)


def test_users_addresses() -> None:
    assert bootstrap_address(f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}") == (PEER, "/ip4/203.0.113.7/tcp/4001")
    assert bootstrap_address(f"/dns4/example.org/tcp/4001/p2p/{PEER}")[1] == "/dns4/example.org/tcp/4001"
    for wrong in ("", "example.org:4001", "/ip4/203.0.113.7/tcp/4001", f"/ip4/1.2.3.4/udp/1/p2p/{PEER}"):
        with pytest.raises(UserError, match="not a bootstrap address"):
            bootstrap_address(wrong)
    assert str(listen_address("/ip4/0.0.0.0/tcp/0")) == "/ip4/0.0.0.0/tcp/0"
    for wrong in ("", "0.0.0.0:4001", "/ip4/0.0.0.0/udp/4001", "/dns4/example.org/tcp/1"):
        with pytest.raises(UserError, match="not a listen address"):
            listen_address(wrong)
