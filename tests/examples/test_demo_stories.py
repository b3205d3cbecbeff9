"""The demo model's stories: the same for the same seed, complete, and consistent from beginning to end."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def stories(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import demo_stories

    return demo_stories


def test_a_seed_is_a_book(stories):
    first, again, other = (list(itertools.islice(stories.stories(seed), 20)) for seed in (1, 1, 2))
    assert first == again != other


def test_stories_are_whole_and_remember(stories):
    for seed in range(300):
        story = stories.Story(random.Random(seed))
        text = story.text()
        cast = story.cast
        assert not re.search(r"[{}]|  ", text)
        assert text.endswith("The end.")
        assert text.count("\n\n") == 4
        for who in ("N", "F", "H", "O"):
            assert text.count(cast[who]) >= 4, who
        assert cast["food"] in text.split("\n\n")[2]
        assert cast["F"] != cast["N"]


def test_every_choice_has_a_favourite(stories):
    """The likeliest option of a choice is far ahead of the second, in every context."""
    story = stories.Story(random.Random(0))
    for context in ("cat", "dog", "fox"):
        picked = [story.pick("slot", "abcd", context) for _ in range(2000)]
        counts = sorted((picked.count(option) for option in "abcd"), reverse=True)
        assert counts[0] > 6 * counts[1]
    assert len({stories.Story(random.Random(0)).pick("slot", "abcdefgh", str(i)) for i in range(40)}) > 4


def test_a_late_start_is_the_rest_of_the_story(stories):
    text = next(stories.stories(3))
    for seed in range(20):
        rest = stories.late_start(text, random.Random(seed))
        assert text.endswith(rest)
        assert len(rest) > len(text) // 4
