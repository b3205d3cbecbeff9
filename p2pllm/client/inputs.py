"""What users pass as prompts and ids, brought into one form, with one clear line for what cannot be used.

Invariants: pure; whatever is wrong is a UserError that says what is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from p2pllm.errors import UserError

Inputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor
"""One prompt or several: text, token ids, or an integer tensor [S] or [B, S]."""

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids per row.

    Attributes:
        rectangular: they came as a tensor, and results are one, too.
        single: there was one prompt, not a list of them.
    """

    rows: tuple[tuple[int, ...], ...]
    rectangular: bool = False
    single: bool = False


def check_ids(ids: torch.Tensor, vocab_size: int) -> None:
    """Whether ``ids`` is a [rows, tokens] tensor of token ids of the model.

    Raises:
        UserError: it is not.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool or ids.dim() != 2:
        raise UserError(f"token ids must be an integer tensor [rows, tokens], not {ids.dtype} {list(ids.shape)}")
    if ids.numel() == 0:
        raise UserError(f"no token ids: a tensor of shape {list(ids.shape)}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise UserError(f"token ids must lie in 0..{vocab_size - 1}; found {low}..{high}")


def prompts_of(inputs: Inputs, encode: Encode | None, vocab_size: int) -> Prompts:
    """Prompts in any accepted form as token ids.

    Raises:
        UserError: an empty prompt, ids outside the vocabulary, text for a model without tokenizer, or something else.
    """
    if isinstance(inputs, torch.Tensor):
        ids = inputs[None] if inputs.dim() == 1 else inputs
        check_ids(ids, vocab_size)
        return Prompts(tuple(map(tuple, ids.tolist())), rectangular=True, single=inputs.dim() == 1)
    if isinstance(inputs, str):
        return Prompts((_encoded(inputs, encode, vocab_size),), single=True)
    if not isinstance(inputs, Sequence) or isinstance(inputs, bytes | bytearray) or not inputs:
        raise UserError("a prompt is text, a list of texts, token ids, a list of lists of ids, or a tensor [B, S]")
    if all(_is_id(item) for item in inputs):
        return Prompts((_checked(inputs, vocab_size),), single=True)
    return Prompts(
        tuple(
            _encoded(item, encode, vocab_size) if isinstance(item, str) else _checked(item, vocab_size)
            for item in inputs
        )
    )


def _encoded(text: str, encode: Encode | None, vocab_size: int) -> tuple[int, ...]:
    if encode is None:
        raise UserError("this checkpoint has no tokenizer: pass token ids instead of text")
    return _checked(encode(text), vocab_size)


def _checked(ids: object, vocab_size: int) -> tuple[int, ...]:
    if isinstance(ids, torch.Tensor):
        ids = ids.tolist()
    if not isinstance(ids, Sequence) or not all(_is_id(item) for item in ids):
        raise UserError("token ids must be whole numbers")
    if not ids:
        raise UserError("a prompt is empty; it needs at least one token")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise UserError(f"token ids must lie in 0..{vocab_size - 1}; found {min(ids)}..{max(ids)}")
    return tuple(int(item) for item in ids)


def _is_id(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)
