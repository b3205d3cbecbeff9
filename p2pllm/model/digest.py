"""The model id: who serves "the same model" is decided by content, never by a name.

Invariants: the id depends on what the blocks compute (the config as understood, so that both generations of spellings
agree and bookkeeping keys do not count) and on the SHA-256 of every weight file. A base model and its fine-tune differ.
The hub's metadata gives the digests for nothing; a local file is hashed once and remembered by path, size and time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from p2pllm.errors import StorageError
from p2pllm.model.checkpoint import Checkpoint, Progress
from p2pllm.model.config import ModelConfig
from p2pllm.model.source import Files
from p2pllm.types import ModelId

log = logging.getLogger(__name__)

_DOMAIN = "p2pllm model 1"
_NOT_COMPUTED_WITH = ("dtype", "bos_id", "eos_ids")
"""How weights are stored is in their digests; where a text begins and ends is the client's affair."""
_CHUNK_BYTES = 16 << 20


class DigestCache:
    """Remembers SHA-256 sums of local files in a folder; losing it costs time only."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files = files
        self._folder = folder

    def get(self, stamp: str) -> str | None:
        """The digest of the file that had this stamp, if it is known."""
        name = self._name(stamp)
        if name not in self._files.names(self._folder):
            return None
        path = f"{self._folder}/{name}"
        text = self._files.read(path, 0, self._files.size(path)).decode("ascii", "replace")
        return text if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else None

    def put(self, stamp: str, digest: str) -> None:
        try:
            self._files.write(f"{self._folder}/{self._name(stamp)}", digest.encode())
        except StorageError as exc:
            log.warning("digest not remembered: %s", exc)

    @staticmethod
    def _name(stamp: str) -> str:
        return hashlib.sha256(stamp.encode()).hexdigest()[:32]


def canonical_config(config: ModelConfig) -> bytes:
    """The config as bytes that are equal for equal models.

    Optional fields that have their default are left out, so a field that is added later changes no old id.
    """
    kept = {name: value for name, value in _plain(config).items() if name not in _NOT_COMPUTED_WITH}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """A dataclass as a dict of its fields that differ from their defaults."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {f.name: _plain(v) for f, v in fields if f.default is dataclasses.MISSING or v != f.default}


def model_id(config: ModelConfig, weight_digests: Sequence[str]) -> ModelId:
    """The id of a model, from its config and its weight files' digests in the order of the files' names."""
    body = hashlib.sha256(canonical_config(config)).hexdigest()
    return ModelId(hashlib.sha256("\n".join((_DOMAIN, body, *weight_digests)).encode()).hexdigest())


def identify(checkpoint: Checkpoint, cache: DigestCache | None = None, progress: Progress | None = None) -> ModelId:
    """The id of a checkpoint; blocking.

    Raises:
        CheckpointError: it has no weights that p2pllm reads.
        StorageError: the disk or the download failed.
    """
    source, files = checkpoint.source, checkpoint.weight_files()
    known = dict(source.digests() or {})
    for name in files:
        stamp = source.stamp(name)
        if name not in known and cache is not None and stamp is not None:
            remembered = cache.get(stamp)
            if remembered is not None:
                known[name] = remembered
    unknown = {name: source.size(name) for name in files if name not in known}
    total, done = sum(unknown.values()), 0
    for name, size in unknown.items():
        stamp, digest = source.stamp(name), hashlib.sha256()
        for start in range(0, size, _CHUNK_BYTES):
            chunk = source.read(name, start, min(start + _CHUNK_BYTES, size))
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        known[name] = digest.hexdigest()
        if cache is not None and stamp is not None:
            cache.put(stamp, known[name])
    return model_id(checkpoint.config, [known[name] for name in files])
