"""How the rows of a generation go on: each by a token of its own, or as the beams of a search.

Invariants: no I/O; ``turn`` runs inside a compute pass. A row of the session and a row of the result are the same thing
for sampled rows; with beams, each prompt has ``num_beams`` rows of the session, the first of which feeds the prompt.
The text of a row is given out in whole characters and never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from p2pllm.client.beams import BeamSearch
from p2pllm.client.options import Piece
from p2pllm.client.sampling import SamplingOptions, choose, penalize
from p2pllm.model.text import TextStream


@dataclass(eq=False, slots=True)
class Row:
    """One prompt on its way."""

    index: int
    prompt: tuple[int, ...]
    text: TextStream | None
    chance: torch.Generator | None
    new_ids: list[int] = field(default_factory=list)
    finished: str = ""

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.new_ids]

    def take(self, tokens: Sequence[int], eos_ids: Sequence[int], max_new_tokens: int) -> Piece:
        """Append tokens, of which only the last may end the row; says whether it does."""
        self.new_ids.extend(tokens)
        piece = "".join(map(self.text.push, tokens)) if self.text is not None else ""
        if tokens[-1] in eos_ids:
            self.finished = "eos"
        elif self.text is not None and self.text.stopped:
            self.finished = "stop"
        elif len(self.new_ids) >= max_new_tokens:
            self.finished = "length"
        if self.finished and self.text is not None:
            piece += self.text.finish()
        return Piece(piece, tuple(tokens), self.index, self.finished)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a step's logits lead to.

    Attributes:
        pieces: what is new for the consumer.
        counts: per row of the session, 1 when it goes on; all 0 when the generation is over.
        ids: the tokens to feed, of the rows that go on.
        sources: per row of the session, which row it continues; empty: its own.
    """

    pieces: list[Piece]
    counts: tuple[int, ...]
    ids: list[int]
    sources: tuple[int, ...] = ()


class Choice(Protocol):
    """A way to choose tokens.

    Attributes:
        feeds: per row of the session, the prompt that it begins with; empty: it sits the prefill out.
    """

    feeds: tuple[tuple[int, ...], ...]

    def turn(self, logits: torch.Tensor) -> Turn:
        """From the logits [n, vocab] of the rows that the last turn named (at first: that had prompts) to the next."""
        ...


class Sampled:
    """Every row by a token of its own: the likeliest, or one that is drawn."""

    def __init__(
        self, rows: Sequence[Row], options: SamplingOptions, eos_ids: Sequence[int], max_new_tokens: int
    ) -> None:
        self.feeds = tuple(row.prompt for row in rows)
        self._rows = rows
        self._options = options
        self._eos_ids = eos_ids
        self._max_new_tokens = max_new_tokens

    def turn(self, logits: torch.Tensor) -> Turn:
        """See ``Choice``."""
        penalized = self._options.repetition_penalty != 1.0
        pieces = []
        for row, scores in zip([row for row in self._rows if not row.finished], logits, strict=True):
            token = choose(scores, row.ids if penalized else (), self._options, row.chance)
            pieces.append(row.take((token,), self._eos_ids, self._max_new_tokens))
        counts = tuple(int(not row.finished) for row in self._rows)
        return Turn(pieces, counts, [row.new_ids[-1] for row in self._rows if not row.finished])


class Beams:
    """``num_beams`` rows of the session per prompt; a row's text is known, and given out, at the end of its search."""

    def __init__(
        self,
        rows: Sequence[Row],
        num_beams: int,
        length_penalty: float,
        repetition_penalty: float,
        eos_ids: Sequence[int],
        max_new_tokens: int,
    ) -> None:
        self.feeds = tuple(prompt for row in rows for prompt in (row.prompt, *((),) * (num_beams - 1)))
        self._rows = rows
        self._num_beams = num_beams
        self._repetition_penalty = repetition_penalty
        self._eos_ids = eos_ids
        self._max_new_tokens = max_new_tokens
        self._searches = [BeamSearch(num_beams, length_penalty, eos_ids, max_new_tokens) for _ in rows]

    def turn(self, logits: torch.Tensor) -> Turn:
        """See ``Choice``."""
        pieces: list[Piece] = []
        ids: list[int] = []
        sources = list(range(len(self.feeds)))
        counts = [0] * len(sources)
        parts = logits.log_softmax(-1).split_with_sizes(
            [0 if search.over else len(search.beams) for search in self._searches]
        )
        for row, search, log_probs in zip(self._rows, self._searches, parts, strict=True):
            if search.over:
                continue
            moves = search.advance(self._penalized(row, search, log_probs))
            if moves is None:
                pieces.append(row.take(search.best.ids, self._eos_ids, self._max_new_tokens))
                continue
            first = row.index * self._num_beams
            mine = slice(first, first + self._num_beams)
            sources[mine] = [first + parent for parent in moves.parents]
            counts[mine] = [1] * self._num_beams
            ids += moves.tokens
        return Turn(pieces, tuple(counts), ids, tuple(sources))

    def _penalized(self, row: Row, search: BeamSearch, log_probs: torch.Tensor) -> torch.Tensor:
        if self._repetition_penalty == 1.0:
            return log_probs
        pasts = [[*row.prompt, *beam] for beam in search.beams]
        pairs = zip(log_probs, pasts, strict=True)
        return torch.stack([penalize(scores, past, self._repetition_penalty) for scores, past in pairs])
