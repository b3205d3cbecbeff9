"""The info protocol: a server's current announcement on request, which is also what pings measure.

Invariants: an answer takes no device and no disk; whoever asks for another model hears that we serve nothing of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from p2pllm.config import Config
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.ports import Stream
from p2pllm.server.channel import Channel
from p2pllm.types import ModelId
from p2pllm.wire.messages import Info, InfoRequest

log = logging.getLogger(__name__)


class Infos:
    """Serves the info protocol; ``record`` gives a model's signed announcement as last published, empty for none."""

    def __init__(self, record: Callable[[ModelId], bytes], config: Config) -> None:
        self._record = record
        self._config = config

    async def handle(self, stream: Stream) -> None:
        """Answer one stream's requests until it ends."""
        channel = Channel(stream, self._config.wire)
        try:
            while True:
                channel.expect_by(trio.current_time() + self._config.server.stream_idle_s)
                got = await channel.receive()
                if got is None:
                    break
                message, _ = got
                if not isinstance(message, InfoRequest):
                    raise RemoteProtocolError(f"{type(message).__name__} on an info stream")
                await channel.send(Info(message.nonce, self._record(message.model)))
            await channel.aclose()
        except (PeerLost, RemoteProtocolError) as exc:
            log.info("info stream of %s ended: %s", channel.peer, exc)
        finally:
            channel.abort()
