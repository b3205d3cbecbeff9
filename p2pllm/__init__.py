"""p2pllm: run large language models over the Internet, on machines that nobody manages.

    async with p2pllm.connect("demo", bootstrap=[addr]) as model:           # generate: trio
        async for piece in model.stream("Once upon a time"):
            print(piece.text, end="")

    async with p2pllm.Node("demo", bootstrap=[addr], blocks=(0, 4)) as node:  # serve
        await trio.sleep_forever()

``p2pllm.aio`` has the same names for asyncio, ``p2pllm.sync`` for plain code, ``p2pllm.errors`` what can go wrong.

Invariants: importing this is cheap; torch and libp2p load with the first use of ``connect`` or ``Node``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pllm.api import GenerateResult as GenerateResult
    from p2pllm.api import Node as Node
    from p2pllm.api import Piece as Piece
    from p2pllm.api import RemoteModel as RemoteModel
    from p2pllm.api import Session as Session
    from p2pllm.api import connect as connect

__all__ = ["GenerateResult", "Node", "Piece", "RemoteModel", "Session", "connect"]

_MODULES = ("aio", "sync", "errors")


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used (PEP 562)."""
    import importlib

    if name in __all__:
        return getattr(importlib.import_module("p2pllm.api"), name)
    if name in _MODULES:
        return importlib.import_module(f"p2pllm.{name}")
    raise AttributeError(f"module 'p2pllm' has no attribute {name!r}")
