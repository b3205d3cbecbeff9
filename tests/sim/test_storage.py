"""Files in memory behave as files on disk do, in virtual time, with a quota and faults."""

from __future__ import annotations

import pytest
import trio

from p2pllm.errors import StorageError
from p2pllm.local.storage import DiskStorage
from sim.storage import MemoryStorage


@pytest.mark.parametrize("disk", [True, False])
def test_both_arms_keep_the_same_promises(tmp_path, disk):
    storage, root = (DiskStorage(), str(tmp_path)) if disk else (MemoryStorage(), "root")
    path = f"{root}/folder/file"
    assert storage.names(f"{root}/folder") == ()
    for call in (storage.size, storage.stamp, lambda p: storage.read(p, 0, 1)):
        with pytest.raises(StorageError, match="file"):
            call(path)
    storage.write(path, b"0123456789")
    storage.write(f"{root}/folder/another", b"")
    assert storage.names(f"{root}/folder") == ("another", "file")
    assert storage.names(root) == ()
    assert (storage.size(path), storage.read(path, 2, 5)) == (10, b"234")
    with pytest.raises(StorageError, match="truncated"):
        storage.read(path, 2, 11)
    stamp = storage.stamp(path)
    storage.write(path, b"9876543210!")
    assert storage.stamp(path) != stamp


async def test_work_takes_virtual_time_and_is_shielded():
    storage = MemoryStorage(delay_s=3600.0)
    ended = []
    with trio.move_on_after(1):
        await storage.run(lambda: ended.append(trio.current_time()))
    assert trio.current_time() == ended[0] + 3600.0
    assert await MemoryStorage().run(lambda: 7) == 7


def test_the_quota_counts_what_is_replaced_once():
    storage = MemoryStorage({"a": b"1234"}, quota_bytes=10)
    storage.write("a", b"x" * 10)
    with pytest.raises(StorageError, match=r"disk full: cannot write b \(1 bytes, 0 free\)"):
        storage.write("b", b"y")
    assert storage.read("a", 0, 10) == b"x" * 10


def test_faults_come_and_heal():
    storage = MemoryStorage({"a": b"1234"})

    def broken(operation: str, path: str) -> None:
        raise StorageError(f"{operation} {path} failed")

    storage.fail(broken)
    for call in (lambda: storage.read("a", 0, 1), lambda: storage.write("a", b""), lambda: storage.names("")):
        with pytest.raises(StorageError, match="failed"):
            call()
    storage.fail(None)
    assert storage.read("a", 0, 4) == b"1234"


async def test_a_temporary_file_counts_against_the_quota_until_it_is_closed():
    storage = MemoryStorage(quota_bytes=10)
    scratch = storage.scratch()
    assert (scratch.append(b"12345"), scratch.append(b"678")) == (0, 5)
    assert scratch.read(4, 6) == b"56"
    with pytest.raises(StorageError, match="disk full"):
        scratch.append(b"999")
    with pytest.raises(StorageError, match="ends at 8"):
        scratch.read(4, 9)
    scratch.close()
    scratch.close()
    assert not storage.scratches
    storage.write("/a", b"1234567890")
