"""The error tree: every class says whose fault it is, and when you do not get it.

Invariants: a peer's bytes can only ever raise ``RemoteProtocolError``; foreign exceptions (libp2p, OSError, torch) are
translated once, at the adapter that met them, with ``raise ... from exc``. Retry code names the classes it catches.
"""

from __future__ import annotations


class P2PLLMError(Exception):
    """Root of everything that p2pllm raises on purpose."""


class UserError(P2PLLMError):
    """The user's mistake: a wrong flag, path or argument. One line; the command exits with 2. Never a peer's doing."""


class CheckpointError(UserError):
    """A checkpoint cannot be used: missing, misshapen, truncated, unsupported. Names the file, tensor or field."""


class StorageError(P2PLLMError):
    """This machine's disk or a download failed: full, unreadable, interrupted. Says which file and what to do."""


class ProtocolError(P2PLLMError):
    """Somebody broke the wire protocol; raised only as one of the two below."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """Our side asked for something illegal: a bug of the caller. Never raised by a peer's bytes."""


class RemoteProtocolError(ProtocolError):
    """A peer sent what the protocol forbids: bad frame, checksum, field, shape, order. The peer is at fault."""


class PeerLost(P2PLLMError):
    """The world's fault: a peer cannot be reached, went away, or let a deadline pass. Another peer may serve."""


class RemoteFault(P2PLLMError):
    """A peer answered with a typed fault; raised as one of the four below. The reason is the peer's word, no more."""

    def __init__(self, reason: str) -> None:
        if type(self) is RemoteFault:
            raise TypeError("raise ClientFault, Overloaded, SessionGone or ServerFault")
        super().__init__(reason)


class ClientFault(RemoteFault):
    """The server says that the request is wrong. Believed when our own check or a second server agrees."""


class Overloaded(RemoteFault):
    """The server is full: try another, or the same after ``retry_after_s`` (already capped)."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class SessionGone(RemoteFault):
    """The server no longer has this session or span. No ban: refresh its record and re-route."""


class ServerFault(RemoteFault):
    """The server failed inside. It is banned for a while."""


class SwarmError(P2PLLMError):
    """The swarm or the network failed the user: says what and what to try. The command exits with 1."""


class CoverageError(SwarmError):
    """Nobody serves some blocks of the model; names them. Not raised while a known server could still be tried."""

    def __init__(self, message: str, missing: tuple[int, ...]) -> None:
        super().__init__(message)
        self.missing = missing
