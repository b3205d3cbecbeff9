"""What passes cost in virtual time, for experiments that repeat the papers' tables; each figure with its source.

Sources: [S] a cell of arXiv 2312.08361 that was seen, [R] one that is only remembered, [F] fitted to such cells, [A] an
assumption of ours. Nothing here says anything about this project's own speed: a cost model makes protocols comparable
on hardware that is not at hand.

Invariants: pure; constants are values of frozen dataclasses, and formulas are closed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from p2pllm.types import Cost, WorkKind
from sim.compute import CostModel


@dataclass(frozen=True, slots=True)
class FailureSetup:
    """The setting of the paper's failure table: BLOOM-7.1B on four GTX 1080 Ti, one sequence, steps per second.

    A hand-off of activations to a stage, or of the last stage's output to the client, fails with some probability;
    the stage then has lost its caches.

    Attributes:
        spans: blocks per stage; 8/7/8/7 [S].
        handoff_s: one hand-off; a millisecond, as in a machine room [A].
        step_s: a step with empty caches, hand-offs included. Fitted together with ``cached_s`` to what plain caching
            reaches without failures, 17.1 steps/s at 128 tokens and 15.5 at 1,024 [F from R].
        cached_s: more per token in the caches.
        pass_s: a pass of whole prefixes through all blocks, without caches. Fitted with ``token_s`` to cache-less
            inference, 3.44 and 0.89 steps/s [F from R]; also what a prefill or a replay costs.
        token_s: more per token of the prefix.
        noticed_s: until a failed hand-off is noticed [A]; baselines get that for nothing.
        hour_s: a run that takes longer counts as not done [S].
    """

    spans: tuple[int, ...] = (8, 7, 8, 7)
    handoff_s: float = 0.001
    step_s: float = 1 / 17.1 - 64 * (1 / 15.5 - 1 / 17.1) / 448
    cached_s: float = (1 / 15.5 - 1 / 17.1) / 448
    pass_s: float = 1 / 3.44 - 64 * (1 / 0.89 - 1 / 3.44) / 448
    token_s: float = (1 / 0.89 - 1 / 3.44) / 448
    noticed_s: float = 0.5
    hour_s: float = 3600.0

    @property
    def blocks(self) -> int:
        return sum(self.spans)

    @property
    def handoffs(self) -> int:
        """Per step: one to each stage, one back to the client [F: the seen restart cell fits 5, not 4 or 6]."""
        return len(self.spans) + 1

    def step_at(self, cached: float) -> float:
        """Seconds of one step with so many tokens in the caches, with plain caching."""
        return self.step_s + self.cached_s * cached

    def cost_model(self) -> CostModel:
        """For the devices of the stages; the client's share is in the steps already."""
        work_s = self.step_s - self.handoffs * self.handoff_s

        def model(cost: Cost, device: str) -> float:
            if cost.kind is WorkKind.CLIENT:
                return 0.0
            if cost.kind is WorkKind.STEP:
                return cost.blocks / self.blocks * (work_s + self.cached_s * cost.context)
            return cost.blocks / self.blocks * (self.pass_s + self.token_s * cost.tokens)

        return model

    @classmethod
    def published(cls, spans: tuple[int, ...] = (8, 7, 8, 7)) -> FailureSetup:
        """The paper's own algorithm: slower without failures than plain caching, and its replay, token by token.

        Its steps are fitted to what it reaches without failures, 11.4 and 10.7 steps/s [F from R]. A replay feeds a
        stage what it had seen at the speed of plain decoding, 17.1 steps/s for all stages [R]; noticing is free.
        """
        base, cached_s = cls(spans), (1 / 10.7 - 1 / 11.4) / 448
        return replace(
            base, step_s=1 / 11.4 - 64 * cached_s, cached_s=cached_s, pass_s=0.0, token_s=1 / 17.1,
            noticed_s=base.handoff_s,
        )  # fmt: skip

    # -- the algorithms of the table, by formula -------------------------------------------------------------------

    def restart_rate(self, tokens: int, failure: float) -> float:
        """Steps/s of plain caching that begins anew after every failure; 0 when it takes longer than an hour.

        Expected steps until ``tokens`` of them succeed in a row; a step that fails counts whole, noticing is free.
        """
        steps = self.restart_steps(tokens, failure)
        took_s = steps * self.step_at(tokens / 2)
        return tokens / took_s if took_s <= self.hour_s else 0.0

    def restart_steps(self, tokens: int, failure: float) -> float:
        """How many steps ``restart_rate`` expects."""
        passes = (1 - failure) ** self.handoffs
        return float(tokens) if passes == 1.0 else (math.pow(passes, -tokens) - 1) / (1 - passes)

    def cacheless_rate(self, tokens: int) -> float:
        """Steps/s when every step computes the whole prefix; repeating a failed hand-off costs next to nothing."""
        return 1 / (self.pass_s + self.token_s * tokens / 2)

    def replay_rate(self, tokens: int, failure: float) -> float:
        """Steps/s of an ideal fail-over: each failure costs noticing it, and a replay through the lost stage."""
        replay_s = (self.pass_s + self.token_s * tokens / 2) / len(self.spans)
        return 1 / (self.step_at(tokens / 2) + self.handoffs * failure * (self.noticed_s + replay_s))

    def restart_trial(self, tokens: int, failure: float, rng: random.Random) -> int:
        """Play ``restart_rate`` once: how many steps it took."""
        steps = done = 0
        while done < tokens:
            steps += 1
            failed = any(rng.random() < failure for _ in range(self.handoffs))
            done = 0 if failed else done + 1
        return steps


PAPER_FAILURES: dict[str, dict[tuple[int, float], tuple[float | None, str]]] = {
    "caching with restarts": {
        (128, 0.0): (17.1, "R"), (128, 1e-4): (16.7, "R"), (128, 1e-3): (12.0, "R"), (128, 1e-2): (0.18, "R"),
        (1024, 0.0): (15.5, "R"), (1024, 1e-4): (11.8, "R"), (1024, 1e-3): (0.48, "S"), (1024, 1e-2): (None, "S"),
    },
    "cache-less": {
        (128, 0.0): (3.44, "R"), (128, 1e-4): (3.44, "R"), (128, 1e-3): (3.44, "R"), (128, 1e-2): (3.44, "R"),
        (1024, 0.0): (0.89, "R"), (1024, 1e-4): (0.89, "R"), (1024, 1e-3): (0.89, "R"), (1024, 1e-2): (0.89, "R"),
    },
    "fault-tolerant": {
        (128, 0.0): (11.4, "R"), (128, 1e-4): (11.4, "R"), (128, 1e-3): (10.6, "R"), (128, 1e-2): (3.38, "R"),
        (1024, 0.0): (10.7, "R"), (1024, 1e-4): (10.7, "R"), (1024, 1e-3): (7.76, "S"), (1024, 1e-2): (2.17, "S"),
    },
}  # fmt: skip
"""The paper's failure table, steps/s by (tokens, failure rate); None: not done within an hour."""
