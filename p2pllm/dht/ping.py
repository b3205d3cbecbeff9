"""A round trip to a server: what it takes to ask for its announcement on an open stream.

Invariants: bounded in time whatever the server does; measures the way and the server's loop, no device and no disk.
"""

from __future__ import annotations

import trio

from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Network, Stream
from p2pllm.types import ModelId, PeerId
from p2pllm.wire import INFO
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Info, InfoRequest


async def ping(network: Network, peer: PeerId, model: ModelId, timeout_s: float) -> float | None:
    """Seconds of one question and its answer, without what it takes to connect; None when there is no answer."""
    with trio.move_on_after(timeout_s):
        try:
            stream = await network.open_stream(peer, INFO, timeout_s=timeout_s)
        except PeerLost:
            return None
        try:
            await _ask(stream, model, 1)  # the first one pays for opening
            begun = trio.current_time()
            await _ask(stream, model, 2)
            return trio.current_time() - begun
        except (PeerLost, RemoteProtocolError):
            return None
        finally:
            stream.abort()
    return None


async def _ask(stream: Stream, model: ModelId, nonce: int) -> None:
    reader = MessageReader()
    await stream.send_all(encode_message(InfoRequest(nonce, model)))
    while True:
        data = await stream.receive_some()
        if not data:
            raise PeerLost("the stream ended before the answer")
        if any(isinstance(message, Info) and message.nonce == nonce for message, _ in reader.feed(data)):
            return
