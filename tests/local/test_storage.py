"""Files on a real disk: whole or not at all, off the loop, and one clear line when the disk says no."""

from __future__ import annotations

import errno
import os
import tempfile
import threading

import pytest
import trio

from p2pllm.errors import StorageError
from p2pllm.local.storage import DiskStorage

pytestmark = pytest.mark.real_clock


async def test_work_runs_in_a_bounded_pool():
    storage = DiskStorage(threads=2)
    loop, running, most = threading.get_ident(), 0, 0
    lock = threading.Lock()
    gate = threading.Barrier(2)

    def work():
        nonlocal running, most
        assert threading.get_ident() != loop
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(storage.run, work)
    assert most == 2


async def test_results_and_errors_come_back():
    storage = DiskStorage()
    assert await storage.run(lambda: 3) == 3

    def fails():
        raise StorageError("no")

    with pytest.raises(StorageError, match="no"):
        await storage.run(fails)


async def test_cancellation_waits_for_the_work():
    began, go, done = threading.Event(), threading.Event(), threading.Event()

    def work():
        began.set()
        go.wait(10)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(DiskStorage().run, work)
        while not began.is_set():
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        go.set()
    assert done.is_set()


def test_round_trip(tmp_path):
    storage, path = DiskStorage(), str(tmp_path / "new" / "folder" / "file")
    storage.write(path, b"0123456789")
    assert storage.size(path) == 10
    assert storage.read(path, 2, 5) == b"234"
    assert storage.read(path, 4, 4) == b""
    assert storage.names(str(tmp_path / "new" / "folder")) == ("file",)
    assert storage.names(str(tmp_path / "nowhere")) == ()
    before = storage.stamp(path)
    storage.write(path, b"another content")
    assert storage.stamp(path) != before


def test_missing_and_short_files_are_named(tmp_path):
    storage, path = DiskStorage(), str(tmp_path / "file")
    for call in (storage.size, storage.stamp, lambda p: storage.read(p, 0, 1)):
        with pytest.raises(StorageError, match="file: No such file"):
            call(path)
    storage.write(path, b"0123")
    with pytest.raises(StorageError, match=r"file is truncated: bytes 2 to 9 .* ends at 4"):
        storage.read(path, 2, 9)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_says_so(tmp_path, monkeypatch):
    """The real errno of a real write; only the temporary file is put on the device that is always full."""
    path = str(tmp_path / "file")
    DiskStorage().write(path, b"old")

    def on_full_device(*_, **__):
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "temporary")

    monkeypatch.setattr("p2pllm.local.storage.tempfile.mkstemp", on_full_device)
    with pytest.raises(StorageError, match=r"disk full: cannot write .*file \(100000 bytes, \d+ free\).*--cache-dir"):
        DiskStorage().write(path, b"x" * 100_000)
    assert DiskStorage().read(path, 0, 3) == b"old"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    storage, path = DiskStorage(), str(tmp_path / "file")
    storage.write(path, b"old")

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="file: Input/output error"):
        storage.write(path, b"new")
    assert storage.names(str(tmp_path)) == ("file",)
    assert storage.read(path, 0, 3) == b"old"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        DiskStorage().write(str(tmp_path / "plain" / "file"), b"")


def test_a_temporary_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = DiskStorage().scratch()
    assert list(tmp_path.iterdir()) == []
    assert (scratch.append(b"12345"), scratch.append(memoryview(b"678"))) == (0, 5)
    assert scratch.read(4, 6) == b"56"
    with pytest.raises(StorageError, match="ends at 8"):
        scratch.read(4, 9)
    assert scratch.append(b"9") == 8
    scratch.close()
    scratch.close()
