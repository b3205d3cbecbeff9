"""Work is spread over processes where allowed, in order, and progress is told."""

from __future__ import annotations

import math

import pytest

from p2pllm.errors import UserError
from sim.kinds import Run, kind_of, nearest


def test_work_comes_back_in_order_and_progress_is_told():
    told = []
    how = Run(progress=lambda *words: told.append(words), processes=1)
    assert how.map(math.factorial, [3, 1, 2], "cells") == [6, 1, 2]
    assert told == [("cells", 1, 3), ("cells", 2, 3), ("cells", 3, 3)]
    assert Run().map(math.factorial, []) == []


@pytest.mark.real_clock
def test_processes_give_the_same_as_one():
    told = []
    how = Run(progress=lambda *words: told.append(words), processes=2)
    assert how.map(math.factorial, range(6)) == Run(processes=1).map(math.factorial, range(6))
    assert sorted(told) == [("", done, 6) for done in range(1, 7)]


@pytest.mark.real_clock
def test_a_failing_job_fails_the_whole():
    with pytest.raises(ValueError, match="negative"):
        Run(processes=2).map(math.factorial, [1, -1, 2])


def test_a_kind_that_is_not_there_is_answered_by_the_nearest():
    with pytest.raises(UserError, match="no kind 'failovr'; did you mean 'failover'"):
        kind_of("failovr")
    assert nearest("zzz", ["abc"]) == ""
