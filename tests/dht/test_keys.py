"""Peer ids are keys: both ways, and nothing else passes."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.dht.keys import peer_id_of, public_key_of, signature_holds


@given(st.binary(min_size=32, max_size=32))
def test_key_and_id_are_the_same_thing(key):
    peer = peer_id_of(key)
    assert peer.startswith("12D3Koo")
    assert len(peer) == 52
    assert public_key_of(peer) == key


def test_ids_are_those_of_libp2p():
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    pair = create_new_key_pair(b"\x07" * 32)
    assert ID.from_pubkey(pair.public_key).to_base58() == peer_id_of(pair.public_key.to_bytes())


@given(st.text(max_size=60))
def test_other_text_is_no_peer_id(text):
    with pytest.raises(ValueError, match="not"):
        public_key_of(text)


@pytest.mark.parametrize(
    "peer", ["1" * 52, "1" + "z" * 51, "12D3KooW" + "0" * 44, "", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf"]
)
def test_near_misses(peer):
    with pytest.raises(ValueError, match="not"):
        public_key_of(peer)


def test_signatures():
    key = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    peer = peer_id_of(key.public_key().public_bytes_raw())
    assert signature_holds(peer, b"data", key.sign(b"data"))
    assert not signature_holds(peer, b"date", key.sign(b"data"))
    assert not signature_holds(peer_id_of(b"\x02" * 32), b"data", key.sign(b"data"))
    assert not signature_holds("nobody", b"data", key.sign(b"data"))
    assert not signature_holds(peer, b"data", b"short")
