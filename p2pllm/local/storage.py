"""The real arm of ``ports.Storage``: files on disk, and a bounded pool of threads for blocking I/O.

Invariants: the loop never touches the disk; a file appears whole or not at all; every failure of the operating system
becomes ``StorageError`` here, with the file's name and what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import trio

from p2pllm.errors import StorageError
from p2pllm.ports import Buffer

T = TypeVar("T")

THREADS = 4
"""Disks and downloads gain nothing from more, and each thread may hold a chunk of a tensor."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskStorage:
    """Files of this machine."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, work: Callable[[], T]) -> T:
        """See ``ports.Storage.run``: in a thread of the pool; a cancelled caller waits for the work to end."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def size(self, path: str) -> int:
        try:
            return Path(path).stat().st_size
        except OSError as exc:
            raise _translated("cannot read", path, exc) from exc

    def read(self, path: str, start: int, stop: int) -> bytes:
        try:
            with Path(path).open("rb", buffering=0) as file:
                file.seek(start)
                data = bytearray()
                while len(data) < stop - start and (piece := file.read(stop - start - len(data))):
                    data += piece
        except OSError as exc:
            raise _translated("cannot read", path, exc) from exc
        if len(data) < stop - start:
            raise StorageError(
                f"{path} is truncated: bytes {start} to {stop} were wanted, it ends at {start + len(data)}"
            )
        return bytes(data)

    def write(self, path: str, data: bytes) -> None:
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, because only a rename within one file system is atomic.
            handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        except OSError as exc:
            raise _translated("cannot write", path, exc, len(data)) from exc
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except OSError as exc:
            Path(temporary).unlink(missing_ok=True)
            raise _translated("cannot write", path, exc, len(data)) from exc

    def names(self, folder: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_file()))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as exc:
            raise _translated("cannot list", folder, exc) from exc

    def stamp(self, path: str) -> str:
        try:
            found = Path(path).resolve(strict=True)
            stat = found.stat()
        except OSError as exc:
            raise _translated("cannot read", path, exc) from exc
        return f"{found}|{stat.st_size}|{stat.st_mtime_ns}"

    def scratch(self) -> DiskScratch:
        return DiskScratch()


class DiskScratch:
    """An anonymous file in the system's temporary folder: its name is removed at once, so nothing stays behind."""

    def __init__(self) -> None:
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="p2pllm-", buffering=0)  # noqa: SIM115
        except OSError as exc:
            raise _translated("cannot write", tempfile.gettempdir(), exc) from exc
        self._end = 0

    def append(self, data: Buffer) -> int:
        start, view = self._end, memoryview(data).cast("B")
        try:
            self._file.seek(start)
            while view:
                view = view[self._file.write(view) :]
        except OSError as exc:
            raise _translated("cannot write", tempfile.gettempdir() + "/p2pllm", exc, len(view)) from exc
        self._end = self._file.tell()
        return start

    def read(self, start: int, stop: int) -> bytes:
        data = bytearray()
        try:
            self._file.seek(start)
            while len(data) < stop - start and (piece := self._file.read(stop - start - len(data))):
                data += piece
        except OSError as exc:
            raise _translated("cannot read", "a temporary file", exc) from exc
        if len(data) < stop - start:
            raise StorageError(f"a temporary file ends at {start + len(data)}; {stop} was wanted")
        return bytes(data)

    def close(self) -> None:
        self._file.close()


def _translated(what: str, path: str, exc: OSError, count: int = 0) -> StorageError:
    """The operating system's complaint as one line that says what to do."""
    if exc.errno in _FULL:
        return StorageError(
            f"disk full: {what} {path} ({count} bytes, {_free(path)} free); free some space or choose another "
            "--cache-dir"
        )
    return StorageError(f"{what} {path}: {exc.strerror or exc}")


def _free(path: str) -> int:
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
