"""Who this node is: an Ed25519 key, its libp2p peer id, and the file that keeps both.

Invariants: a key file is created atomically with mode 0600 and locked while a process uses it: two processes with one
identity would take each other's connections. The file holds the private-key encoding of the libp2p specification
(68 bytes of protobuf), so other libp2p programs read it, and the shorter one of py-libp2p is understood.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import generate_peer_id_from
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair

from p2pllm.errors import StorageError, UserError
from p2pllm.types import PeerId

if sys.platform != "win32":
    import fcntl

SEED_BYTES = 32
_SPECIFIED = b"\x08\x01\x12\x40"
_PY_LIBP2P = b"\x08\x01\x12\x20"
"""Protobuf {type: Ed25519, data: seed + public key} and {type: Ed25519, data: seed}."""


class Identity:
    """A key pair with its peer id. Close it to give the key file back."""

    def __init__(self, keys: KeyPair, lock: int | None = None) -> None:
        self.keys = keys
        self.peer_id = PeerId(str(generate_peer_id_from(keys)))
        self._signer = Ed25519PrivateKey.from_private_bytes(keys.private_key.to_bytes()[:SEED_BYTES])
        self._lock = lock

    @classmethod
    def ephemeral(cls, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Self:
        """A new identity that lives as long as the process."""
        return cls(create_new_key_pair(token_bytes(SEED_BYTES)))

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._signer.sign(data)

    def close(self) -> None:
        """Unlock the key file. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_or_create(path: str | Path, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Identity:
    """The identity kept in ``path``, made on first use; locked until it is closed.

    Raises:
        UserError: another process uses it, or the file is not a private key of this kind.
        StorageError: the file cannot be read or written.
    """
    path = Path(path)
    try:
        if not path.exists():
            _create(path, token_bytes)
        lock = os.open(path, os.O_RDWR)
    except OSError as exc:
        raise StorageError(f"cannot open the identity file {path}: {exc.strerror}") from exc
    try:
        if sys.platform != "win32":  # there the profile folder is private, and nothing locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(lock, 0o600)
        return Identity(_decode(path, os.read(lock, 4096)), lock)
    except BlockingIOError as exc:
        os.close(lock)
        raise UserError(
            f"the identity file {path} is in use by another process: stop that one, or give this one a file of its own"
            " (--identity FILE)"
        ) from exc
    except UserError:
        os.close(lock)
        raise


def _create(path: Path, token_bytes: Callable[[int], bytes]) -> None:
    """Write a new key beside ``path`` and link it there: whoever comes second finds the first one's key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    keys = create_new_key_pair(token_bytes(SEED_BYTES))
    data = _SPECIFIED + keys.private_key.to_bytes() + keys.public_key.to_bytes()
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _decode(path: Path, data: bytes) -> KeyPair:
    seed = data[4 : 4 + SEED_BYTES]
    for prefix, size in ((_SPECIFIED, 2 * SEED_BYTES), (_PY_LIBP2P, SEED_BYTES)):
        if data.startswith(prefix) and len(data) == len(prefix) + size:
            keys = create_new_key_pair(seed)
            if (seed + keys.public_key.to_bytes()).startswith(data[4:]):
                return keys
    raise UserError(f"{path} is not an Ed25519 identity file: move it away, and a new one will be made")
