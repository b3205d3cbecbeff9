"""The hub over real HTTP on this machine: exact ranges, once each, resumed after anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants

from p2pllm.errors import CheckpointError, StorageError
from p2pllm.local import hub as module
from p2pllm.local.hub import HubSource
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.digest import identify
from p2pllm.model.ends import Ends
from p2pllm.model.source import FolderSource
from p2pllm.model.span import SpanModel
from p2pllm.types import Span
from sim.storage import MemoryStorage
from tests.local.fake_hub import REPO, serve
from tests.model.files import TINY, sharded, single, weights

pytestmark = pytest.mark.real_clock

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "RETRY_WAIT_S", 0.001)
    yield
    close_session()


@pytest.fixture
def hub():
    with serve(sharded(TINY, weights(TINY))) as server:
        yield server


def source(hub, cache_dir="cache", storage=None):
    return HubSource(REPO, storage or MemoryStorage(), str(cache_dir), endpoint=hub.endpoint)


def test_a_span_costs_its_own_bytes_and_only_once(hub, tmp_path):
    storage = DiskStorage()
    first = source(hub, tmp_path, storage)
    checkpoint = Checkpoint(first)
    loader = checkpoint.span_tensors(Span(1, 3))
    SpanModel.load(checkpoint.config, Span(1, 3), loader)
    assert first.bytes_fetched == checkpoint.bytes_read == sum(stop - start for _, start, stop in hub.ranges)
    files = {name for name, _, _ in hub.ranges if name.endswith(".safetensors")}
    headers = sum(8 + int.from_bytes(hub.files[name][:8], "little") for name in files)
    small = sum(len(hub.files[name]) for name in ("config.json", "model.safetensors.index.json"))
    assert checkpoint.bytes_read == loader.total_bytes + headers + small

    hub.ranges.clear()
    again = source(hub, tmp_path, storage)
    second = Checkpoint(again)
    SpanModel.load(second.config, Span(1, 3), second.span_tensors(Span(1, 3)))
    assert not hub.ranges
    Ends.load(second.config, second.ends_tensors())
    assert sum(stop - start for _, start, stop in hub.ranges) == again.bytes_fetched > 0


def test_the_bytes_are_right_and_the_id_is_that_of_a_folder(hub):
    tensors = weights(TINY)
    checkpoint = Checkpoint(source(hub))
    loader = checkpoint.ends_tensors()
    assert torch.equal(loader("model.norm.weight"), tensors["model.norm.weight"])
    folder = MemoryStorage({f"m/{name}": data for name, data in hub.files.items()})
    before = len(hub.ranges)
    assert identify(checkpoint) == identify(Checkpoint(FolderSource("m", folder)))
    assert len(hub.ranges) == before  # digests come with the listing


def test_overlapping_reads_fetch_the_gaps_only(hub):
    name = "model-00001-of-00003.safetensors"
    data, files = hub.files[name], source(hub)
    for start, stop in [(10, 20), (40, 50), (0, 60), (5, 45), (20, 20), (55, 70)]:
        assert files.read(name, start, stop) == data[start:stop]
    assert [r[1:] for r in hub.ranges] == [(10, 20), (40, 50), (0, 10), (20, 40), (50, 60), (60, 70)]


@pytest.mark.parametrize("faults", [[503], [429, 500], ["cut"], ["long"], ["cut", 502, "cut"]])
def test_a_passing_fault_is_overcome(hub, faults):
    hub.faults = faults
    assert source(hub).read("config.json", 0, 30) == hub.files["config.json"][:30]
    assert not hub.faults


@pytest.mark.parametrize(("faults", "words"), [([503] * 5, "HTTP 503"), ([403], "HTTP 403"), (["whole"], "HTTP 200")])
def test_a_lasting_fault_is_one_line(hub, faults, words):
    hub.faults = list(faults)
    with pytest.raises(StorageError, match=words) as caught:
        source(hub).read("config.json", 5, 30)
    assert "config.json" in str(caught.value)
    assert REPO in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupted_download_goes_on(hub, tmp_path):
    name, storage = "model-00002-of-00003.safetensors", DiskStorage()
    files = source(hub, tmp_path, storage)
    size = files.size(name)
    files.read(name, 0, 1000)
    hub.faults = [503] * 5
    with pytest.raises(StorageError):
        files.read(name, 1000, size)
    hub.ranges.clear()
    assert source(hub, tmp_path, storage).read(name, 0, size) == hub.files[name]
    assert hub.ranges == [(name, 1000, size)]


def test_a_damaged_part_is_fetched_again(hub, tmp_path):
    storage = DiskStorage()
    source(hub, tmp_path, storage).read("config.json", 0, 50)
    (part,) = tmp_path.rglob("0-50")
    part.write_bytes(b"short")
    assert source(hub, tmp_path, storage).read("config.json", 0, 50) == hub.files["config.json"][:50]


def test_a_full_disk_is_one_line(hub):
    storage = MemoryStorage(quota_bytes=4000)
    with pytest.raises(StorageError, match="disk full"):
        source(hub, storage=storage).read("model-00001-of-00003.safetensors", 0, 5000)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ((404, "RepoNotFound"), "no model owner/tiny-model"),
        ((401, "RepoNotFound"), "private"),
        ((403, "GatedRepo"), "gated"),
        ((404, "RevisionNotFound"), "no revision main"),
    ],
)
def test_what_the_hub_refuses_is_the_users_to_mend(hub, status, words):
    hub.status = status
    with pytest.raises(CheckpointError, match=words) as caught:
        source(hub)
    assert "\n" not in str(caught.value)


def test_without_the_hub_the_cache_serves(hub, tmp_path, caplog):
    storage = DiskStorage()
    source(hub, tmp_path, storage).read("config.json", 0, 20)
    hub.status = (500, "")
    assert source(hub, tmp_path, storage).read("config.json", 0, 20) == hub.files["config.json"][:20]
    assert "cannot reach the hub" in caplog.text
    with pytest.raises(StorageError, match="cannot reach the hub"):
        source(hub, tmp_path / "elsewhere", storage)


def test_nobody_listens_there(tmp_path):
    with serve({}) as gone:
        pass
    with pytest.raises(StorageError, match="cannot reach the hub for owner/tiny-model"):
        source(gone)


def test_offline_mode(hub, tmp_path, monkeypatch):
    storage = DiskStorage()
    source(hub, tmp_path, storage).read("config.json", 0, 20)
    hub.ranges.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = source(hub, tmp_path, storage)
    assert files.read("config.json", 0, 20) == hub.files["config.json"][:20]
    with pytest.raises(StorageError):
        files.read("config.json", 0, 40)
    assert not hub.ranges
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE"):
        source(hub, tmp_path / "elsewhere", storage)


def test_unknown_files_and_ranges(hub):
    files = source(hub)
    with pytest.raises(CheckpointError, match=r"x\.json is missing"):
        files.size("x.json")
    with pytest.raises(CheckpointError, match=r"config\.json has"):
        files.read("config.json", 0, 10**6)


def test_a_damaged_listing_is_no_listing(hub, tmp_path):
    source(hub, tmp_path, DiskStorage())
    (listing,) = tmp_path.rglob("main.json")
    hub.status = (500, "")
    for damaged in (b"", b"[]", b'{"commit": "x"}', b'{"commit": "x", "files": {"a": 3}}'):
        listing.write_bytes(damaged)
        with pytest.raises(StorageError, match="cannot reach the hub"):
            source(hub, tmp_path, DiskStorage())


def test_the_endpoint_of_the_environment_and_the_command_line_spelling():
    """``HF_ENDPOINT`` is read when the library is imported: so in a process of its own."""
    code = (
        "import sys; from p2pllm.local.models import resolve_model; from sim.storage import MemoryStorage\n"
        "s = resolve_model(sys.argv[1], 'c', MemoryStorage()); print(s.title, s.names())"
    )
    with serve(single(TINY, weights(TINY))) as server:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{REPO}@main"],
            cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": server.endpoint, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout.strip() == f"{REPO} ('config.json', 'model.safetensors')", done.stderr
