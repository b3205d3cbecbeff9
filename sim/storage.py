"""The simulated arm of ``ports.Storage``: files in memory, with a quota and faults, in virtual time.

Invariants: no thread and no disk; work runs inline, then ``delay_s`` of virtual time passes, shielded, as a real
disk's work would be. The same calls raise the same errors as on a real disk. A disk outlives the processes that use
it, each through a ``Mount`` of its own: who is dead writes nothing any more, and leaves no temporary file behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import trio

from p2pllm.errors import StorageError
from p2pllm.ports import Buffer

T = TypeVar("T")

Fault = Callable[[str, str], None]
"""Called with (operation, path) before each operation; raises StorageError to make it fail."""


class MemoryStorage:
    """Files that live as long as this object.

    Attributes:
        files: path -> content.
        delay_s: virtual seconds that each ``run`` takes.
    """

    def __init__(
        self, files: Mapping[str, bytes] | None = None, *, quota_bytes: int | None = None, delay_s: float = 0.0
    ) -> None:
        self.files = dict(files or {})
        self.delay_s = delay_s
        self._quota_bytes = quota_bytes
        self._stamps = dict.fromkeys(self.files, 0)
        self._writes = 0
        self._fault: Fault | None = None
        self.scratches: set[MemoryScratch] = set()
        """Temporary files that are not closed."""

    def fail(self, fault: Fault | None) -> None:
        """From now on ask ``fault`` before every operation; None heals."""
        self._fault = fault

    async def run(self, work: Callable[[], T]) -> T:
        """See ``ports.Storage.run``."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return work()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.delay_s)

    def size(self, path: str) -> int:
        return len(self._content("size", path))

    def read(self, path: str, start: int, stop: int) -> bytes:
        content = self._content("read", path)
        if stop > len(content):
            raise StorageError(f"{path} is truncated: bytes {start} to {stop} were wanted, it ends at {len(content)}")
        return content[start:stop]

    def write(self, path: str, data: bytes) -> None:
        self._check("write", path)
        self._make_room(path, len(data))
        self._writes += 1
        self.files[path] = bytes(data)
        self._stamps[path] = self._writes

    def names(self, folder: str) -> tuple[str, ...]:
        self._check("names", folder)
        prefix = folder.rstrip("/") + "/"
        inside = (path.removeprefix(prefix) for path in self.files if path.startswith(prefix))
        return tuple(sorted(name for name in inside if "/" not in name))

    def stamp(self, path: str) -> str:
        return f"{path}|{len(self._content('stamp', path))}|{self._stamps.get(path, 0)}"

    def scratch(self) -> MemoryScratch:
        self._check("scratch", "")
        scratch = MemoryScratch(self)
        self.scratches.add(scratch)
        return scratch

    def _content(self, operation: str, path: str) -> bytes:
        self._check(operation, path)
        if path not in self.files:
            raise StorageError(f"cannot read {path}: No such file or directory")
        return self.files[path]

    def _make_room(self, path: str, size: int) -> None:
        used = sum(len(content) for other, content in self.files.items() if other != path)
        used += sum(len(scratch.content) for scratch in self.scratches)
        if self._quota_bytes is not None and used + size > self._quota_bytes:
            free = max(self._quota_bytes - used, 0)
            raise StorageError(f"disk full: cannot write {path} ({size} bytes, {free} free)")

    def _check(self, operation: str, path: str) -> None:
        if self._fault is not None:
            self._fault(operation, path)


class MemoryScratch:
    """See ``ports.Scratch``."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.content = bytearray()
        self._storage = storage

    def append(self, data: Buffer) -> int:
        self._storage._check("append", "a temporary file")
        self._storage._make_room("a temporary file", len(data))
        start = len(self.content)
        self.content += data
        return start

    def read(self, start: int, stop: int) -> bytes:
        self._storage._check("read", "a temporary file")
        if stop > len(self.content):
            raise StorageError(f"a temporary file ends at {len(self.content)}; {stop} was wanted")
        return bytes(self.content[start:stop])

    def close(self) -> None:
        self._storage.scratches.discard(self)


class Mount:
    """A disk as one process sees it; see ``ports.Storage``. Nothing works any more once ``alive`` says False."""

    def __init__(self, disk: MemoryStorage, alive: Callable[[], bool]) -> None:
        self._disk = disk
        self._alive = alive
        self._scratches: list[MemoryScratch] = []

    async def run(self, work: Callable[[], T]) -> T:
        """See ``ports.Storage.run``."""
        return await self._disk.run(work)

    def size(self, path: str) -> int:
        return self._used().size(path)

    def read(self, path: str, start: int, stop: int) -> bytes:
        return self._used().read(path, start, stop)

    def write(self, path: str, data: bytes) -> None:
        self._used().write(path, data)

    def names(self, folder: str) -> tuple[str, ...]:
        return self._used().names(folder)

    def stamp(self, path: str) -> str:
        return self._used().stamp(path)

    def scratch(self) -> MemoryScratch:
        scratch = self._used().scratch()
        self._scratches.append(scratch)
        return scratch

    def release(self) -> None:
        """The process has ended: its temporary files are gone."""
        for scratch in self._scratches:
            scratch.close()
        self._scratches.clear()

    def _used(self) -> MemoryStorage:
        if not self._alive():
            raise StorageError("the process that used this disk is dead")
        return self._disk
