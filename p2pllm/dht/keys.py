"""Peer ids and the Ed25519 keys inside them.

Invariants: pure. An Ed25519 peer id is not a hash but the key itself (libp2p's identity multihash), so that whoever
knows the id can check a signature without asking anybody.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pllm.types import PeerId

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGIT = {char: value for value, char in enumerate(_ALPHABET)}
# multihash "identity", 36 bytes | protobuf PublicKey { Type = Ed25519, Data = 32 bytes }
_PREFIX = bytes.fromhex("0024" + "08011220")
_KEY_BYTES = 32
_ID_CHARS = 52
"""38 bytes that begin with a zero byte and 0x24 are always 52 base58 characters, the first of them "1"."""

SIGNATURE_BYTES = 64


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key.

    Raises:
        ValueError: the key is not 32 bytes.
    """
    if len(public_key) != _KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {_KEY_BYTES} bytes, not {len(public_key)}")
    number = int.from_bytes(_PREFIX + public_key, "big")
    chars: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        chars.append(_ALPHABET[digit])
    return PeerId("1" + "".join(reversed(chars)))


def public_key_of(peer: str) -> bytes:
    """The raw Ed25519 public key inside a peer id.

    Raises:
        ValueError: not the base58 peer id of an Ed25519 key.
    """
    if len(peer) != _ID_CHARS or peer[0] != "1":
        raise ValueError("not the peer id of an Ed25519 key")
    number = 0
    for char in peer[1:]:
        digit = _DIGIT.get(char)
        if digit is None:
            raise ValueError("not base58")
        number = number * 58 + digit
    size = len(_PREFIX) + _KEY_BYTES
    if number >= 1 << (8 * size):
        raise ValueError("not the peer id of an Ed25519 key")
    raw = number.to_bytes(size, "big")
    if not raw.startswith(_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key")
    return raw[len(_PREFIX) :]


def signature_holds(peer: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made with the key inside ``peer``; False also for what is no peer id."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer)).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True
