"""Devices as cost models: how long a pass takes on hardware that is not at hand, from published figures.

A step reads the weights of its blocks and the caches of its rows once, or is bound by arithmetic where many rows share
it; a batch is bound by arithmetic. Peak rates are the vendors'; what is reached of them are two efficiencies, and what
every pass costs beside them is a constant. Each figure has its source.

Sources of the efficiencies:
    reading: 0.8 of the memory bandwidth, the assumption of reference models of decoding; single-stream decoding through
        a framework reaches less, which ``pass_s`` and the paper's own cells (``sim.calibrated``) show;
    arithmetic: the offloading rows of arXiv 2209.01188 pass 8,192 tokens of BLOOM-176B through one A100 in 42.6 s
        beside the loading: 2 x 172.6e9 x 8192 / 42.6 s = 66 TFLOP/s, 0.213 of the data sheet.

Invariants: pure; nothing here says anything about this project's own speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import trio

from p2pllm.ports import Compute
from p2pllm.types import Cost, WorkKind
from sim.compute import CostModel, SimCompute
from sim.shapes import Shape

T = TypeVar("T")

READ_EFFICIENCY = 0.8
ARITHMETIC_EFFICIENCY = 0.213
GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True)
class Device:
    """A device, by its data sheet.

    Attributes:
        memory_bytes: what it holds.
        read_bytes_per_s: peak memory bandwidth.
        flop_per_s: peak of dense products, by the dtype that the products are computed in.
        block_s: launching one block's kernels, whatever their size: some ten launches of about 10 us each.
        source: of the peaks.
    """

    name: str
    memory_bytes: int
    read_bytes_per_s: float
    flop_per_s: Mapping[str, float]
    source: str
    block_s: float = 100e-6

    def read_s(self, size_bytes: float) -> float:
        """Reading so much of its memory."""
        return size_bytes / (READ_EFFICIENCY * self.read_bytes_per_s)

    def product_s(self, flop: float, dtype: str = "float16") -> float:
        """Products of so many operations."""
        return flop / (ARITHMETIC_EFFICIENCY * self.flop_per_s[dtype])


def _device(
    name: str, memory_gb: int, read_gb_per_s: float, half: float, single: float, source: str, block_s: float = 100e-6
) -> Device:
    flop_per_s = MappingProxyType({"float16": half * TERA, "float32": single * TERA})
    return Device(name, memory_gb * GB, read_gb_per_s * GB, flop_per_s, source, block_s)


DEVICES = {
    device.name: device
    for device in (
        _device("a100-80gb", 80, 2039, 312, 19.5, "NVIDIA A100 80GB SXM data sheet, 2021; fp16 tensor cores, dense"),
        _device("rtx-3090", 24, 936, 71, 35.6, "NVIDIA GA102 white paper: fp16 tensor cores with fp32 sums, dense"),
        _device("rtx-3060", 12, 360, 25.6, 12.7, "NVIDIA RTX 3060 12 GB; fp16 tensor cores with fp32 sums, dense"),
        _device("rtx-2080ti", 11, 616, 53.8, 13.4, "NVIDIA Turing white paper: fp16 tensor cores with fp32 sums"),
        _device("rtx-a4000", 16, 448, 76.7, 19.2, "NVIDIA RTX A4000 data sheet: half of its sparse tensor figure"),
        _device("rtx-a5000", 24, 768, 111.1, 27.8, "NVIDIA RTX A5000 data sheet: half of its sparse tensor figure"),
        _device("t4", 16, 320, 65, 8.1, "NVIDIA T4 data sheet, 2019; fp16 tensor cores"),
        _device(
            "gtx-1080ti", 11, 484, 11.3, 11.3,
            "NVIDIA GTX 1080 Ti; its fp16 units are a 64th of fp32, so products are computed in fp32",
        ),
        _device("cpu-8", 64, 51.2, 0.9, 0.9, "8 cores, 3.5 GHz, two AVX2 FMA units; two channels of DDR4-3200", 0),
    )
}  # fmt: skip
"""By the names that scenarios use."""

ATTENTION_FLOP = 4
"""Per token, past token and number of a hidden state: scores and sums."""


def cost_model(device: Device, shape: Shape, quantization: str = "int8") -> CostModel:
    """What passes of a server on ``device`` take, for blocks of ``shape`` held in ``quantization``.

    Attention within a new sequence is left out: less than 1 % of the products at 1,024 tokens of such models. A pass
    backwards computes its inputs' way forward again, and the gradients of the inputs: weights are frozen.
    """
    block_bytes, config = shape.block_bytes(quantization), shape.config

    def model(cost: Cost, name: str) -> float:
        if cost.kind is WorkKind.CLIENT:
            return 0.0
        blocks = cost.blocks
        if cost.kind is WorkKind.STEP:
            read_s = device.read_s(blocks * (block_bytes + cost.context * shape.cache_bytes))
            flop = blocks * (2 * shape.block_params * cost.tokens + ATTENTION_FLOP * cost.context * config.hidden_size)
            return blocks * device.block_s + max(read_s, device.product_s(flop))
        passes = 2 if cost.kind is WorkKind.BACKWARD else 1
        flop = passes * blocks * 2 * shape.block_params * cost.tokens
        return passes * blocks * device.block_s + max(device.read_s(blocks * block_bytes), device.product_s(flop))

    return model


def client_model(device: Device, shape: Shape) -> CostModel:
    """What a client's own passes take: the head in 16 bits is read once for each of them, or bound by arithmetic."""

    def model(cost: Cost, name: str) -> float:
        if cost.kind is not WorkKind.CLIENT:
            return 0.0
        return max(device.read_s(shape.head_bytes), device.product_s(shape.head_bytes * cost.tokens, "float32"))

    return model


def free(cost: Cost, device: str) -> float:
    """Nothing takes any time."""
    return 0.0


class Attached:
    """A server at a device that it may share with others: its own software's time per pass, then the device's.

    See ``ports.Compute``. The software's time passes beside the device: others may use it meanwhile.
    """

    def __init__(self, device: Compute, overhead_s: float = 0.0) -> None:
        self._device = device
        self._overhead_s = overhead_s

    async def run(self, work: Callable[[], T], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[T, float]:
        """See ``ports.Compute.run``."""
        if self._overhead_s:
            await trio.sleep(self._overhead_s)
        return await self._device.run(work, cost, devices)


def attach(
    gpus: Mapping[str, int], models: Mapping[int, CostModel], overhead_s: float = 0.0, others: CostModel = free
) -> Callable[[str], Compute]:
    """Each host's compute: ``gpus`` tells on which physical device it is, ``models`` what passes of that one take.

    Hosts that are not named (clients) get a device of their own, on which passes take what ``others`` says.
    """
    shared = {gpu: SimCompute(model) for gpu, model in models.items()}

    def compute(name: str) -> Compute:
        return Attached(shared[gpus[name]], overhead_s) if name in gpus else SimCompute(others)

    return compute
