"""Noise as libp2p speaks it, with the record layer made synchronous: bytes in, plaintext out.

Invariants: the handshake is py-libp2p's own (its public transport class, extended); only what comes after is ours. One
record is at most 65,519 bytes of plaintext. A record that does not authenticate is ``RemoteProtocolError`` and the end
of the connection. Sealing order is wire order: whoever seals must send at once, and in that order.
"""

from __future__ import annotations

from typing import Any

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import DecryptionFailedException
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.noise.transport import Transport
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr
from noise.exceptions import NoiseInvalidMessage

from p2pllm.errors import RemoteProtocolError
from p2pllm.net.link import ForeignLink, Link

RECORD_BYTES_MAX = 65535 - 16
"""Plaintext of one record: the length field's maximum minus the authentication tag."""


class NoiseTransport(Transport):
    """py-libp2p's noise handshake, then our record layer."""

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        return NoiseSession(await super().secure_inbound(conn))

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        return NoiseSession(await super().secure_outbound(conn, peer_id))


class NoiseSession(BaseSession):
    """An authenticated connection: ``seal`` and ``open`` for the muxer, ``read`` and ``write`` for its negotiation."""

    def __init__(self, session: ISecureConn) -> None:
        if not isinstance(session, SecureSession):
            raise TypeError(f"py-libp2p's noise handshake gave a {type(session).__name__}")
        super().__init__(
            local_peer=session.local_peer,
            local_private_key=session.local_private_key,
            remote_peer=session.remote_peer,
            remote_permanent_pubkey=session.remote_permanent_pubkey,
            is_initiator=session.is_initiator,
        )
        records: Any = session.conn  # a NoiseTransportReadWriter, though declared as its base
        self._noise = records.noise_state
        self._raw: IRawConnection = records.read_writer.read_write_closer
        stream = getattr(self._raw, "stream", None)
        self.link: Link = stream if isinstance(stream, Link) else ForeignLink(self._raw)
        self._early = self.link.established()  # came with the handshake's last message
        self._sealed = bytearray()  # received, not yet a whole record
        self._plain = bytearray()  # opened, not yet read

    def seal(self, data: bytes) -> bytes:
        """One record, its length before it."""
        sealed: bytes = self._noise.encrypt(data)
        return len(sealed).to_bytes(2, "big") + sealed

    def open(self, data: bytes) -> list[bytes]:
        """The plaintext of every record that ``data`` completes.

        Raises:
            RemoteProtocolError: a record is not what the peer's key seals.
        """
        if self._sealed:
            self._sealed += data
            data = bytes(self._sealed)
            self._sealed.clear()
        out: list[bytes] = []
        at, end = 0, len(data)
        try:
            while end - at >= 2:
                size = (data[at] << 8) | data[at + 1]
                if end - at - 2 < size:
                    break
                out.append(self._noise.decrypt(data[at + 2 : at + 2 + size]))
                at += 2 + size
        except NoiseInvalidMessage as exc:
            raise RemoteProtocolError("a noise record does not authenticate") from exc
        if at < end:
            self._sealed += data[at:]
        return out

    def read_ahead(self) -> bytes:
        """Plaintext that came with the negotiation's last bytes; from now on the caller opens records itself."""
        ahead = bytes(self._plain) + b"".join(self.open(self._early))
        self._plain.clear()
        self._early = b""
        return ahead

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes (or what is there): the muxer's negotiation only."""
        while len(self._plain) < (1 if n is None else n):
            data, self._early = self._early, b""
            try:
                for plain in self.open(data or await self.link.read()):
                    self._plain += plain
            except RemoteProtocolError as exc:
                raise DecryptionFailedException(str(exc)) from exc
        size = len(self._plain) if n is None else n
        out = bytes(self._plain[:size])
        del self._plain[:size]
        return out

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), RECORD_BYTES_MAX):
            await self.link.write(self.seal(data[start : start + RECORD_BYTES_MAX]))

    async def close(self) -> None:
        await self.link.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.link.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self._raw.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self._raw.get_connection_type()
