"""Setups of the papers' performance tables, and the constants that were fitted to named cells of them.

What was fixed before anything was fitted, and why:
    BLOOM: the client relays between servers. Its rows stood in the authors' README in March 2023; servers began to push
        in July 2023. Llama 2 was measured after that: its servers push.
    Inference: hidden states in 16 bits; 18 ms of software per hop, the constant of the authors' own router; the
        attention's cost grows with every token in the caches and cannot be derived from bandwidths (13 to 27 times the
        reading of the caches), so it needs the cell at 2,048.
    Forwards: 8 bits, micro-batches of 1,024 tokens, all in flight, each on a stream of its own with a window of 256
        KiB: the cells show about 14 round trips per hop for 128 tokens, which only a window or a slow start explains. A
        pass costs ``pass_s`` however few tokens it has: a step of BLOOM on 8 GPUs of one host [R], not fitted.
    Everybody is as far from everybody, the client included.
    Twelve servers are virtual: four of them share each of the three GPUs.

Fitted: for BLOOM ``step_s`` and ``cached_s`` to 1.71 and 1.54 steps/s and ``token_s`` to 253.6 tokens/s; for Llama 2
``step_s`` and ``cached_s`` to 2.29 and 2.02. The values here are those of a closed formula; the experiment solves for
them again on the same cells, because frames, headers and round trips of this product's protocol shift them a little.

Invariants: pure; a fit is a value. Nothing here says anything about this project's own speed: a fit makes protocols
comparable on the same compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2pllm.types import Cost, WorkKind
from sim.compute import CostModel
from sim.devices import DEVICES, cost_model
from sim.shapes import LLAMA_2_70B, SHAPES

FITTED_LENGTH = 128
"""``step_s`` is a step with so many tokens in the caches."""
LONG_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants of one model's cells; devices hold ``blocks`` blocks in all.

    Attributes:
        step_s: of one step: the client's share and all blocks, without the network and without ``overhead_s``.
        client_s: the client's share of it. The papers do not tell it; it matters only where clients share servers.
        cached_s: more per token in the caches, over all blocks.
        overhead_s: of the software of each hop.
        pass_s: of a forward's pass through all blocks, whatever it holds; token_s: more per token, also of every
            further row of a step that several share, so that no way of cutting work makes the devices faster.
    """

    blocks: int
    step_s: float
    client_s: float
    cached_s: float
    pass_s: float
    token_s: float
    overhead_s: float = 0.018

    def cost_model(self) -> CostModel:
        """For the devices of servers."""
        empty_s = self.step_s - self.client_s - self.token_s - self.cached_s * FITTED_LENGTH

        def model(cost: Cost, device: str) -> float:
            share = cost.blocks / self.blocks
            if cost.kind is WorkKind.CLIENT:
                return 0.0
            if cost.kind is WorkKind.STEP:
                return share * (empty_s + self.token_s * cost.tokens + self.cached_s * cost.context)
            passes = 2 if cost.kind is WorkKind.BACKWARD else 1  # forward again, then back: weights are frozen
            return passes * share * (self.pass_s + self.token_s * cost.tokens)

        return model

    def client_model(self) -> CostModel:
        """For the client's own ends, in generation; what they take in forwards is in ``token_s`` already."""
        return lambda cost, device: self.client_s if cost.kind is WorkKind.CLIENT else 0.0

    def step_at(self, hops: int, crossings: int, crossing_s: float, length: int) -> float:
        """The closed formula of one step: compute, software, and ``crossing_s`` of network for each crossing."""
        compute_s = self.step_s + self.cached_s * (length - FITTED_LENGTH)
        return compute_s + hops * self.overhead_s + crossings * crossing_s

    def solved_steps(self, measured: float, short: float, long: float) -> Fit:
        """With the constants that hit two cells, ``short`` and ``long`` steps/s at 128 and at 2,048 tokens.

        ``measured``: steps/s at 128 with these constants. A step is linear in both, and the network's share does not
        depend on the length, so this is exact.
        """
        late_s = 1 / short - 1 / measured
        return replace(
            self, step_s=self.step_s + late_s, cached_s=(1 / long - 1 / short) / (LONG_LENGTH - FITTED_LENGTH)
        )

    def solved_forwards(self, measured: float, wanted: float, tokens: int, critical: float) -> Fit:
        """With the ``token_s`` that hits one cell: tokens/s measured and wanted for ``tokens`` tokens in all.

        ``critical``: tokens that pass all blocks, one after the other, on the longest way through the pipeline.
        """
        return replace(self, token_s=self.token_s + (tokens / wanted - tokens / measured) / critical)


BLOOM = Fit(blocks=70, step_s=0.514, client_s=0.261, cached_s=33.6e-6, pass_s=0.25, token_s=8.51e-3)
"""On A100: the client's share is what a step of one host with 8 GPUs, .253 s [R], leaves."""
_T4, _LLAMA = DEVICES["t4"], LLAMA_2_70B
LLAMA = Fit(
    blocks=80, step_s=0.372, client_s=0.02, cached_s=30.4e-6,
    pass_s=_T4.read_s(80 * _LLAMA.block_bytes("nf4")), token_s=_T4.product_s(80 * 2 * _LLAMA.block_params),
)  # fmt: skip
"""On T4: the head is a fourteenth of BLOOM's. Of forwards every cell of the paper is only recalled, so nothing is
fitted to them: data sheets alone."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Servers of one row of the tables.

    Attributes:
        table: whose constants it shares.
        blocks: of each server, in the order of the chain; gpus: which physical device each of them is on.
        push: whether servers push in the paper's runs, by what was fixed beforehand.
        tolerance: of cells that were seen and not fitted to.
        devices: by server, where no fit but data sheets tell what blocks take.
        regions: by server and then of the client, where hosts are far from each other; mbit_per_s: by server.
    """

    name: str
    title: str
    table: str
    shape: str
    quantization: str
    fit: Fit
    blocks: tuple[int, ...]
    gpus: tuple[int, ...]
    push: bool = False
    tolerance: float = 0.15
    devices: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    mbit_per_s: tuple[float, ...] = ()

    @property
    def servers(self) -> int:
        return len(self.blocks)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First block and the block after the last, per server."""
        starts = [sum(self.blocks[:i]) for i in range(self.servers)]
        return tuple((start, start + count) for start, count in zip(starts, self.blocks, strict=True))

    def cost_model(self, server: int, fit: Fit) -> CostModel:
        """Of a server's device."""
        if not self.devices:
            return fit.cost_model()
        return cost_model(DEVICES[self.devices[server]], SHAPES[self.shape], self.quantization)

    def crossings(self, push: bool) -> int:
        """Messages of one step that follow each other."""
        return self.servers + 1 if push else 2 * self.servers


_A100S = Setup(
    "bloom-3", "BLOOM-176B, 3 x A100", "bloom", "bloom-176b", "int8", BLOOM, (24, 23, 23), (0, 1, 2)
)  # fmt: skip
_VIRTUAL = Setup(
    "bloom-12", "BLOOM-176B, 12 virtual servers", "bloom", "bloom-176b", "int8", BLOOM,
    (7, 7, 7, 3, 7, 7, 7, 2, 7, 7, 7, 2), (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2),
)  # fmt: skip
"""Nine of them hold seven blocks, the others what is left [R: 3 each, 72 in all]."""
_T4S = Setup(
    "llama-3", "Llama-2-70B, 3 x T4", "llama", "llama-2-70b", "nf4", LLAMA, (27, 27, 26), (0, 1, 2), push=True,
    tolerance=0.05,
)  # fmt: skip
_REAL = (
    ("rtx-3090", 8, "frankfurt", 1000), ("rtx-2080ti", 3, "dallas", 300), ("rtx-a5000", 6, "london", 1000),
    ("rtx-2080ti", 3, "toronto", 100), ("rtx-3060", 4, "madrid", 300), ("rtx-a5000", 6, "washington", 1000),
    ("rtx-a4000", 5, "frankfurt", 300), ("rtx-2080ti", 3, "dallas", 100), ("rtx-a5000", 6, "london", 300),
    ("rtx-3090", 8, "toronto", 1000), ("rtx-2080ti", 3, "madrid", 100), ("rtx-a4000", 5, "washington", 300),
    ("rtx-3060", 4, "frankfurt", 100), ("rtx-a5000", 6, "dallas", 1000),
)  # fmt: skip
REAL_14 = Setup(
    "bloom-14", "BLOOM-176B, 14 servers in Europe and North America", "bloom", "bloom-176b", "int8", BLOOM,
    tuple(blocks for _, blocks, _, _ in _REAL), tuple(range(14)), devices=tuple(name for name, _, _, _ in _REAL),
    regions=(*(region for _, _, region, _ in _REAL), "frankfurt"), mbit_per_s=tuple(mbit for *_, mbit in _REAL),
)  # fmt: skip
"""The cards are the paper's, and 100 to 1,000 Mbit/s [S]; who sat where with which of them, and which blocks, nobody
wrote down: every second one is across the ocean, blocks as many as fit and are needed [assumed]. Reported only."""

SETUPS = {setup.name: setup for setup in (_A100S, _VIRTUAL, _T4S, REAL_14)}
