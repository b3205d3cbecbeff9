"""What a generation was asked for, and what came of it.

Invariants: plain values; whatever the user got wrong is a UserError that names the option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from p2pllm.client.route import Hop
from p2pllm.client.sampling import SamplingOptions
from p2pllm.client.session import Session
from p2pllm.errors import UserError

NEW_TOKENS = 128
"""How many tokens are generated when nobody says; fewer where the context ends before."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The keyword arguments of ``generate`` and ``stream``.

    Attributes:
        max_new_tokens: at most so many; None: 128, or what the context has room for.
        temperature, top_k, top_p, min_p, repetition_penalty: see ``SamplingOptions``; the defaults are greedy.
        num_beams: above 1, a beam search with so many beams; each text is given out at its end. It draws nothing and
            knows no stop texts.
        length_penalty: of beams: complete texts compete by log probability / tokens ** length_penalty.
        seed: of the draws; equal seeds give equal texts. None: another one each time, told in the result.
        stop: end a row before the first of these texts.
        ignore_eos: go on after an end-of-text token.
        activations: codec of hidden states on the wire; None: the configured one.
        session: go on in this session, which stays open: of a prompt that continues what its rows hold, only what is
            new is fed, else they are rolled back to where the prompt differs. None: a session for this call alone.

    Raises:
        UserError: a value is out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    activations: str | None = None
    session: Session | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if any(not isinstance(text, str) or not text for text in self.stops):
            raise UserError("stop takes texts, none of them empty")
        self.sampling()
        if self.session is not None and not isinstance(self.session, Session):
            raise UserError("session takes a session of this model")
        self._check_beams()

    def _check_beams(self) -> None:
        if self.num_beams < 1:
            raise UserError(f"num_beams is {self.num_beams}; it must be at least 1")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty is {self.length_penalty}; it must be a number")
        if self.num_beams == 1:
            return
        if self.temperature > 0:
            raise UserError("num_beams above 1 looks for the likeliest texts: it goes with temperature 0 only")
        if self.stops:
            raise UserError("num_beams above 1 knows no stop texts; leave stop out")
        if self.session is not None:
            raise UserError("num_beams above 1 needs the rows of a session of its own; leave session out")

    @classmethod
    def of(cls, options: dict[str, Any]) -> GenerateOptions:
        """From keyword arguments; an unknown one is named together with those that exist."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UserError(f"no option {unknown[0]!r}; there are {', '.join(known)}")
        try:
            return cls(**options)
        except TypeError as exc:
            raise UserError(f"an option has a value of the wrong type: {exc}") from exc

    @property
    def stops(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self) -> SamplingOptions:
        """The part that chooses tokens."""
        return SamplingOptions(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to one row.

    Attributes:
        text: whole characters only, often one token's, sometimes none; the pieces of a row make up its text.
        ids: the new token ids.
        row: which prompt it belongs to.
        finished: why the row ends with this piece: ``eos``, ``stop`` or ``length``; empty while it goes on.
    """

    text: str
    ids: tuple[int, ...]
    row: int = 0
    finished: str = ""


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What ``generate`` returns.

    Attributes:
        ids: prompt and new tokens. A tensor [B, S+N] for a tensor [B, S] (rows that ended early are filled up with
            their end-of-text id); a list per prompt for a list of prompts; a plain list for one prompt.
        text: the generated text; a list of them unless there was one prompt. Empty without a tokenizer.
        new_ids: per row, the generated tokens alone.
        finished: per row, why it ended: ``eos``, ``stop`` or ``length``.
        steps_per_s: steps after the first token, by the time that they took; 0 when there were none.
        recoveries: failures of servers that the generation survived.
        route: who served which blocks.
        exact: all servers were of one exact numerics class, so another run gives the same tokens bit for bit.
        seed: of the draws; None when the choice was greedy.
    """

    ids: torch.Tensor | list[int] | list[list[int]]
    text: str | list[str]
    new_ids: tuple[tuple[int, ...], ...]
    finished: tuple[str, ...]
    steps_per_s: float
    recoveries: int
    route: tuple[Hop, ...]
    exact: bool
    seed: int | None
