"""The model that ships with the package: small, of the promised shape, sure of itself, and readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from p2pllm.local.models import resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.ends import Ends
from p2pllm.model.source import Source
from p2pllm.model.span import Segment, SpanModel
from p2pllm.model.tokenizer import Tokenizer, load_tokenizer, text_ends
from p2pllm.types import Span

EXAMPLES = str(Path(__file__).parent.parent.parent / "examples")


class Demo:
    """The whole model in one process."""

    def __init__(self, source: Source) -> None:
        self.checkpoint = Checkpoint(source)
        self.config = self.checkpoint.config
        span = Span(0, self.config.num_blocks)
        self.blocks = SpanModel.load(self.config, span, self.checkpoint.span_tensors(span))
        self.ends = Ends.load(self.config, self.checkpoint.ends_tensors())
        tokenizer = load_tokenizer(source)
        assert tokenizer is not None
        self.tokenizer: Tokenizer = tokenizer
        self.eos = text_ends(source, self.config).eos_ids

    def tell(self, prompt: str, tokens: int = 500) -> tuple[str, torch.Tensor]:
        """Greedy continuation, and the top-2 margin of every choice."""
        ids, margins, position = self.tokenizer.encode(prompt), [], 0
        arena = self.blocks.arena(1024)
        pages = list(range(1024 // 16))
        stream, new = self.tokenizer.stream(ids), ids
        for _ in range(tokens):
            hidden = self.blocks.run(self.ends.embed(new), [Segment(len(new), position, pages)], arena)
            position += len(new)
            top = self.ends.head(hidden[-1:])[0].topk(2)
            margins.append(float(top.values[0] - top.values[1]))
            new = [int(top.indices[0])]
            if new[0] in self.eos:
                break
            stream.push(new[0])
        stream.finish()
        return prompt + stream.text, torch.tensor(margins)


@pytest.fixture(scope="module")
def demo():
    return Demo(resolve_model("demo", "unused", DiskStorage()))


def test_it_is_small_and_of_the_promised_shape(demo):
    source = demo.checkpoint.source
    assert sum(source.size(name) for name in source.names()) <= 6_000_000
    assert demo.config.num_blocks >= 8
    assert 1 < demo.config.num_kv_heads < demo.config.num_heads
    assert demo.tokenizer.vocab_size <= demo.config.vocab_size
    assert demo.tokenizer.has_chat_template


@pytest.mark.parametrize("text", ["Once upon a time", "naïve café 🦊", "数\n\t\x00", ""])
def test_any_text_has_tokens(demo, text):
    ids = demo.tokenizer.encode(text)
    assert ids[0] == demo.config.bos_id
    assert demo.tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("prompt", "hero"),
    [
        ("Once upon a time", None),
        ("Once upon a time there was a brave knight named Arthur", "Arthur"),
        ("Once upon a time there was a robot named Zorblax", "Zorblax"),
        ("Ruby the fox lived in", "Ruby"),
        ("There once was a girl named Xenia", "Xenia"),
    ],
)
def test_it_tells_a_whole_story_in_words_that_it_knows(demo, monkeypatch, prompt, hero):
    monkeypatch.syspath_prepend(EXAMPLES)
    from demo_stories import stories

    teller = stories(5)
    known = {word for _ in range(2000) for word in re.findall(r"\w+", next(teller))}
    text, margins = demo.tell(prompt)
    assert text.endswith("The end.")
    assert 1000 < len(text) < 2500
    assert set(re.findall(r"\w+", text)) - {hero} <= known
    if hero is not None:
        assert text.count(hero) >= 8  # remembered to the end, invented or not
        assert hero in text[-600:]
    assert margins.min() > 0.02
    assert margins.median() > 5


def test_other_prompts_other_stories(demo):
    stories = [demo.tell(f"Once upon a time there was a {kind}", 60)[0] for kind in ("girl", "boy", "dragon", "wizard")]
    assert len({story[45:] for story in stories}) == 4


def test_it_is_the_model_that_the_trainer_describes(demo, monkeypatch):
    """Two implementations of the architecture agree, so the checkpoint means what it should."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import train_demo_model as trainer
    from safetensors.torch import load_file

    other = trainer.Llama(trainer.Shape())
    other.load_state_dict(load_file(f"{demo.checkpoint.source.title}/model.safetensors"))
    ids = demo.tokenizer.encode("Once upon a time there was a curious cat named Luna. She lived in")
    hidden = demo.blocks.run(demo.ends.embed(ids), [Segment(len(ids), 0, None)], None)
    with torch.no_grad():
        expected = other(torch.tensor([ids]))[0]
    assert torch.allclose(demo.ends.head(hidden), expected, atol=1e-3)
