"""Users come when the seed says, ask for what it says, and every job ends in a state that tells why."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pllm.config import local
from p2pllm.errors import UserError
from p2pllm.types import Span
from sim.compute import SimCompute, flat_cost
from sim.expected import Expected
from sim.jobs import Job, right
from sim.network import SimWorld
from sim.nodes import Nodes, NodeSpec
from sim.run import run
from sim.toy import VOCAB, ToyModel
from sim.workload import Arrival, Tail, Users, Workload, draw_length, longest, read_trace

TOY = ToyModel(2)
ORIGIN_S = 10.0


@asynccontextmanager
async def nodes(*clients: str, pass_s: float = 0.01) -> AsyncIterator[Nodes]:
    """One server of the whole toy, and clients that are up at ``ORIGIN_S``."""
    base = local()
    config = replace(
        base,
        server=replace(base.server, cache_tokens=2048, exact=True),
        client=replace(base.client, activations="fp32", exact=True),
    )
    async with SimWorld(2, 0.01, config.net) as world:
        made = Nodes(world, TOY, config, lambda name: SimCompute(flat_cost(pass_s if name == "s" else 0.001)))
        await made.start("boot", NodeSpec("bootstrap"))
        await made.start("s", NodeSpec("server", Span(0, 2)))
        for name in clients:
            await made.start(name, NodeSpec("client"))
        await trio.sleep_until(ORIGIN_S)
        yield made


def users(made: Nodes, spec: Workload, seconds: float = 30.0) -> Users:
    return Users(made.world, spec, VOCAB, lambda: made.of("client"), ORIGIN_S, seconds)


async def played(made: Nodes, spec: Workload, seconds: float = 30.0) -> Users:
    some = users(made, spec, seconds)
    await some.run()
    await some.settle()
    assert some.running == 0
    return some


@pytest.mark.parametrize(
    ("length", "low", "high"), [(7, 7, 7), ((3, 5), 3, 5), (Tail(20, 1.0, 60), 1, 60), (Tail(1, 3.0, 2), 1, 2)]
)
def test_lengths(length, low, high):
    rng = random.Random(1)
    drawn = [draw_length(length, rng) for _ in range(300)]
    assert (min(drawn), max(drawn), longest(length)) == (low if low != 1 else min(drawn), high, high)
    assert min(drawn) >= low


def test_half_of_a_tail_is_shorter_than_its_median():
    rng = random.Random(1)
    drawn = sorted(draw_length(Tail(50, 0.8, 10_000), rng) for _ in range(2001))
    assert drawn[1000] == pytest.approx(50, rel=0.1)


def test_poisson_arrivals_follow_from_the_seed_alone():
    async def jobs(pass_s: float) -> list[Job]:
        async with nodes("a", "b", pass_s=pass_s) as made:
            return (await played(made, Workload(rate_per_s=1.0, new_tokens=(2, 6)), 60.0)).jobs

    fast, slow = run(partial(jobs, 0.001)), run(partial(jobs, 0.05))
    assert [(job.began_s, job.client, job.ask) for job in fast] == [(job.began_s, job.client, job.ask) for job in slow]
    assert 40 < len(fast) < 80
    assert {job.client for job in fast} == {"a", "b"}
    assert all(job.state == "done" and right(job, Expected(TOY)) for job in (*fast, *slow))


async def test_a_user_in_a_closed_loop_waits_for_the_answer_and_thinks():
    spec = Workload(arrivals="closed", users=3, think_s=2.0, new_tokens=10)
    async with nodes("a", "b", pass_s=0.1) as made:
        some = await played(made, spec)
        assert {job.client for job in some.jobs} == {"a", "b"}
        assert 15 < len(some.jobs) < 40
        for user in range(2):
            mine = [job for job in some.jobs if job.client == "ab"[user]]
            at_once = max(sum(j.began_s <= job.began_s < (j.ended_s or math.inf) for j in mine) for job in mine)
            assert at_once <= 2 - user, "two users sit at a, one at b"


async def test_a_trace_says_when_and_where(tmp_path: Path):
    path = tmp_path / "arrivals.csv"
    path.write_text("at_s,client,prompt_tokens,new_tokens\n5.5,b,7,3\n1,,,\n400,a,1,1\n")
    assert read_trace(path) == [Arrival(1.0), Arrival(5.5, "b", 7, 3), Arrival(400.0, "a", 1, 1)]
    async with nodes("a", "b") as made:
        some = await played(made, Workload(arrivals="trace", trace=path, start_s=2.0, new_tokens=4))
        first, second = some.jobs
        assert (first.began_s, second.began_s) == (ORIGIN_S + 3.0, ORIGIN_S + 7.5)
        assert (second.client, second.ask.prompt_tokens, len(second.tokens[0])) == ("b", 7, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("when\n1\n", "the columns are at_s"),
        ("at_s,colour\n1,red\n", "the columns are at_s"),
        ("at_s\n1\nsoon\n", "line 3: could not convert"),
        ("at_s\n-1\n", "line 2: moments are 0 or more"),
        ("at_s,new_tokens\n1,0\n", "numbers of tokens 1 or more"),
    ],
)
def test_traces_that_are_none(text, told, tmp_path: Path):
    path = tmp_path / "arrivals.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as error:
        read_trace(path)
    assert str(path) in str(error.value)


def test_a_trace_belongs_to_arrivals_from_one():
    with pytest.raises(ValueError, match="both"):
        Workload(arrivals="trace")
    with pytest.raises(ValueError, match="larger bound first"):
        Workload(new_tokens=(9, 3))


async def test_jobs_end_with_their_client_their_time_and_their_errors():
    async with nodes("a", pass_s=0.1) as made:
        some = users(made, Workload(arrivals="closed", think_s=0.0, new_tokens=100, timeout_s=5.0), 20.0)
        made.world.nursery.start_soon(some.run)
        await trio.sleep(12.0)
        made.kill("a")
        await trio.sleep(30.0)
        assert [(job.state, job.error) for job in some.jobs] == [
            ("late", "given up after 5 s"), ("late", "given up after 5 s"), ("cut", "its client died"),
        ]  # fmt: skip
        assert all(right(job, Expected(TOY)) for job in some.jobs), "what came was right, as far as it came"
        nobody = await played(made, Workload("more", rate_per_s=10.0, jobs_max=3, start_s=40.0), 60.0)
        assert [(job.state, job.error) for job in nobody.jobs] == [("cut", "no client was up")] * 3
        await made.restart("a")
        made.kill("s")
        await trio.sleep(5.0)
        poor = await played(made, Workload("poor", rate_per_s=1.0, jobs_max=1, start_s=60.0), 300.0)
        assert poor.jobs[0].state == "failed"
        assert poor.jobs[0].error.startswith(("HopLost", "CoverageError")), "whichever was noticed first"
        assert right(poor.jobs[0], Expected(TOY)) is None


@pytest.mark.parametrize("job", ["generate", "forward", "session"])
async def test_every_kind_of_job_can_be_held_against_the_model(job):
    async with nodes("a") as made:
        spec = Workload(job=job, arrivals="closed", think_s=0.5, rows=2, pause_s=0.1, new_tokens=5, jobs_max=3)
        some = await played(made, spec)
        assert [one.state for one in some.jobs] == ["done"] * 3
        assert all(right(one, Expected(TOY)) for one in some.jobs)
        assert not any(right(one, Expected(ToyModel(3))) for one in some.jobs), "another model says something else"
        first = some.jobs[0]
        tokens = {"generate": 10, "forward": 2 * first.ask.prompt_tokens}.get(job, 2 * (first.ask.prompt_tokens + 5))
        assert (first.tokens_done, first.steps) == (tokens, {"generate": 4, "forward": 0, "session": 5}[job])
        assert (first.steps_per_s is None) == (job == "forward")
