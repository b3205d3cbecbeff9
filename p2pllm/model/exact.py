"""Whether exact mode holds on this machine, and the numerics class that follows.

Invariants: exactness is never assumed. The check computes the same tokens alone, in batches of every size up to 17 and
in every cut up to 17, with the real weights at the thread count in use, and compares bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from p2pllm.model.attention import KEY_SPLIT, ROW_PAD, Segment, exact_attention, exact_pieces
from p2pllm.model.kv import KVArena
from p2pllm.model.layers import as_dtype, dtype_name
from p2pllm.model.product import ROW_TILE, Product
from p2pllm.model.span import SpanModel
from p2pllm.types import Numerics, Span

ROWS_MAX = 17
SEQUENCE = 2 * KEY_SPLIT
"""Tokens of the probe sequences: there are whole key splits before them, and borders of splits inside."""
COPIES = 3
LONG = 12 * KEY_SPLIT


def check_exact(model: SpanModel) -> bool:
    """Find out whether exact mode holds for this span at torch's present thread count, and settle how.

    Tried in turn: rows as they are (the native products do not mix them), padding to a multiple of 8, products in
    fixed pieces of 8 rows as well. ``model`` is left exact (True) or not (False). Only fp32 on CPU is promised;
    everything else answers False without a try.
    """
    model.exact = model.dtype == torch.float32 and model.device.type == "cpu"
    if not model.exact:
        return False
    probe = _probe(model)
    for row_pad, row_tile in ((1, None), (ROW_PAD, None), (ROW_PAD, ROW_TILE)):
        probe.row_pad = row_pad
        probe.set_row_tile(row_tile)
        if _rows_alone_equal_rows_together(probe) and _cuts_do_not_matter(probe) and _length_does_not_matter(probe):
            model.row_pad = row_pad
            model.set_row_tile(row_tile)
            return True
    model.set_row_tile(None)
    model.exact = False
    return False


def numerics(
    dtype: str | torch.dtype = torch.float32, exact: bool = False, device: str | torch.device = "cpu"
) -> Numerics:
    """The numerics class of blocks that compute here in ``dtype``; ``exact`` is what ``check_exact`` answered.

    The kernel set carries a fingerprint of what the libraries really compute: two CPUs of one instruction set may take
    different code inside them (MKL looks at the vendor too), and then do not belong to one class.
    """
    torch_dtype, torch_device = as_dtype(dtype), torch.device(device)
    version = torch.__version__.partition("+")[0]
    isa = torch.backends.cpu.get_cpu_capability().lower()
    if torch_device.type == "cuda":
        isa = "cuda-sm{}{}".format(*torch.cuda.get_device_capability(torch_device))
    kernels = f"torch-{version}-{_fingerprint(torch_dtype, torch_device)}"
    return Numerics(dtype_name(torch_dtype), "none", kernels, isa, exact)


def _probe(model: SpanModel) -> SpanModel:
    """One block of the span, since all have the same shapes; one with a window if there is one: more can go wrong."""
    order = sorted(range(len(model.blocks)), key=lambda i: (model.blocks[i].window is None, i))
    first = order[0]
    block = model.span.start + first
    probe = SpanModel(model.config, Span(block, block + 1), [model.blocks[first]], model.dtype, model.device)
    probe.exact = True
    return probe


def _rows_alone_equal_rows_together(probe: SpanModel) -> bool:
    """One new token each for 1 … 17 rows of different lengths: the same bits as each row by itself."""
    arena, pages = _arena(probe, ROWS_MAX)
    lengths = [1 + (5 * row) % 24 for row in range(ROWS_MAX)]
    context = [Segment(length, 0, pages[row]) for row, length in enumerate(lengths)]
    probe.run(_noise(probe, sum(lengths), 1), context, arena)
    tokens = _noise(probe, ROWS_MAX, 2)

    def step(rows: Iterable[int]) -> Tensor:
        chosen = list(rows)
        return probe.run(tokens[chosen], [Segment(1, lengths[r], pages[r]) for r in chosen], arena)

    alone = torch.cat([step([row]) for row in range(ROWS_MAX)])
    together = all(torch.equal(step(range(count)), alone[:count]) for count in range(2, ROWS_MAX + 1))
    backwards = step(range(ROWS_MAX - 1, -1, -1))  # a row's place in the batch must not matter either
    return together and torch.equal(backwards.flip(0), alone)


def _cuts_do_not_matter(probe: SpanModel) -> bool:
    """A sequence in one piece, beside copies of itself, and its end again in two steps of 1 … 17 tokens each."""
    hidden = _noise(probe, SEQUENCE, 3)
    arena, (pages, *_) = _arena(probe, 1)
    whole = probe.run(hidden, [Segment(SEQUENCE)])
    if not torch.equal(probe.run(hidden, [Segment(SEQUENCE, 0, pages)], arena), whole):
        return False
    copies = probe.run(hidden.repeat(COPIES, 1), [Segment(SEQUENCE)] * COPIES)
    if not torch.equal(copies, whole.repeat(COPIES, 1)):
        return False
    for size in range(1, ROWS_MAX + 1):
        for first in (SEQUENCE - 2 * size, SEQUENCE - size):
            y = probe.run(hidden[first : first + size], [Segment(size, first, pages)], arena)
            if not torch.equal(y, whole[first : first + size]):
                return False
    return True


def _length_does_not_matter(probe: SpanModel) -> bool:
    """Attention alone over a long sequence, where it has many key splits: whole against its last tokens one by one."""
    config = probe.config
    generator = torch.Generator().manual_seed(4)
    group = config.num_heads // config.num_kv_heads
    q = torch.randn(LONG, config.num_heads, config.head_dim, generator=generator)
    k, v = torch.randn(2, config.num_kv_heads, LONG, config.head_dim, generator=generator)
    start = LONG - 2 * ROWS_MAX

    def attend(first: int, last: int) -> Tensor:
        pieces = exact_pieces(last - first, first, 0, None, group)
        return exact_attention(q[first:last], k[:, :last], v[:, :last], pieces)

    whole = attend(start, LONG)
    return all(torch.equal(attend(at, at + 1), whole[at - start : at - start + 1]) for at in range(start, LONG, 3))


def _arena(probe: SpanModel, rows: int) -> tuple[KVArena, list[list[int]]]:
    size = 16
    per_row = SEQUENCE // size
    arena = probe.arena(rows * SEQUENCE, size)
    return arena, [list(range(row * per_row, (row + 1) * per_row)) for row in range(rows)]


def _noise(probe: SpanModel, tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, probe.config.hidden_size, generator=generator)


def _fingerprint(dtype: torch.dtype, device: torch.device) -> str:
    """A few bits of what products, exponentials and reductions give on fixed numbers, at exact mode's shapes."""
    x = torch.linspace(-1.7, 1.3, ROW_PAD * 96, dtype=torch.float64).sin().view(ROW_PAD, 96).to(device, dtype)
    w = torch.linspace(-2.3, 3.1, 64 * 96, dtype=torch.float64).cos().view(64, 96).to(device, dtype)
    with torch.inference_mode():
        product = Product(64, 96, dtype=dtype, device=device)
        product.exact = True
        product.fill(0, w)
        y = product(x).float()
        parts = [y, y.exp(), torch.nn.functional.silu(y), torch.linalg.vector_norm(y, dim=-1)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:6]
