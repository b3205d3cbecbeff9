"""Refuses to replace code that is not the code we know."""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from typing import Any

from p2pllm.errors import UserError


def digest(replaced: Any) -> str:
    """A short fingerprint of a function's or class's source."""
    source = textwrap.dedent(inspect.getsource(replaced))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def require(replaced: Any, expected: str, fix: str) -> None:
    """Check that ``replaced`` is the code that ``fix`` was written for.

    Raises:
        UserError: it is not: another libp2p is installed.
    """
    if digest(replaced) != expected:
        raise UserError(
            f"the installed libp2p differs from 0.8.1 where p2pllm mends it ({fix}: {replaced.__qualname__}):"
            " install libp2p==0.8.1, or a p2pllm made for yours"
        )
