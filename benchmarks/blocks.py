"""Blocks in one process, no network: decoding against the bound of memory bandwidth, prefill, and exact mode's price.

The bound of a decoded token is the bytes of the weights over the read bandwidth of as many threads, measured between
the steps of the same run. With one thread, "of bound" compares CPU times, so that the turns of other programs do not
count; everything else is wall time. "overhead" is the time of a block so small that nothing but calls is left.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.common import Shape, arguments, llama_config, save, show, spread
from p2pllm.model.config import block_tensors, parse_config
from p2pllm.model.exact import check_exact
from p2pllm.model.product import Product
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span

PAGE = 16
BANDWIDTH_BYTES = 256 << 20


def random_span(shape: Shape, dtype: str = "float32") -> SpanModel:
    """All blocks of a random model of this shape."""
    config = parse_config(llama_config(shape))
    generator = torch.Generator().manual_seed(0)
    specs = {spec.name: spec for block in range(shape.blocks) for spec in block_tensors(config, block).values()}

    def get(name: str) -> torch.Tensor:
        size = specs[name].shape
        return torch.randn(size, generator=generator) * size[-1] ** -0.5 if len(size) > 1 else torch.ones(size)

    return SpanModel.load(config, Span(0, shape.blocks), get, dtype)


@dataclass(frozen=True)
class Taken:
    """How long one call took, by the clock on the wall and by that of this thread's CPU time."""

    wall: float
    cpu: float

    @property
    def fair(self) -> float:
        """What ratios are made of."""
        return self.cpu if torch.get_num_threads() == 1 else self.wall


def taken(work: Callable[[], object]) -> Taken:
    """Call and measure."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return Taken(time.perf_counter() - wall, time.thread_time() - cpu)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    return taken(work).wall


class Reader:
    """Measures read bandwidth: sums a tensor that is larger than any cache."""

    def __init__(self) -> None:
        self._memory = torch.ones(BANDWIDTH_BYTES // 4)
        self.samples: list[float] = []

    def sample(self) -> None:
        """Read everything once."""
        self.samples.append(BANDWIDTH_BYTES / taken(self._memory.sum).fair)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, the median of what was sampled."""
        return statistics.median(self.samples)


def decode(model: SpanModel, context: int, steps: int, reader: Reader | None = None) -> list[Taken]:
    """The steps of one row, from ``context`` cached tokens on; bandwidth is sampled every 8 steps."""
    pages = range(-(-(context + steps) // PAGE))
    arena = model.arena(len(pages) * PAGE, PAGE)
    x = torch.randn(max(1, context), model.config.hidden_size)
    if context:
        model.run(x, [Segment(context, 0, pages)], arena)
    times = []
    for position in range(context, context + steps):
        if reader is not None and position % 8 == 0:
            reader.sample()
        times.append(taken(partial(model.run, x[:1], [Segment(1, position, pages)], arena)))
    return times[steps // 8 :]


def decode_rows(model: SpanModel, contexts: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    """One row per context length and mode, all against the bandwidth of their own minutes."""
    rows = []
    for context in contexts:
        for exact in (False, True):
            model.exact = exact
            reader = Reader()
            steps_taken = decode(model, context, steps, reader)
            times = spread([t.wall for t in steps_taken])
            fair = statistics.median(t.fair for t in steps_taken)
            bound = model.weight_bytes / reader.bandwidth
            row: dict[str, Any] = {"context": context, "mode": "exact" if exact else "plain"}
            row |= {"ms p50": times["p50"] * 1e3, "ms p95": times["p95"] * 1e3, "steps/s": 1 / times["p50"]}
            row |= {"GB/s": reader.bandwidth / 1e9, "bound ms": bound * 1e3, "of bound": bound / fair}
            rows.append(row)
    model.exact = False
    return rows


def prefill_rows(model: SpanModel, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Tokens per second of one new row in one pass, and of a batch without cache."""
    rows = []
    for count in counts:
        x = torch.randn(count, model.config.hidden_size)
        arena = model.arena(count, PAGE)
        cached = [Segment(count, 0, range(-(-count // PAGE)))]
        row: dict[str, Any] = {"tokens": count}
        for exact in (False, True):
            model.exact = exact
            best = min(seconds(partial(model.run, x, cached, arena)) for _ in range(3))
            row["exact tok/s" if exact else "tok/s"] = count / best
        model.exact = False
        batch = [Segment(32)] * (count // 32)
        best = min(seconds(partial(model.run, x, batch)) for _ in range(3))
        rows.append(row | {"as batch of 32s, tok/s": count / best})
    return rows


def layout_rows(shape: Shape, reader: Reader) -> list[dict[str, Any]]:
    """The weights of all blocks, one row: torch's row-major product against ours."""
    config = parse_config(llama_config(shape))
    kv = 2 * config.num_kv_heads * config.head_dim
    sizes = [(shape.hidden + kv, shape.hidden), (shape.hidden, shape.hidden)]
    sizes += [(2 * shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)]
    device = torch.device("cpu")
    plain, ours = [], []
    for outputs, inputs in sizes * shape.blocks:
        weight, x = torch.randn(outputs, inputs), torch.randn(1, inputs)
        product = Product(outputs, inputs, dtype=torch.float32, device=device)
        product.fill(0, weight)
        plain.append((x, weight))
        ours.append((x, product))
    bound = sum(w.nbytes for _, w in plain) / reader.bandwidth
    rows = []
    with torch.inference_mode():
        for name, work in (
            ("row-major, F.linear", lambda: [functional.linear(x, w) for x, w in plain]),
            ("p2pllm", lambda: [p(x) for x, p in ours]),
        ):
            middle = statistics.median(taken(work).fair for _ in range(15))
            rows.append({"product": name, "ms": middle * 1e3, "of bound": bound / middle})
    return rows


def main() -> int:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=160, help="decoded tokens per row of the table")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=1376)
    parser.add_argument("--blocks", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = Shape(hidden=options.hidden, intermediate=options.intermediate, blocks=options.blocks)
    model = random_span(shape)
    title = (
        f"{shape.blocks} blocks, hidden {shape.hidden}, intermediate {shape.intermediate}, {options.threads} thread(s)"
    )

    results: dict[str, Any] = {"decode": decode_rows(model, (0, 512), options.steps)}
    show(f"Decode, one row: {title}", results["decode"], "bound: bytes of weights / read bandwidth in the same minute")
    reader = Reader()
    for _ in range(9):
        reader.sample()
    results["layout"] = layout_rows(shape, reader)
    show("The products of a step alone, and how their weights lie in memory", results["layout"])
    results["prefill"] = prefill_rows(model, (128, 1024))
    show(f"Many tokens in one pass: {title}", results["prefill"])
    small = decode(random_span(Shape(hidden=64, intermediate=96)), 16, 200)
    results["overhead_us_per_block"] = statistics.median(t.fair for t in small) / 8 * 1e6
    results["check_exact_s"] = seconds(lambda: results.update(exact=check_exact(model)))
    print(f"overhead: {results['overhead_us_per_block']:.0f} us per block and step")
    verdict = f"exact mode {'holds' if results['exact'] else 'does NOT hold'} here"
    print(f"{verdict} (checked in {results['check_exact_s']:.2f} s)")
    save(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
