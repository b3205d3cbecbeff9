"""The header of a safetensors file, and the index of a sharded checkpoint: which tensor lies where.

Invariants: pure; no torch, no file is opened here. Every number of a header is checked against the file's size before
anything is read by it, so that a truncated or malicious file is an error that names it and never a big allocation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pllm.errors import CheckpointError
from p2pllm.model.source import plain_name

PREFIX_BYTES = 8
"""The header's length, little endian, stands before it."""
HEADER_BYTES_MAX = 100_000_000
"""The format's own limit."""
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""The stored dtypes that blocks can be loaded from."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: bytes ``[start, stop)`` of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_json(data: bytes, file: str) -> dict[str, Any]:
    """A JSON object from a checkpoint's file.

    Raises:
        CheckpointError: it is not one; names the file.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{file} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return value


def header_length(prefix: bytes, file: str, file_bytes: int) -> int:
    """How long the header is that follows the first eight bytes.

    Raises:
        CheckpointError: the file is too short for it, or it is no safetensors file.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < PREFIX_BYTES or file_bytes < PREFIX_BYTES:
        raise CheckpointError(f"{file} is truncated: {file_bytes} bytes")
    if not 2 <= length <= HEADER_BYTES_MAX:
        raise CheckpointError(f"{file} is not a safetensors file (header of {length} bytes)")
    if PREFIX_BYTES + length > file_bytes:
        raise CheckpointError(f"{file} is truncated: {file_bytes} bytes, its header alone ends at {8 + length}")
    return length


def parse_header(header: bytes, file: str, file_bytes: int) -> dict[str, StoredTensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: the header is malformed, or the file is shorter than it says.
    """
    base = PREFIX_BYTES + len(header)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in parse_json(header, f"{file} (header)").items():
        if name != "__metadata__":
            tensors[name] = _tensor(name, entry, file, base)
    end = max((t.stop for t in tensors.values()), default=base)
    if end > file_bytes:
        raise CheckpointError(f"{file} is truncated: {file_bytes} bytes, but its tensors end at {end}")
    return tensors


def parse_index(data: bytes, file: str) -> dict[str, str]:
    """Tensor name -> file name, from ``model.safetensors.index.json``.

    Raises:
        CheckpointError: the index is malformed or names something that is not a plain file name.
    """
    table = parse_json(data, file).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{file}: weight_map is missing")
    for name, shard in table.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{file}: weight_map[{name!r}] is not a file name")
        plain_name(shard)
    return table


def _tensor(name: str, entry: object, file: str, base: int) -> StoredTensor:
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{file}: header entry of {name} is malformed")
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{file}: header entry of {name} is malformed")
    start, stop = offsets
    item = ITEM_BYTES.get(dtype)
    if item is not None and stop - start != item * math.prod(shape):
        raise CheckpointError(f"{file}: {name} {list(shape)} {dtype} takes {stop - start} bytes, which cannot be")
    return StoredTensor(name, dtype, shape, base + start, base + stop)


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of sizes or offsets; None when it is anything else."""
    if isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value):
        return tuple(value)
    return None
