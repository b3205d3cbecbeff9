"""Where a checkpoint's files come from: a folder, the hub, memory. Everything above reads byte ranges by file name.

Invariants: synchronous (server and client call it inside ``Storage.run``); nothing here knows a network or a loop. A
file name is a plain name, never a path, so that a malicious index cannot point outside the checkpoint.
"""

from __future__ import annotations

from typing import Protocol

from p2pllm.errors import CheckpointError


class Source(Protocol):
    """The files of one checkpoint."""

    @property
    def title(self) -> str:
        """How to speak of the checkpoint in messages: the folder or the hub id."""
        ...

    def names(self) -> tuple[str, ...]:
        """All files."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            CheckpointError: there is no such file.
            StorageError: the disk or the download failed.
        """
        ...

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes ``[start, stop)`` of a file. Raises as ``size`` does, also when the file is shorter."""
        ...

    def digests(self) -> dict[str, str] | None:
        """SHA-256 (hex) of files, where the source knows them without reading; None when it knows none."""
        ...

    def stamp(self, name: str) -> str | None:
        """A text that changes whenever the file may have changed, to cache results under; None: do not cache."""
        ...


class Files(Protocol):
    """The blocking half of ``ports.Storage``, as far as checkpoints need it."""

    def size(self, path: str) -> int: ...

    def read(self, path: str, start: int, stop: int) -> bytes: ...

    def write(self, path: str, data: bytes) -> None: ...

    def names(self, folder: str) -> tuple[str, ...]: ...

    def stamp(self, path: str) -> str: ...


def plain_name(name: str) -> str:
    """``name`` itself, if it is the name of a file and not a path.

    Raises:
        CheckpointError: it is not.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise CheckpointError(f"{name!r} is not the name of a file of a checkpoint")
    return name


class FolderSource:
    """A local folder in Hugging Face layout."""

    def __init__(self, folder: str, files: Files) -> None:
        self.title = folder
        self._files = files

    def names(self) -> tuple[str, ...]:
        return self._files.names(self.title)

    def size(self, name: str) -> int:
        return self._files.size(self._path(name))

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self._files.read(self._path(name), start, stop)

    def digests(self) -> dict[str, str] | None:
        return None

    def stamp(self, name: str) -> str | None:
        return self._files.stamp(self._path(name))

    def _path(self, name: str) -> str:
        if plain_name(name) not in self.names():
            raise CheckpointError(f"{self.title}: {name} is missing")
        return f"{self.title}/{name}"
