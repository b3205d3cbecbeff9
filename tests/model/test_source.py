"""A folder as a source: plain names only, and files that are there."""

from __future__ import annotations

import pytest

from p2pllm.errors import CheckpointError
from p2pllm.local.storage import DiskStorage
from p2pllm.model.source import FolderSource, plain_name
from sim.storage import MemoryStorage


@pytest.mark.parametrize("disk", [True, False])
def test_a_folder_reads_ranges_of_its_files(tmp_path, disk):
    if disk:
        (tmp_path / "a.json").write_bytes(b"0123456789")
        source = FolderSource(str(tmp_path), DiskStorage())
    else:
        source = FolderSource("folder", MemoryStorage({"folder/a.json": b"0123456789", "folder/sub/b": b""}))
    assert source.names() == ("a.json",)
    assert source.size("a.json") == 10
    assert source.read("a.json", 3, 7) == b"3456"
    assert source.digests() is None
    assert source.stamp("a.json") == source.stamp("a.json")
    with pytest.raises(CheckpointError, match=r"b\.json is missing"):
        source.read("b.json", 0, 1)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b", "a\0b"])
def test_paths_are_not_names(name):
    with pytest.raises(CheckpointError):
        plain_name(name)
    with pytest.raises(CheckpointError):
        FolderSource("folder", MemoryStorage({"folder/a": b"", "a": b""})).read(name, 0, 0)
