"""An examination of this machine: versions, kernels, memory, disk, exactness, and whether a swarm can be reached.

Invariants: changes nothing but the cache folder; every finding says what was found and, where it matters, what to do.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import trio

from p2pllm.config import preset
from p2pllm.errors import P2PLLMError, UserError
from p2pllm.local.models import DEMO, default_cache_dir, resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.exact import check_exact
from p2pllm.model.span import SpanModel
from p2pllm.node.world import WorldOptions, bootstrap_addresses, compute_threads, open_world
from p2pllm.types import Span

GIB = 1 << 30
DISK_LOW_BYTES = 5 * GIB
READ_BYTES = 256 << 20
JOIN_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination; ``verdict`` is ``good``, ``note`` or ``bad``."""

    what: str
    verdict: str
    found: str
    advice: str = ""


async def examine(bootstrap: Sequence[str], cache_dir: str | None, threads: int | None, config: str) -> list[Finding]:
    """Look at everything; takes a few seconds, and longer when no member answers."""
    count = compute_threads(threads)

    def machine() -> list[Finding]:
        torch.set_num_threads(count)
        return [*software(), *hardware(count), *disk(cache_dir), exactness(count)]

    findings = await trio.to_thread.run_sync(machine)
    return [*findings, await network(bootstrap, cache_dir, config)]


def software() -> Iterator[Finding]:
    """Versions, and which codec kernels run."""
    from p2pllm_native import codec

    yield Finding("software", "good", f"Python {platform.python_version()}, torch {torch.__version__}")
    isa = codec.isa()
    if isa == "numpy":
        advice = "install a C++ compiler and reinstall p2pllm_native: encoding takes 30 to 60 times as long without"
        yield Finding("activation codec", "note", "NumPy twin; no compiled kernels", advice)
    else:
        yield Finding("activation codec", "good", f"compiled, {isa}")


def hardware(threads: int) -> Iterator[Finding]:
    """Processor, memory, bandwidth, GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        "processor", "good", f"{os.cpu_count()} logical cores, {threads} compute threads, {memory / GIB:.1f} GiB"
    )
    data = torch.ones(READ_BYTES // 4)
    seconds = min(_timed(data) for _ in range(3))
    rate = READ_BYTES / seconds / 1e9
    text = f"{rate:.0f} GB/s: a block of a 7B model (fp32) takes at least {0.81 / rate * 1000:.0f} ms per token"
    yield Finding("memory reads", "good", text)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, total = torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory
        yield Finding(f"cuda:{index}", "good", f"{name}, {total / GIB:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("GPU", "note", "none that torch can use; blocks run on the CPU")


def _timed(data: torch.Tensor) -> float:
    begun = time.perf_counter()
    data.sum()
    return max(time.perf_counter() - begun, 1e-9)


def disk(cache_dir: str | None) -> Iterator[Finding]:
    """Room for checkpoints."""
    folder = Path(cache_dir or default_cache_dir()).expanduser()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    low = free < DISK_LOW_BYTES
    advice = "choose a --cache-dir on a larger disk, or free some" if low else ""
    yield Finding("disk", "note" if low else "good", f"{free / GIB:.1f} GiB free for {folder}", advice)


def exactness(threads: int) -> Finding:
    """Whether exact mode holds here, tried on the demo model."""
    checkpoint = Checkpoint(resolve_model(DEMO, "", DiskStorage()))
    span = Span(0, 2)
    model = SpanModel.load(checkpoint.config, span, checkpoint.span_tensors(span, torch.float32))
    if check_exact(model):
        return Finding("exact mode", "good", f"holds with {threads} threads (demo model, fp32)")
    return Finding("exact mode", "note", f"does not hold with {threads} threads", "try --threads 1")


async def network(bootstrap: Sequence[str], cache_dir: str | None, config: str) -> Finding:
    """Whether a member of the swarm answers."""
    given = bootstrap_addresses(bootstrap)
    try:
        async with open_world(preset(config), WorldOptions(bootstrap=given, cache_dir=cache_dir)) as world:
            known = len(given) + len(world.members.addresses())
            if not known:
                advice = "give --bootstrap ADDR of a member, or start a swarm with p2pllm bootstrap"
                return Finding("swarm", "note", "no member is known", advice)
            answered = 0
            with trio.move_on_after(JOIN_TIMEOUT_S):
                answered = await world.ports.network.bootstrap()
    except UserError:
        raise
    except P2PLLMError as error:
        return Finding("swarm", "bad", str(error))
    if not answered:
        return Finding(
            "swarm", "bad", f"none of {known} known addresses answers", "check them, and that you are online"
        )
    return Finding("swarm", "good", f"{answered} of {known} known addresses answer")
