"""The activation codec: C++ on every instruction set here, its NumPy twin and the same scheme in torch operations.

One thread, best of several runs, all in one process; "wire" is what p2pllm does, through ``p2pllm.wire.tensor`` with
its checks and headers, the others are bare. ``us`` is per call, GB/s counts the bytes of the activations.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.common import arguments, machine, save, show
from p2pllm.wire import tensor
from p2pllm_native import codec as native

SHAPES = ((1, 512), (1, 4096), (1, 8192), (128, 4096), (1024, 4096))
DTYPES = ("fp32", "bf16")
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CODECS = (("int8", False), ("int8", True), ("bf16", False), ("fp16", False), ("fp32", False))


def activations(tokens: int, hidden: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Like a model's: every channel on a scale of its own, and six that are 60 times larger."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((tokens, hidden)) * rng.lognormal(0, 0.5, hidden)
    x[:, rng.choice(hidden, 6, replace=False)] *= 60
    return x.astype(np.float32)


def stored(x: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Float32 values in ``dtype``; bfloat16 as bit patterns."""
    return x if dtype == "fp32" else torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()


def best_us(work: Callable[[], object]) -> float:
    """Microseconds of one call: the best of five runs of about 30 ms each."""
    work()
    once = timeit.timeit(work, number=1)
    number = max(1, min(2000, int(0.03 / once)))
    return min(timeit.repeat(work, number=number, repeat=5)) / number * 1e6


def torch_encode(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same scheme in torch operations, without packing its parts into one payload."""
    wide = x.to(torch.float32)
    index = wide.abs().topk(native.outliers(x.shape[1]), dim=1).indices
    value = wide.gather(1, index).to(torch.float16)
    rest = wide.scatter(1, index, 0.0)
    absmax = rest.abs().amax(dim=1, keepdim=True)
    level = (rest * (127 / absmax)).round_().clamp_(-127, 127).to(torch.int8)
    return absmax / 127, index, value, level


def torch_decode(parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
    """The way back."""
    scale, index, value, level = parts
    return (level.to(torch.float32) * scale).scatter_(1, index, value.to(torch.float32)).to(dtype)


def measure(tokens: int, hidden: int, dtype: str) -> list[dict[str, Any]]:
    """Every implementation on one tensor."""
    x = stored(activations(tokens, hidden), dtype)
    rows = []

    def add(name: str, encode: Callable[[], object], decode: Callable[[], object]) -> None:
        encode_us, decode_us = best_us(encode), best_us(decode)
        row: dict[str, Any] = {"tensor": f"[{tokens},{hidden}] {dtype}", "codec": name}
        row |= {"encode us": encode_us, "decode us": decode_us}
        rows.append(row | {"encode GB/s": x.nbytes / encode_us / 1e3, "decode GB/s": x.nbytes / decode_us / 1e3})

    header, payload = tensor.encode(x, dtype, "int8")
    out, room = np.empty_like(x), bytearray(header.size)
    add("wire", lambda: tensor.encode(x, dtype, "int8"), lambda: tensor.decode(header, payload, dtype))
    add(
        "wire, reused memory",
        lambda: tensor.encode(x, dtype, "int8", out=room),
        lambda: tensor.decode(header, payload, dtype, out=out),
    )
    usual = native.isa()
    for isa in native.available():
        native.use(isa)
        add(isa, lambda: native.encode_int8(x, dtype, room), lambda: native.decode_int8(payload, dtype, out))
    native.use(usual)
    t = torch.from_numpy(x) if dtype == "fp32" else torch.from_numpy(x).view(torch.bfloat16)
    parts = torch_encode(t)
    add("torch ops", lambda: torch_encode(t), lambda: torch_decode(parts, TORCH_DTYPES[dtype]))
    return rows


def sizes(hidden: int) -> list[dict[str, Any]]:
    """Bytes and errors of every codec on 128 tokens that look like a model's."""
    x = activations(128, hidden)
    ordinary = np.abs(x) < np.quantile(np.abs(x), 0.99)
    rows = []
    for codec, zstd in CODECS:
        header, payload = tensor.encode(x, "fp32", codec, zstd=zstd)
        error = tensor.decode(header, payload, "fp32") - x
        row: dict[str, Any] = {"codec": codec + (" + zstd" if zstd else ""), "bytes/token": header.size / len(x)}
        row["x bf16"] = header.size / tensor.payload_size("bf16", *x.shape)
        row["error, all"] = float(np.linalg.norm(error) / np.linalg.norm(x))
        row["error, ordinary"] = float(np.linalg.norm(error[ordinary]) / np.linalg.norm(x[ordinary]))
        rows.append(row)
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, Mapping[str, float]]:
    """Per tensor, how many times as long the twin and torch take as the kernels that p2pllm uses here."""
    found: dict[str, Mapping[str, float]] = {}
    for name in dict.fromkeys(row["tensor"] for row in rows):
        by = {row["codec"]: row["encode us"] + row["decode us"] for row in rows if row["tensor"] == name}
        found[name] = {other: by[other] / by[native.isa()] for other in ("numpy", "torch ops")}
    return found


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    timings = [row for shape in SHAPES for dtype in DTYPES for row in measure(*shape, dtype)]
    results = {
        "kernels": native.isa(),
        "timings": timings,
        "times as long as the kernels": ratios(timings),
        "sizes": {hidden: sizes(hidden) for hidden in (512, 4096)},
    }
    save(args.out, results)
    if args.json:
        json.dump({"machine": machine(), **results}, sys.stdout, indent=1)
        return
    show(f"Activation codec, one thread; p2pllm uses: {native.isa()}", timings)
    show(
        "Encode + decode, times as long as the kernels in use",
        [{"tensor": name, **by} for name, by in ratios(timings).items()],
    )
    for hidden in (512, 4096):
        show(f"Size and error, hidden {hidden}, six channels x 60", sizes(hidden))


if __name__ == "__main__":
    main()
