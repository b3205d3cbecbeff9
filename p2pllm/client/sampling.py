"""From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p, one draw.

Invariants: pure torch, chance only through the generator that is passed in. Every token costs exactly one uniform
number, drawn even where the choice is forced, so the state of a row's generator depends on nothing but its seed and
how many tokens were drawn. The order of the filters is the one of Hugging Face's ``generate``. At least one token
always survives. Ties of greedy decoding go to the lowest id.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from p2pllm.errors import UserError

SEED_BYTES = 8
TEMPERATURE_MIN = 1e-4
"""Below it fp32 logits would overflow, and the choice has long been the greedy one."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How a token is chosen; the defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token; else logits are divided by it (at least 0.0001).
        top_k: only the k likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together reach this probability; 1: all.
        min_p: only tokens at least this fraction as likely as the likeliest; 0: all.
        repetition_penalty: above 1 makes tokens of the text so far less likely.

    Raises:
        UserError: a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        warm = TEMPERATURE_MIN <= self.temperature < math.inf
        _check(warm or self.temperature == 0.0, "temperature", self.temperature, f"0 or at least {TEMPERATURE_MIN}")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or a number of tokens")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        _check(0.0 < self.repetition_penalty < math.inf, "repetition_penalty", self.repetition_penalty, "above 0")


def generator(seed: int, row: int = 0) -> torch.Generator:
    """A row's own source of chance: row 0 is the seed itself, so a prompt samples the same alone and in a batch."""
    if row:
        digest = hashlib.sha256(f"{seed}/{row}".encode()).digest()
        seed = int.from_bytes(digest[:SEED_BYTES], "big")
    made = torch.Generator(device="cpu")
    made.manual_seed(seed % (1 << 63))
    return made


def penalize(logits: torch.Tensor, seen: Sequence[int] | torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits [vocab] with every token of ``seen`` made less likely (penalty > 1) or more likely (< 1)."""
    if penalty == 1.0 or len(seen) == 0:
        return logits
    ids = torch.as_tensor(seen, dtype=torch.long)  # repeats are harmless: they write the same value
    values = logits[ids]
    changed = logits.clone()
    changed[ids] = torch.where(values < 0, values * penalty, values / penalty)
    return changed


def probabilities(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """The distribution [vocab] that a token is drawn from, for temperature > 0; filtered tokens have 0."""
    logits = logits.float() / options.temperature
    if 0 < options.top_k < logits.numel():
        weakest = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < weakest, -math.inf)
    if options.top_p < 1.0:
        ordered, order = logits.sort(descending=True, stable=True)
        probs = ordered.softmax(-1)
        likelier = probs.cumsum(-1) - probs  # the mass of all tokens before this one
        logits[order[likelier >= options.top_p]] = -math.inf
    probs = logits.softmax(-1)
    if options.min_p > 0.0:
        probs = probs.masked_fill(probs < options.min_p * probs.max(), 0.0)
        probs = probs / probs.sum()
    return probs


def draw(probs: torch.Tensor, chance: torch.Generator) -> int:
    """One token by inversion: the first whose cumulative probability exceeds a uniform number."""
    uniform = torch.rand((), generator=chance, dtype=torch.float64)
    cumulative = probs.double().cumsum(-1)
    index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    # Rounding may land on or past the end; the last token with any probability is the right one there.
    return min(index, int(probs.nonzero()[-1]))


def choose(
    logits: torch.Tensor, seen: Sequence[int] | torch.Tensor, options: SamplingOptions, chance: torch.Generator | None
) -> int:
    """The next token of one row: ``logits`` [vocab], ``seen`` its tokens so far; ``chance`` is needed above 0."""
    logits = penalize(logits, seen, options.repetition_penalty)
    if options.temperature == 0.0:
        return int(logits.argmax())
    if chance is None:
        raise UserError("sampling needs a generator; temperature 0 does not")
    return draw(probabilities(logits, options), chance)


def _check(holds: bool, name: str, value: float, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; it must be {wanted}")
