"""Streaming text: the pieces are the whole, every piece is whole characters, and stop strings never show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from p2pllm.model.text import BROKEN, TextStream


def byte_level() -> Tokenizer:
    """Every byte a token of its own (as GPT-2 and Llama 3 fall back to), plus a special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Words with a leading mark, bytes for the rest, and the first space cut (as Llama 1 and 2 have it)."""
    words = ["<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁the", "▁cat", "s", "▁sat", "é"]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


LEVEL, FALLBACK = byte_level(), byte_fallback()


def decode_with(tokenizer):
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def feed(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.finish()]


@given(st.text(max_size=40))
def test_pieces_of_any_text_are_the_text(text):
    ids = LEVEL.encode(text).ids
    stream = TextStream(decode_with(LEVEL), (), ())
    pieces = feed(stream, ids)
    # The one character that looks like a broken one is only given out when something follows it.
    assert "".join(pieces) == stream.text == text.rstrip(BROKEN)
    for piece in pieces:
        piece.encode()
        assert BROKEN not in piece or BROKEN in text


@given(st.lists(st.integers(0, 262), max_size=30), st.integers(0, 30))
def test_pieces_after_a_prompt_are_what_decoding_all_at_once_adds(ids, cut):
    decode = decode_with(FALLBACK)
    prompt, new = ids[:cut], ids[cut:]
    expected, before = decode(ids), decode(prompt)
    if BROKEN in expected + before:
        return
    assert expected.startswith(before)
    assert "".join(feed(TextStream(decode, prompt, ()), new)) == expected[len(before) :]


def test_a_space_after_special_tokens_is_kept():
    decode = decode_with(FALLBACK)
    the, cat = FALLBACK.token_to_id("▁the"), FALLBACK.token_to_id("▁cat")
    assert feed(TextStream(decode, [the], ()), [*[0] * 20, cat]) == [*[""] * 20, " cat", ""]


def test_a_character_waits_for_its_last_byte():
    stream = TextStream(decode_with(LEVEL), (), ())
    pieces = feed(stream, LEVEL.encode("a🦊b").ids)
    assert pieces == ["a", "", "", "", "🦊", "b", ""]


def test_a_character_that_never_ends_is_dropped():
    stream = TextStream(decode_with(LEVEL), (), ())
    assert feed(stream, LEVEL.encode("a🦊").ids[:-1]) == ["a", "", "", "", ""]
    assert stream.text == "a"


def test_rubbish_is_given_out_in_the_end():
    stream = TextStream(decode_with(LEVEL), (), ())
    lead = LEVEL.encode("🦊").ids[0]
    assert BROKEN in "".join(stream.push(lead) for _ in range(100))


def test_a_context_cut_within_a_character():
    ids = LEVEL.encode("🦊").ids
    stream = TextStream(decode_with(LEVEL), ids[:2], ())
    assert "".join(feed(stream, ids[2:])).endswith("🦊")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("Hello. The end. More", ["The end."], "Hello. "),
        ("Hello", ["Hello"], ""),
        ("aaab", ["aab"], "a"),
        ("one two three", ["three", "two"], "one "),
        ("no stop", ["stopping"], "no stop"),
        ("x\n\ny", ["\n\n"], "x"),
        ("fox 🦊 fox", ["🦊"], "fox "),
        ("text", [""], "text"),
    ],
)
def test_stop_strings(text, stop, expected):
    stream = TextStream(decode_with(LEVEL), (), stop)
    pieces = feed(stream, LEVEL.encode(text).ids)
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped == (any(s in text for s in stop if s))
    if stream.stopped:
        assert stream.push(0) == stream.finish() == ""


def test_a_stop_string_in_the_prompt_does_not_stop():
    stream = TextStream(decode_with(LEVEL), LEVEL.encode("The end.").ids, ["end. "])
    assert "".join(feed(stream, LEVEL.encode(" Again").ids)) == " Again"
    assert not stream.stopped


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_string_is_ever_given_out(text, stop):
    stream = TextStream(decode_with(LEVEL), (), stop)
    first = min((text.index(s) + len(s) for s in stop if s in text), default=None)
    expected = text
    if first is not None:
        seen = text[:first]
        expected = seen[: min(seen.index(s) for s in stop if s in seen)]
    assert "".join(feed(stream, LEVEL.encode(text).ids)) == expected
