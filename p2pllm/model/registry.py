"""Which code builds the blocks of a family; imported when it is first asked for.

Invariants: every family that ``config`` accepts has an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_BLOCKS = {
    "llama": "p2pllm.model.llama:LlamaBlock",
    "mistral": "p2pllm.model.llama:LlamaBlock",
    "qwen2": "p2pllm.model.llama:LlamaBlock",
    "qwen3": "p2pllm.model.llama:LlamaBlock",
}


def block_class(family: str) -> Callable[..., Any]:
    """The class of a family's blocks.

    Raises:
        KeyError: nobody registered this family.
    """
    module, _, name = _BLOCKS[family].partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
