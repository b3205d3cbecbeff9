"""What went wrong, as the peer is told: typed by whose fault it is."""

from __future__ import annotations

from p2pllm.config import WireLimits
from p2pllm.errors import ClientFault, Overloaded, P2PLLMError, RemoteProtocolError, SessionGone
from p2pllm.types import SessionId
from p2pllm.wire.messages import NO_SESSION, Fault, FaultKind

_REASON_CHARS = WireLimits().reason_chars_max


def kind_of(error: P2PLLMError) -> FaultKind:
    """Whose fault ``error`` is, seen from the peer that is told of it."""
    match error:
        case ClientFault() | RemoteProtocolError():
            return FaultKind.CLIENT
        case Overloaded():
            return FaultKind.BUSY
        case SessionGone():
            return FaultKind.GONE
        case _:
            return FaultKind.INTERNAL


def retry_after(error: P2PLLMError) -> float:
    """Seconds to leave us alone; 0 where nothing is said."""
    return error.retry_after_s if isinstance(error, Overloaded) else 0.0


def reason_of(error: P2PLLMError) -> str:
    """The error's text, short enough for the wire."""
    return str(error)[:_REASON_CHARS]


def fault_of(error: P2PLLMError, session: SessionId = NO_SESSION, epoch: int = 0, step: int = -1) -> Fault:
    """``error`` as a message."""
    return Fault(kind_of(error), reason_of(error), session, epoch, step, retry_after(error))
