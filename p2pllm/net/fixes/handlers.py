"""Trap: an exception in any stream handler, or odd bytes in a protocol negotiation, ends the whole libp2p host.

libp2p runs handlers in the host's own nursery. Here every incoming stream, of every protocol, is negotiated with limits
and run so that it can only ever lose itself.
"""

from __future__ import annotations

import logging
from typing import cast

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import StreamHandlerFn, TProtocol

from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.net import negotiate
from p2pllm.net.yamux import YamuxStream

logger = logging.getLogger(__name__)


def install(host: IHost, timeout_s: float) -> None:
    """From now on, handlers registered with ``host`` cannot end it."""
    handlers = cast("dict[str, StreamHandlerFn]", host.get_mux().handlers)

    async def on_stream(net_stream: INetStream) -> None:
        stream = cast("YamuxStream", net_stream.muxed_stream)  # type: ignore[attr-defined]
        try:
            with trio.fail_after(timeout_s):
                protocol = await negotiate.answer(stream, handlers)
            net_stream.set_protocol(TProtocol(protocol))
            await handlers[protocol](net_stream)
        except (PeerLost, RemoteProtocolError, trio.TooSlowError) as exc:
            logger.debug("a stream of %s ended: %s", stream.peer, exc)
            stream.abort()
        except BaseExceptionGroup as group:
            stream.abort()
            ours, failed = group.split((trio.Cancelled, KeyboardInterrupt, SystemExit))
            if failed is not None:
                logger.error("a handler of %s failed", net_stream.get_protocol(), exc_info=failed)
            if ours is not None:
                raise ours from None
        except Exception:  # the one place where anything may come: it must not end the node
            logger.exception("a handler of %s failed", net_stream.get_protocol())
            stream.abort()

    host.get_network().set_stream_handler(on_stream)
