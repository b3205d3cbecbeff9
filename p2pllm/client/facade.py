"""What the facades for plain code and asyncio have in common: everything that needs no waiting.

Invariants: no logic of its own; reads and small assignments go straight to the objects inside the loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pllm.client.portal import Portal

if TYPE_CHECKING:
    import torch

    from p2pllm.client.model import RemoteModel
    from p2pllm.client.route import Hop
    from p2pllm.client.session import Session


class SessionFacade:
    """A session seen from outside the loop."""

    def __init__(self, portal: Portal, session: Session) -> None:
        self._portal = portal
        self._session = session

    @property
    def position(self) -> int:
        """Tokens that every row has in the caches; set it lower to forget what came after."""
        return self._session.position

    @position.setter
    def position(self, value: int) -> None:
        self._session.position = value

    @property
    def route(self) -> tuple[Hop, ...]:
        """Who serves which blocks of this session."""
        return self._session.route

    @property
    def recoveries(self) -> int:
        """How many failures this session has survived."""
        return self._session.recoveries


class ModelFacade:
    """A model seen from outside the loop."""

    def __init__(self, portal: Portal, model: RemoteModel) -> None:
        self._portal = portal
        self._model = model
        self.tokenizer = model.tokenizer
        self.max_positions = model.max_positions

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, S] to hidden states [B, S, H]: the client's own end, plain torch."""
        return self._model.embed(input_ids)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, S, H] to logits [B, S, vocab]: the client's own end, plain torch."""
        return self._model.head(hidden)


def inner(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the session itself in place of its facade."""
    session = options.get("session")
    return options | {"session": session._session} if isinstance(session, SessionFacade) else options
