"""What sessions, chains and generations of one client share, and how a failure of a hop is told.

Invariants: a hop's failure leaves here as ``HopLost``, which names the server and its blocks; the peer's record of
failures is written in the same place, so no failure is forgotten and none is counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import trio

from p2pllm.client.link import Links
from p2pllm.client.peers import Peers
from p2pllm.client.planner import ModelView, Planner
from p2pllm.client.route import Hop, name_blocks
from p2pllm.config import Config
from p2pllm.errors import (
    ClientFault,
    Overloaded,
    P2PLLMError,
    PeerLost,
    RemoteFault,
    RemoteProtocolError,
    ServerFault,
    SessionGone,
    SwarmError,
    UserError,
)
from p2pllm.model.config import ModelConfig
from p2pllm.model.ends import Ends
from p2pllm.ports import Ports
from p2pllm.types import Cost, ModelId, PeerId, Span, WorkKind
from p2pllm.wire.tensor import CODECS

log = logging.getLogger(__name__)

T = TypeVar("T")

HOP_ERRORS = (PeerLost, RemoteProtocolError, RemoteFault)
"""What a server can do to us; anything else is a bug or the user's mistake, and passes through."""

GONE_RETRY_S = 1.0
"""A server that no longer has a session or span is not to blame, but its record needs a moment to catch up."""


class HopLost(SwarmError):
    """One server of a chain failed; says which, what it served and how."""

    def __init__(self, hop: Hop, cause: P2PLLMError) -> None:
        super().__init__(f"server {hop.peer_id} ({name_blocks(tuple(hop.span))}) {_how(cause)}: {cause}")
        self.hop = hop
        self.cause = cause


def _how(cause: P2PLLMError) -> str:
    match cause:
        case PeerLost():
            return "was lost"
        case RemoteProtocolError():
            return "broke the protocol"
        case Overloaded():
            return "is full"
        case SessionGone():
            return "does not have the session any more"
        case ClientFault():
            return "refused the request"
        case ServerFault():
            return "failed"
        case _:
            return "could not be used"


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one client.

    Attributes:
        shape: the model's sizes; ``ends`` are its embedding and head.
        dtype: in which the client holds hidden states.
    """

    ports: Ports
    config: Config
    model: ModelId
    shape: ModelConfig
    ends: Ends
    dtype: torch.dtype
    view: ModelView
    planner: Planner
    peers: Peers
    links: Links

    @property
    def whole(self) -> Span:
        """All blocks of the model."""
        return Span(0, self.shape.num_blocks)

    async def compute(self, work: Callable[[], T], tokens: int) -> T:
        """Run a pass of the client's own ends over ``tokens`` tokens."""
        result, _ = await self.ports.compute.run(work, Cost(WorkKind.CLIENT, tokens=tokens))
        return result

    def reached(self, peer: PeerId) -> None:
        """A server took our request: its record deserves to be kept."""
        self.view.mark_reached(peer)

    def lost(self, hop: Hop, cause: P2PLLMError) -> HopLost:
        """Write a hop's failure down; returns the error that tells of it."""
        now = trio.current_time()
        if isinstance(cause, Overloaded):
            self.peers.busy(hop.peer_id, cause.retry_after_s, now)
        elif isinstance(cause, SessionGone):
            self.peers.busy(hop.peer_id, GONE_RETRY_S, now)
        else:
            self.peers.failed(hop.peer_id, now)
        error = HopLost(hop, cause)
        log.warning("%s", error)
        return error

    def codec(self, activations: str | None) -> str:
        """The codec that a call asked for, or the configured one.

        Raises:
            UserError: there is no such codec.
        """
        chosen = activations or self.config.client.activations
        if chosen not in CODECS:
            raise UserError(f"activations {chosen!r} do not exist; choose one of {', '.join(CODECS)}")
        return chosen
