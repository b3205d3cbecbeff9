"""Readers of single fields of a ``config.json``: the type and range are checked, or the field is named.

Invariants: a field of a foreign file never raises anything but ``CheckpointError``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from p2pllm.errors import CheckpointError


def count(raw: Mapping[str, Any], key: str, default: int | None = None, null: int | None = None, least: int = 1) -> int:
    """An integer field; ``default`` when it is absent, ``null`` (or else ``default``) when it is null."""
    value = raw.get(key, default)
    if value is None:
        value = default if null is None else null
    if value is None:
        raise CheckpointError(f"config.json: field {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
        raise CheckpointError(f"config.json: field {key!r} must be an integer of at least {least}, not {value!r}")
    return value


def number(raw: Mapping[str, Any], key: str, default: float | None = None, where: str = "config.json") -> float:
    value = default if raw.get(key) is None else raw[key]
    if value is None:
        raise CheckpointError(f"{where}: field {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"{where}: field {key!r} must be a positive number, not {value!r}")
    return float(value)


def flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: field {key!r} must be true or false, not {value!r}")
    return bool(value)


def token_ids(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = raw.get(key)
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise CheckpointError(f"config.json: field {key!r} must be a token id or a list of them, not {value!r}")
    return tuple(ids)
