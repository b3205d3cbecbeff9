from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import trio

from p2pllm.client.beams import BeamSearch
from p2pllm.client.generate import Generation
from p2pllm.client.inputs import prompts_of
from p2pllm.client.options import GenerateOptions
from p2pllm.client.rows import Beams, Row
from p2pllm.errors import UserError
from p2pllm.model.tokenizer import Tokenizer
from tests.client.harness import open_swarm, reference
from tests.client.test_generate import letters

DEMO = Path(__file__).parents[2] / "p2pllm" / "data" / "demo"
PROMPTS = [[5, 9, 33, 2], [60], [17, 8, 41, 3, 22, 12, 50, 6, 7, 19, 44, 31, 2, 9]]


@pytest.fixture(scope="module")
def theirs():
    """The random model of the harness, in transformers."""
    mine = reference().config
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=mine.num_blocks, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=256, eos_token_id=None, bos_token_id=None,
        rms_norm_eps=mine.norm_eps,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(reference().tensors, strict=False)
    return model


def beams_of_transformers(model, prompt, eos=(), **options):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=list(eos) or None,
        pad_token_id=0, **options,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def driven(logits_of, prompts, *, num_beams, max_new_tokens, eos=(), length_penalty=1.0, repetition_penalty=1.0):
    """The policy by itself, on a model without any cache; the new tokens per prompt."""
    rows = [Row(index, tuple(prompt), None, None) for index, prompt in enumerate(prompts)]
    beams = Beams(rows, num_beams, length_penalty, repetition_penalty, eos, max_new_tokens)
    held = [list(prompt) for prompt in beams.feeds]
    active = [row for row, prompt in enumerate(held) if prompt]
    while active:
        turn = beams.turn(torch.stack([logits_of(held[row]) for row in active]))
        ids = iter(turn.ids)
        held = [[*held[source]] for source in turn.sources]
        active = [row for row, count in enumerate(turn.counts) if count]
        for row in active:
            held[row].append(next(ids))
    return [row.new_ids for row in rows]


def cut(ids, eos):
    """Up to the first end-of-text token: what follows there is filling."""
    ends = [at for at, token in enumerate(ids) if token in eos]
    return ids[: ends[0] + 1] if ends else ids


OPTIONS = [
    {"num_beams": 2},
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 2.5},
    {"num_beams": 3, "length_penalty": -1.0},
    {"num_beams": 5, "repetition_penalty": 1.6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("eos", [(), (7,), (3, 19, 40)])
def test_the_same_sequences_as_transformers(theirs, options, eos):
    for prompt in PROMPTS:
        for new in (1, 3, 16):
            expected = beams_of_transformers(theirs, prompt, eos, max_new_tokens=new, **options)
            (mine,) = driven(lambda ids: reference().logits(ids)[-1], [prompt], max_new_tokens=new, eos=eos, **options)
            assert mine == cut(expected, eos)


@pytest.mark.parametrize("length_penalty", [1.0, 0.3])
def test_the_same_sequences_as_transformers_on_the_demo_model(length_penalty):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json")), "demo")
    eos = model.generation_config.eos_token_id
    eos = [eos] if isinstance(eos, int) else eos

    @torch.no_grad
    def logits_of(ids):
        return model(torch.tensor([ids])).logits[0, -1]

    prompt = tokenizer.encode("Once upon a time")
    options = {"num_beams": 4, "max_new_tokens": 24, "length_penalty": length_penalty}
    expected = beams_of_transformers(model, prompt, eos, **options)
    assert driven(logits_of, [prompt], eos=eos, **options) == [cut(expected, eos)]


def generation(swarm, inputs, tokenizer=None, eos=(), context=None, **options) -> Generation:
    prompts = prompts_of(inputs, tokenizer.encode if tokenizer else None, 64)
    return Generation(context or swarm.context(), tokenizer, eos, prompts, GenerateOptions.of(options))


@pytest.mark.parametrize("eos", [(), (7,)])
async def test_caches_are_reordered_on_the_servers(theirs, eos):
    async with open_swarm((0, 3), (3, 6)) as swarm:
        options = {"num_beams": 4, "max_new_tokens": 12}
        expected = [cut(beams_of_transformers(theirs, prompt, eos, **options), eos) for prompt in PROMPTS]
        result = await generation(swarm, PROMPTS, eos=eos, **options).run()
        assert [list(ids) for ids in result.new_ids] == expected
        assert result.finished == tuple("eos" if ids[-1] in eos else "length" for ids in expected)
        assert all(len(member.sessions) == 0 for member in swarm.members)


async def test_the_text_is_given_out_at_the_end():
    tokenizer = letters()
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        result = await generation(swarm, "Once", tokenizer, context=context, num_beams=3, max_new_tokens=6).run()
        assert result.text == tokenizer.decode(result.new_ids[0])
        pieces = [p async for p in generation(swarm, "Once", tokenizer, context=context, num_beams=3, max_new_tokens=6)]
        assert [(piece.text, piece.finished) for piece in pieces] == [(result.text, "length")]


async def test_a_beam_search_scores_at_least_as_well_as_greedy_choice():
    async with open_swarm((0, 6)) as swarm:
        for prompt in PROMPTS:
            result = await generation(swarm, prompt, num_beams=6, max_new_tokens=10).run()
            greedy = swarm.reference.greedy(prompt, 10)
            assert score(swarm.reference, prompt, result.new_ids[0]) >= score(swarm.reference, prompt, greedy) - 1e-4


def score(model, prompt, new):
    log_probs = model.logits([*prompt, *new]).log_softmax(-1)
    return sum(float(log_probs[len(prompt) - 1 + at, token]) for at, token in enumerate(new))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "temperature": 0.5}, "goes with temperature 0 only"),
        ({"num_beams": 2, "stop": "x"}, "knows no stop texts"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
    ],
)
def test_options_that_do_not_go_together(options, match):
    with pytest.raises(UserError, match=match):
        GenerateOptions.of(options)


async def test_too_many_beams_are_refused_before_anything_is_sent():
    async with open_swarm() as swarm:
        with pytest.raises(UserError, match="too many for a vocabulary of 64"):
            generation(swarm, [1], num_beams=33)
        with pytest.raises(UserError, match="20 prompts with 20 beams each"):
            generation(swarm, [[1]] * 20, num_beams=20)


def test_a_search_ends_when_nothing_better_can_come():
    search = BeamSearch(2, 1.0, (0,), 100)
    certain = torch.full((1, 8), -50.0)
    certain[0, 0], certain[0, 1], certain[0, 2] = -0.1, -6.0, -6.5
    moves = search.advance(certain)
    assert (moves.parents, moves.tokens) == ((0, 0), (1, 2))
    both = torch.full((2, 8), -50.0)
    both[:, 0] = -0.01
    assert search.advance(both) is None
    assert search.over
    assert search.best.ids == (0,)
    assert search.best.score == pytest.approx(-0.1)


@pytest.mark.parametrize("moment", [0.35, 0.75, 1.1])
@pytest.mark.parametrize("victim", [0, 1])
async def test_beams_survive_the_loss_of_a_server(theirs, victim, moment):
    """The history knows which row continues which."""
    async with open_swarm((0, 3), (3, 6), (0, 3), (3, 6)) as swarm:
        options = {"num_beams": 4, "max_new_tokens": 12}
        expected = [beams_of_transformers(theirs, prompt, **options) for prompt in PROMPTS]
        search = generation(swarm, PROMPTS, **options)

        async def strike():
            await trio.sleep(moment)
            lost = search._session.route[victim].peer_id
            swarm.world.kill(next(member.name for member in swarm.members if member.peer == lost))

        swarm.world.nursery.start_soon(strike)
        result = await search.run()
        assert [list(ids) for ids in result.new_ids] == expected
        assert result.recoveries == 1
