"""multistream-select on a stream: which protocol it speaks. One round trip to open, bounded when asked.

Invariants: a message is at most 256 bytes, a peer has a few tries; whatever it sends is an answer or
``RemoteProtocolError``. The opener sends the header and its one proposal together, which the specification allows and
every responder understands; py-libp2p's own client waits for the header first, a round trip more.
"""

from __future__ import annotations

from collections.abc import Container

from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Stream

MULTISTREAM = "/multistream/1.0.0"
NOT_SPOKEN = "na"
MESSAGE_BYTES_MAX = 256
TRIES_MAX = 16


def encode(*lines: str) -> bytes:
    """Length-prefixed lines."""
    out = b""
    for line in lines:
        data = line.encode() + b"\n"
        out += len(data).to_bytes(1, "big") if len(data) < 128 else bytes((len(data) & 127 | 128, len(data) >> 7))
        out += data
    return out


async def propose(stream: Stream, protocol: str) -> None:
    """Open ``protocol`` on a new stream.

    Raises:
        PeerLost: the peer does not speak it, or is gone.
        RemoteProtocolError: the peer does not speak multistream.
    """
    await stream.send_all(encode(MULTISTREAM, protocol))
    if await _read(stream) != MULTISTREAM:
        raise RemoteProtocolError("the peer does not speak multistream 1.0.0")
    answer = await _read(stream)
    if answer == NOT_SPOKEN:
        raise PeerLost(f"{stream.peer} does not speak {protocol}")
    if answer != protocol:
        raise RemoteProtocolError(f"asked for {protocol}, the peer agreed to something else")


async def answer(stream: Stream, spoken: Container[str]) -> str:
    """Agree on one of ``spoken`` with the peer that opened the stream.

    Raises:
        PeerLost: the peer went away.
        RemoteProtocolError: it does not speak multistream, or wants nothing that we have.
    """
    await stream.send_all(encode(MULTISTREAM))
    if await _read(stream) != MULTISTREAM:
        raise RemoteProtocolError("the peer does not speak multistream 1.0.0")
    for _ in range(TRIES_MAX):
        wanted = await _read(stream)
        if wanted in spoken:
            await stream.send_all(encode(wanted))
            return wanted
        await stream.send_all(encode(NOT_SPOKEN))
    raise RemoteProtocolError("the peer wants no protocol that is spoken here")


async def _read(stream: Stream) -> str:
    size = (await _exactly(stream, 1))[0]
    if size & 128:
        size = size & 127 | (await _exactly(stream, 1))[0] << 7
    if not 1 <= size <= MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(f"a multistream message of {size} bytes")
    data = await _exactly(stream, size)
    try:
        line = data.decode()
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError("a multistream message that is not text") from exc
    if not line.endswith("\n"):
        raise RemoteProtocolError("a multistream message without its end")
    return line[:-1]


async def _exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise PeerLost("the peer closed the stream before a protocol was agreed")
        data += more
    return data
