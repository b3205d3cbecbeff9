"""p2pllm.net.identity: a key of one's own, kept, private, used once at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2pllm.dht.keys import signature_holds
from p2pllm.errors import StorageError, UserError
from p2pllm.net import Identity, load_or_create


def test_it_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "identity.key"
    with load_or_create(path) as first:
        peer = first.peer_id
        assert peer.startswith("12D3KooW")
        assert signature_holds(peer, b"data", first.sign(b"data"))
    assert path.stat().st_mode & 0o777 == 0o600
    with load_or_create(path) as again:
        assert again.peer_id == peer
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_two_users_of_one_identity_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    with load_or_create(path):
        with pytest.raises(UserError, match=r"in use by another process.*--identity") as caught:
            load_or_create(path)
        assert "\n" not in str(caught.value)
        code = f"from p2pllm.net import load_or_create\nload_or_create({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert "in use by another process" in other.stderr
    load_or_create(path).close()


def test_it_is_made_private_again(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    load_or_create(path).close()
    path.chmod(0o644)
    load_or_create(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_encoding_is_the_one_of_the_specification(tmp_path: Path) -> None:
    """68 bytes that go-libp2p writes; the 36 of py-libp2p are read too."""
    path = tmp_path / "identity.key"
    with load_or_create(path, lambda size: bytes(range(size))) as made:
        data = path.read_bytes()
        assert data[:4] == bytes.fromhex("08011240")
        assert data[4:36] == bytes(range(32))
        assert len(data) == 68
        peer = made.peer_id
    path.write_bytes(bytes.fromhex("08011220") + bytes(range(32)))
    with load_or_create(path) as short:
        assert short.peer_id == peer


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(68), bytes.fromhex("08011240") + bytes(64), b"-----BEGIN KEY-----"]
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(data)
    with pytest.raises(UserError, match="not an Ed25519 identity file"):
        load_or_create(path)
    assert path.read_bytes() == data


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open the identity file"):
        load_or_create(tmp_path / "file" / "identity.key")


def test_ephemeral_identities_differ_and_closing_twice_is_fine() -> None:
    one, other = Identity.ephemeral(), Identity.ephemeral()
    assert one.peer_id != other.peer_id
    one.close()
    one.close()
    assert Identity.ephemeral(lambda size: bytes(size - 1) + b"\1").peer_id != one.peer_id
