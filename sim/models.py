"""Models by the names that scenarios give them, and the devices that compute them.

``toy`` (``toy:12`` with twelve blocks) is exact by construction and costs nothing; ``demo`` or a folder is a real
checkpoint with real tokens; ``bloom-176b`` and the other shapes move the bytes of a model without having its weights.

Invariants: pure but for reading a checkpoint; a mistake is one line that says which names there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from p2pllm.errors import UserError
from p2pllm.types import Cost, WorkKind
from sim.checkpoints import CheckpointModel
from sim.compute import CostModel
from sim.devices import DEVICES, client_model, cost_model
from sim.kinds import nearest
from sim.shapes import SHAPES, ShapeModel
from sim.swarm import Blocks
from sim.toy import CONTEXT, ToyModel

TOY_BLOCKS = 8
DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Passes:
    """What passes of a device take; a table of a scenario.

    Attributes:
        device: by a data sheet (``sim.devices``), for a shape; empty: by the three figures.
        quantization: of the weights that the device reads.
        pass_ms: every pass.
        block_ms: more per block that tokens pass through.
        token_ms: more per new token and block.
    """

    device: str = ""
    quantization: str = "int8"
    pass_ms: float = field(default=5.0, metadata={"min": 0.0, "max": 60_000.0})
    block_ms: float = field(default=0.0, metadata={"min": 0.0, "max": 60_000.0})
    token_ms: float = field(default=0.0, metadata={"min": 0.0, "max": 60_000.0})

    def costs(self, model: str, client: bool) -> CostModel:
        """Seconds of a pass.

        Raises:
            UserError: there is no such device, or the model has no sizes.
        """
        if not self.device:
            return self._figures
        if self.device not in DEVICES:
            raise UserError(
                f"no device {self.device!r}{nearest(self.device, DEVICES)}; there are: {', '.join(DEVICES)}"
            )
        if model not in SHAPES:
            raise UserError(
                f"device {self.device!r} needs a model with sizes ({', '.join(SHAPES)}); give pass_ms instead"
            )
        if client:
            return client_model(DEVICES[self.device], SHAPES[model])
        return cost_model(DEVICES[self.device], SHAPES[model], self.quantization)

    def _figures(self, cost: Cost, device: str) -> float:
        if cost.kind is WorkKind.CLIENT:
            return self.pass_ms / 1000
        return (self.pass_ms + cost.blocks * (self.block_ms + cost.tokens * self.token_ms)) / 1000


def blocks_of(model: str, tokens_max: int = CONTEXT) -> Blocks:
    """The model of that name; ``tokens_max`` is what a toy's context shall hold.

    Raises:
        UserError: there is none.
    """
    name, _, count = model.partition(":")
    if name == "toy" and (count.isdigit() and int(count) >= 1 if count else ":" not in model):
        return ToyModel(int(count or TOY_BLOCKS), max(CONTEXT, tokens_max))
    if model in SHAPES:
        return ShapeModel(SHAPES[model])
    if model == DEMO or (model and Path(model).is_dir()):
        return CheckpointModel(model)
    there = ["toy", "toy:BLOCKS", DEMO, *SHAPES]
    raise UserError(
        f"no model {model!r}{nearest(model, there)}; there are: {', '.join(there)}, or a checkpoint's folder"
    )
