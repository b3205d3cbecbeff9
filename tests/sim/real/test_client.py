"""A client as a process: what it is asked for, and its mistakes."""

from __future__ import annotations

from sim.measuring import Load, Pace
from sim.real.client import Job


def test_a_job_travels_as_text() -> None:
    job = Job(
        bootstrap=("/ip4/10.0.0.1/tcp/4001/p2p/x",), cache_dir="c", push="on", activations="fp32",
        loads=(Load(1), Load(8, "fp32")), pace=Pace(steps=3), repeats=2, prompt=(1, 2), new_tokens=4,
    )  # fmt: skip
    assert Job.of(job.text()) == job
