"""Kind "finetune": tokens per second forward and back, by batch size and by the length of a trained prompt.

The paper has such a table (the sixth of arXiv 2312.08361), whose figures were not found: its column says so, and
nothing is a gate. Ours are the product's passes, forward with each server's inputs kept at the client, then gradients
back, over the constants of ``sim.calibrated`` (BLOOM) and of data sheets (Llama). Going back, a server computes its
blocks forward again, for it keeps nothing.

Invariants: nothing is fitted here, and nothing says how fast this project is on such hardware.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sim.calibrated import SETUPS
from sim.kinds import Kind, Run
from sim.paper import FAR, NEAR, Net
from sim.rates import Protocol, Rates, TrainingJob, play
from sim.results import Outcome, Plot, Series, Table, combined

TEXT_TOKENS = 128
NOT_FOUND = "not found"
PROTOCOL = Protocol(activations="int8", window_bytes=None, in_flight=8)
"""The product's own: 8 bits forward, gradients without loss, windows that grow."""
NETS = {"near": NEAR, "far": FAR}


@dataclass(frozen=True, slots=True)
class Params:
    """Which rows."""

    setups: tuple[Literal["llama-3", "bloom-3"], ...] = ("llama-3", "bloom-3")
    networks: tuple[Literal["near", "far"], ...] = field(
        default=("near", "far"), metadata={"about": "1 Gbit/s and 5 ms, or 100 Mbit/s and 100 ms"}
    )
    batches: tuple[int, ...] = field(
        default=(1, 8, 32), metadata={"min": 1, "max": 256, "about": "sequences of 128 tokens each"}
    )
    prompts: tuple[int, ...] = field(
        default=(16, 64), metadata={"min": 0, "max": 896, "about": "trained tokens before each sequence"}
    )


def run(params: Params, how: Run) -> Outcome:
    """Every setup, network, batch and prompt."""
    batches, nets = (params.batches[:2], params.networks[:1]) if how.quick else (params.batches, params.networks)
    jobs = [
        TrainingJob(
            setup=SETUPS[setup], fit=SETUPS[setup].fit, protocol=PROTOCOL, net=NETS[net], sequences=batch,
            tokens=TEXT_TOKENS + prompt, seed=how.seed,
        )
        for batch in sorted(batches, reverse=True)  # the longest first
        for setup in params.setups
        for net in nets
        for prompt in params.prompts
    ]  # fmt: skip
    played = dict(zip(jobs, how.map(play, jobs, "fine-tuning"), strict=True))
    setups = [SETUPS[name] for name in params.setups]

    def place(job: TrainingJob) -> tuple[int, float, int, int]:
        return setups.index(job.setup), job.net.rtt_ms, job.sequences, job.tokens

    ordered = sorted(jobs, key=place)
    return Outcome(
        tables=(_table({job: played[job] for job in ordered}),),
        plots=tuple(_plot(setup, {job: played[job] for job in ordered}) for setup in params.setups),
        gates=(),
        results=tuple(_result(job, played[job]) for job in ordered),
        notes=("The figures of the paper's table were not found; nothing here is compared or gated.",),
        trace_hash=combined(played[job].trace for job in jobs),
    )


def _table(played: dict[TrainingJob, Rates]) -> Table:
    rows = tuple(
        (
            job.setup.title, job.net.mbit_per_s, job.net.rtt_ms, job.sequences, job.tokens - TEXT_TOKENS,
            NOT_FOUND, _rounded(rates.values[0]), NOT_FOUND, _rounded(rates.values[1]),
        )
        for job, rates in played.items()
    )  # fmt: skip
    columns = (
        "setup", "Mbit/s", "RTT ms", "batch", "prompt", "paper forward", "forward tokens/s", "paper backward",
        "backward tokens/s",
    )  # fmt: skip
    note = (
        f"Sequences of {TEXT_TOKENS} tokens after the prompt, which is counted, too. 8 bits forward, gradients in 16, "
        "parts of at most 1,024 tokens, the product's windows. No gate."
    )
    return Table("Fine-tuning: forward and backward", columns, rows, note)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _plot(setup: str, played: dict[TrainingJob, Rates]) -> Plot:
    mine = {job: rates for job, rates in played.items() if job.setup.name == setup}
    places = tuple(f"{_name(job.net)} {job.sequences}x{job.tokens}" for job in mine)
    series = tuple(
        Series(name, places, tuple(rates.values[index] for rates in mine.values()))
        for index, name in enumerate(("forward", "backward"))
    )
    return Plot(f"Fine-tuning, {SETUPS[setup].title}", "", "tokens/s", series, kind="bar")


def _name(net: Net) -> str:
    return next(name for name, known in NETS.items() if known == net)


def _result(job: TrainingJob, rates: Rates) -> dict[str, object]:
    return {
        "setup": job.setup.name,
        "network": str(job.net),
        "batch": job.sequences,
        "prompt": job.tokens - TEXT_TOKENS,
        "forward_tokens_per_s": rates.values[0],
        "backward_tokens_per_s": rates.values[1],
    }


KIND = Kind("finetune", "fine-tuning: tokens/s forward and back, by batch size and prompt length", Params, run)
