"""What this server offers, and whether a request is for it: by whose fault it is refused otherwise.

Invariants: pure. A request for something that this server does not have *now* is GONE (the asker's picture of us is
old: look again, ban nobody); one that no server could grant is CLIENT; one that is too much now is BUSY.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.errors import ClientFault, RemoteFault, SessionGone
from p2pllm.types import ModelId, Numerics, Span
from p2pllm.wire.messages import Backward, Forward, Open


@dataclass(frozen=True, slots=True)
class Offer:
    """One model's span, as this server computes it.

    Attributes:
        hidden: width of the hidden states.
        max_positions: the model's context limit in tokens.
        forward_tokens_max: tokens of one forward's longest sequence: it is seen whole in one pass.
    """

    model: ModelId
    span: Span
    hidden: int
    max_positions: int
    numerics: Numerics
    forward_tokens_max: int

    def refuse(self, asked: Open | Forward | Backward) -> RemoteFault | None:
        """Why ``asked`` is not for us; None: it is."""
        if asked.model != self.model:
            return SessionGone("this server serves another model")
        if not self.span.covers(asked.span):
            return SessionGone(f"this server holds blocks {self.span}, not {asked.span}")
        if asked.adapter:
            return ClientFault(f"no adapter {asked.adapter!r} here")
        if isinstance(asked, Open):
            return self._refuse_open(asked)
        return self._refuse_forward(asked)

    def _refuse_open(self, asked: Open) -> RemoteFault | None:
        if asked.numerics and asked.numerics != self.numerics.tag():
            return SessionGone(f"this server computes in class {self.numerics.tag()}, not {asked.numerics}")
        if asked.max_length > self.max_positions:
            return ClientFault(
                f"max_length {asked.max_length}: the model's context ends at {self.max_positions} tokens"
            )
        return None

    def _refuse_forward(self, asked: Forward | Backward) -> RemoteFault | None:
        if asked.tensor.shape[1] != self.hidden:
            return ClientFault(f"hidden states of width {asked.tensor.shape[1]}; the model's are {self.hidden}")
        longest = max(asked.counts)
        if longest > self.max_positions:
            return ClientFault(f"a sequence of {longest} tokens; the model's context ends at {self.max_positions}")
        if longest > self.forward_tokens_max:
            return ClientFault(f"a sequence of {longest} tokens; a forward here takes {self.forward_tokens_max}")
        return None


def inner_points(points: tuple[int, ...], span: Span) -> tuple[int, ...]:
    """The codec points that this server has to apply itself: those strictly inside the span."""
    return tuple(point for point in points if span.start < point < span.end)
