from __future__ import annotations

from dataclasses import replace

import pytest
import tokenizers
import torch
import trio
from tokenizers import decoders, models, pre_tokenizers

from p2pllm.client.generate import Generation
from p2pllm.client.inputs import prompts_of
from p2pllm.client.options import GenerateOptions
from p2pllm.errors import CoverageError, LocalProtocolError, SwarmError, UserError
from p2pllm.model.tokenizer import Tokenizer
from tests.client.harness import CONFIG, open_swarm, reference

PROMPTS = [[5, 9, 33, 2], [60], [17, 8, 41, 3, 22, 12, 50, 6, 7, 19, 44, 31, 2, 9]]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,"


def letters() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return Tokenizer(inner, "letters")


def generation(swarm, inputs, tokenizer=None, eos=(), context=None, **options) -> Generation:
    prompts = prompts_of(inputs, tokenizer.encode if tokenizer else None, 64)
    return Generation(context or swarm.context(), tokenizer, eos, prompts, GenerateOptions.of(options))


async def test_greedy_tokens_equal_those_of_the_model_in_one_piece():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        expected = [swarm.reference.greedy(prompt, 12) for prompt in PROMPTS]
        result = await generation(swarm, PROMPTS, max_new_tokens=12).run()
        assert [list(ids) for ids in result.new_ids] == expected
        assert result.ids == [prompt + ids for prompt, ids in zip(PROMPTS, expected, strict=True)]
        assert result.text == ["", "", ""]
        assert result.finished == ("length",) * 3
        assert result.exact
        assert result.recoveries == 0
        assert result.seed is None
        assert [hop.span.start for hop in result.route] == [0, 3]
        assert result.steps_per_s == pytest.approx(1 / 0.101, rel=0.01)  # 2 hops of 50 ms, 1 ms at the client
        assert all(len(member.sessions) == 0 for member in swarm.members)


async def test_results_have_the_form_of_their_prompts():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        expected = [*PROMPTS[0], *swarm.reference.greedy(PROMPTS[0], 3)]
        for inputs, ids in [
            (PROMPTS[0], expected),
            ([PROMPTS[0]], [expected]),
            (torch.tensor(PROMPTS[0]), torch.tensor(expected)),
            (torch.tensor([PROMPTS[0]]), torch.tensor([expected])),
        ]:
            result = await generation(swarm, inputs, context=context, max_new_tokens=3).run()
            if isinstance(ids, torch.Tensor):
                assert torch.equal(result.ids, ids)
            else:
                assert result.ids == ids


async def test_rows_that_end_early_sit_out():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        plain = [swarm.reference.greedy(prompt, 12) for prompt in PROMPTS]
        eos = [plain[0][2]]
        expected = [swarm.reference.greedy(prompt, 12, eos) for prompt in PROMPTS]
        assert len({len(ids) for ids in expected}) > 1
        result = await generation(swarm, PROMPTS, eos=eos, max_new_tokens=12).run()
        assert [list(ids) for ids in result.new_ids] == expected
        assert [f == "eos" for f in result.finished] == [ids[-1] in eos for ids in expected]
        same = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
        filled = (await generation(swarm, same, eos=eos, max_new_tokens=12).run()).ids
        assert filled.shape == (2, 16)
        assert filled[0, 7:].tolist() == eos * 9
        on = await generation(swarm, PROMPTS, eos=eos, max_new_tokens=12, ignore_eos=True).run()
        assert [list(ids) for ids in on.new_ids] == plain


async def test_streaming_gives_the_same_text_piece_by_piece():
    tokenizer = letters()
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        result = await generation(swarm, "Once", tokenizer, context=context, max_new_tokens=10).run()
        assert len(result.text) == 10
        assert result.text == tokenizer.decode(result.new_ids[0])
        pieces = [p async for p in generation(swarm, "Once", tokenizer, context=context, max_new_tokens=10)]
        assert "".join(piece.text for piece in pieces) == result.text
        assert [token for piece in pieces for token in piece.ids] == list(result.new_ids[0])
        assert [piece.finished for piece in pieces] == [""] * 9 + ["length"]
        both = [p async for p in generation(swarm, ["Once", "upon"], tokenizer, context=context, max_new_tokens=4)]
        assert "".join(p.text for p in both if p.row == 0) == result.text[:4]
        assert [p.row for p in both] == [0, 1] * 4


async def test_stop_texts_end_a_row_and_are_not_part_of_it():
    tokenizer = letters()
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        whole = (await generation(swarm, "Once", tokenizer, context=context, max_new_tokens=12).run()).text
        stop = whole[5:7]
        at = whole.index(stop)
        result = await generation(
            swarm, ["Once", "upon"], tokenizer, context=context, max_new_tokens=12, stop=[stop, "####"]
        ).run()
        assert result.text[0] == whole[:at]
        assert result.finished[0] == "stop"
        assert len(result.new_ids[0]) == at + 2
        pieces = [p async for p in generation(swarm, "Once", tokenizer, context=context, max_new_tokens=12, stop=stop)]
        assert "".join(p.text for p in pieces) == whole[:at]


async def test_seeds_repeat_and_rows_differ():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context()
        hot = {"temperature": 1.5, "top_p": 0.95, "max_new_tokens": 10}

        async def sample(inputs, **options):
            return await generation(swarm, inputs, context=context, **hot, **options).run()

        alone = await sample([PROMPTS[0]], seed=7)
        assert alone.seed == 7
        assert (await sample([PROMPTS[0]], seed=7)).ids == alone.ids
        assert (await sample([PROMPTS[0]], seed=8)).ids != alone.ids
        batch = await sample([PROMPTS[0], PROMPTS[0], PROMPTS[1]], seed=7)
        assert batch.ids[0] == alone.ids[0]
        assert batch.ids[1] != batch.ids[0]
        drawn = await sample([PROMPTS[0]])
        assert drawn.seed is not None
        assert (await sample([PROMPTS[0]], seed=drawn.seed)).ids == drawn.ids
        assert (await sample([PROMPTS[0]])).seed != drawn.seed


async def test_a_repetition_penalty_changes_the_choice():
    async with open_swarm((0, 6)) as swarm:
        result = await generation(swarm, PROMPTS[0], max_new_tokens=30, repetition_penalty=50.0).run()
        assert len(set(result.new_ids[0])) > len(set(swarm.reference.greedy(PROMPTS[0], 30)))


async def test_long_prompts_are_cut_and_give_the_same_tokens():
    prompt = [(7 * i) % 64 for i in range(100)]
    async with open_swarm((0, 3), (3, 6)) as swarm:
        result = await generation(swarm, prompt, max_new_tokens=4).run()
        assert list(result.new_ids[0]) == swarm.reference.greedy(prompt, 4)


async def test_the_context_limit_is_checked_before_anything_is_sent():
    async with open_swarm() as swarm:
        for prompt, new, match in [
            ([1] * 257, 1, "a prompt of 257 tokens; the model's context holds 256"),
            ([1] * 250, 8, "at most 7 new tokens fit"),
        ]:
            with pytest.raises(UserError, match=match):
                generation(swarm, prompt, max_new_tokens=new)
        with pytest.raises(UserError, match="no tokenizer, so stop texts"):
            generation(swarm, [1], stop="x")


async def test_the_last_position_of_the_context_can_be_used():
    prompt = [(5 * i) % 64 for i in range(254)]
    async with open_swarm((0, 6)) as swarm:
        result = await generation(swarm, prompt).run()
        assert len(result.new_ids[0]) == 3
        assert list(result.new_ids[0]) == swarm.reference.greedy(prompt, 3)


async def test_leaving_early_frees_the_caches():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        async with generation(swarm, PROMPTS, max_new_tokens=50) as pieces:
            async for _ in pieces:
                break
            assert [len(member.sessions) for member in swarm.members] == [1, 1]
            with pytest.raises(LocalProtocolError, match="not over"):
                pieces.result()
        assert [len(member.sessions) for member in swarm.members] == [0, 0]
        assert [piece async for piece in pieces if piece.row > 2] == []


async def test_cancelling_frees_the_caches():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        with trio.move_on_after(1.0) as scope:
            await generation(swarm, PROMPTS, max_new_tokens=50).run()
        assert scope.cancelled_caught
        assert [len(member.sessions) for member in swarm.members] == [0, 0]


async def test_a_lost_server_ends_the_generation_with_one_line():
    config = replace(CONFIG, client=replace(CONFIG.client, patience_s=1.0))
    async with open_swarm((0, 3), (3, 6)) as swarm:
        pieces = generation(swarm, PROMPTS, context=swarm.context(config), max_new_tokens=50)
        for _ in range(9):
            await anext(pieces)
        swarm.world.kill("s0")
        with pytest.raises(CoverageError, match=r"server \w+ \(blocks 0-2\) was lost") as caught:
            [piece async for piece in pieces]
        assert caught.value.missing == (0, 1, 2)
        assert len(swarm.members[1].sessions) == 0


@pytest.mark.parametrize("fault", ["kill", "hang", "cut"])
async def test_a_fault_at_any_moment_gives_the_right_tokens_or_one_clear_line_in_time(fault):
    """Broken connections never cost a token; a server that is gone is told, not waited for without end."""
    patience_s = 20.0 if fault == "cut" else 1.0
    config = replace(CONFIG, client=replace(CONFIG.client, patience_s=patience_s, step_timeout_s=2.0, gap_grace_s=1.0))
    expected = [reference().greedy(prompt, 6) for prompt in PROMPTS]
    errors = []
    for number in range(18):
        async with open_swarm((0, 3), (3, 6)) as swarm:
            context = swarm.context(config)
            victim = swarm.members[number % 2]
            strike = context.ports.network.close_peer if fault == "cut" else getattr(swarm.world, fault)
            swarm.world.nursery.start_soon(after, 0.06 * number, strike, victim.peer if fault == "cut" else victim.name)
            began = trio.current_time()
            errors.append("")
            try:
                result = await generation(swarm, PROMPTS, context=context, max_new_tokens=6).run()
            except SwarmError as exc:
                errors[-1] = str(exc)
            else:
                assert [list(ids) for ids in result.new_ids] == expected
            assert trio.current_time() - began < 40.0
            assert errors[-1] == "" or (str(victim.peer) in errors[-1] and "\n" not in errors[-1])
    # The generation takes a second: whoever strikes earlier than that is noticed.
    assert [bool(error) for error in errors[:10]] == [fault != "cut"] * 10
    assert fault != "cut" or not any(errors)


async def after(seconds, strike, target):
    await trio.sleep(seconds)
    done = strike(target)
    if done is not None:
        await done
