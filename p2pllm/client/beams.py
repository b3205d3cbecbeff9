"""Beam search over one prompt: which continuations are followed, which texts are complete, when to stop.

At every step the likeliest continuations of all beams compete. Those that end with an end-of-text token are complete,
and are ranked by their score, the sum of their tokens' log probabilities divided by (number of tokens) **
``length_penalty``. The search is over when ``beams`` texts are complete and no beam, at its present length, scores
above the worst of them, or when the beams are as long as they may be. These are the rules of Hugging Face's
``generate`` with its default ``early_stopping=False``, so the same sequences come out.

Invariants: pure; no chance. Scores are accumulated in fp32. Beams are ordered, likeliest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A complete text: its new tokens, and its score with the length penalty applied."""

    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Moves:
    """How the beams go on: beam i continues what beam ``parents[i]`` was, with ``tokens[i]``."""

    parents: tuple[int, ...]
    tokens: tuple[int, ...]


def candidates_of(beams: int, eos_ids: Sequence[int]) -> int:
    """How many continuations are looked at: so many that ``beams`` go on even if all end-of-text tokens lead."""
    return beams * max(2, 1 + len(eos_ids))


class BeamSearch:
    """The search over one prompt; feed it log probabilities until it is ``over``.

    Attributes:
        beams: the new tokens of every beam; a single, empty one before the first step.
        over: nothing that could still be found would be better, or is allowed.
    """

    def __init__(self, beams: int, length_penalty: float, eos_ids: Sequence[int], max_new_tokens: int) -> None:
        self.beams: list[tuple[int, ...]] = [()]
        self.over = False
        self._wanted = beams
        self._penalty = length_penalty
        self._eos_ids = frozenset(eos_ids)
        self._candidates = candidates_of(beams, tuple(self._eos_ids))
        self._max_new_tokens = max_new_tokens
        self._scores = torch.zeros(1)
        self._complete: list[Hypothesis] = []

    @property
    def best(self) -> Hypothesis:
        """The best complete text, once the search is over."""
        return self._complete[0]

    def advance(self, log_probs: torch.Tensor) -> Moves | None:
        """One step: ``log_probs`` [beams, vocab] of what follows each beam; None when the search is over by it."""
        vocab = log_probs.shape[1]
        found = (log_probs + self._scores[:, None]).reshape(-1).topk(self._candidates)
        length = len(self.beams[0]) + 1
        last = length >= self._max_new_tokens
        ranked = found.values / length**self._penalty
        going: list[tuple[int, int, int]] = []  # rank, parent, token
        for rank, (at, score) in enumerate(zip(found.indices.tolist(), ranked.tolist(), strict=True)):
            parent, token = divmod(at, vocab)
            if not last and token not in self._eos_ids:
                going.append((rank, parent, token))
            elif rank < self._wanted:  # the others are only there to keep the beams full
                self._complete.append(Hypothesis((*self.beams[parent], token), score))
        self._complete = sorted(self._complete, key=lambda text: -text.score)[: self._wanted]
        going = going[: self._wanted]
        if last or not self._improvable(ranked[going[0][0]].item()):
            self.over = True
            return None
        self.beams = [(*self.beams[parent], token) for _, parent, token in going]
        self._scores = found.values[[rank for rank, _, _ in going]]
        return Moves(tuple(parent for _, parent, _ in going), tuple(token for _, _, token in going))

    def _improvable(self, best_running: float) -> bool:
        return len(self._complete) < self._wanted or best_running > self._complete[-1].score
