"""A checkpoint's tokenizer, its ends of text, and its chat template, which is foreign code."""

from __future__ import annotations

import json

import pytest

from p2pllm.errors import CheckpointError
from p2pllm.model.config import parse_config
from p2pllm.model.tokenizer import ChatTemplate, load_tokenizer, text_ends
from tests.model.files import TINY, CountingSource
from tests.model.test_text import byte_level

PLAIN = byte_level().to_str().encode()
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def load(**files):
    names = {"tokenizer": "tokenizer.json", "config": "tokenizer_config.json", "jinja": "chat_template.jinja"}
    given = {"tokenizer": PLAIN, **files}
    return load_tokenizer(CountingSource({names[k]: v for k, v in given.items() if v is not None}))


def test_text_and_ids():
    tokenizer = load()
    ids = tokenizer.encode("Once 🦊")
    assert tokenizer.decode(ids) == "Once 🦊"
    assert max(ids) < tokenizer.vocab_size == 257
    assert tokenizer.decode([256, *ids]) == "Once 🦊"
    assert tokenizer.decode([256, *ids], special=True) == "<s>Once 🦊"
    assert tokenizer.decode([100_000]) == ""
    stream = tokenizer.stream(ids)
    assert "".join(stream.push(i) for i in tokenizer.encode("upon", special=False)) == "upon"


def test_a_checkpoint_without_a_tokenizer():
    assert load_tokenizer(CountingSource({})) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"model": {"type": "Evil"}}', b"[]"])
def test_a_malformed_tokenizer_is_named(data):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        load(tokenizer=data)
    assert "\n" not in str(caught.value)


def test_truncation_and_padding_that_a_file_asks_for_are_off():
    inner = byte_level()
    inner.enable_truncation(2)
    inner.enable_padding(length=100)
    assert len(load(tokenizer=inner.to_str().encode()).encode("a longer text")) == 13


def test_where_a_text_ends():
    config = parse_config({**TINY, "bos_token_id": 1, "eos_token_id": 2})
    assert text_ends(CountingSource({}), config).eos_ids == (2,)
    ends = text_ends(CountingSource({"generation_config.json": b'{"eos_token_id": [5, 6], "temperature": 1}'}), config)
    assert (ends.bos_id, ends.eos_ids) == (1, (5, 6))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        text_ends(CountingSource({"generation_config.json": b'{"eos_token_id": "x"}'}), config)


@pytest.mark.parametrize("where", ["config", "jinja", "named", "dict token"])
def test_chat(where):
    raw = {"bos_token": {"content": "<s>", "lstrip": False} if where == "dict token" else "<s>"}
    files = {}
    if where == "jinja":
        files["jinja"] = CHAT.encode()
    elif where == "named":
        raw["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT}]
    else:
        raw["chat_template"] = CHAT
    tokenizer = load(config=json.dumps(raw).encode(), **files)
    assert tokenizer.has_chat_template
    assert tokenizer.chat_text(TALK) == "<s>[user]Hi[assistant]Ho>"
    assert tokenizer.chat_text(TALK, ask=False) == "<s>[user]Hi[assistant]Ho"
    assert tokenizer.encode_chat(TALK)[0] == 256  # written by the template, once
    assert tokenizer.encode_chat(TALK).count(256) == 1


def test_no_chat_template_is_said():
    tokenizer = load()
    assert not tokenizer.has_chat_template
    with pytest.raises(CheckpointError, match="no chat template"):
        tokenizer.chat_text(TALK)


def render(template: str) -> str:
    return ChatTemplate(template, {}, "model").render(TALK, True)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages | tojson }}", json.dumps(TALK)),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", "Ho"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("  {%- if strftime_now is defined %}now{% else %}then{% endif %}", "then"),
    ],
)
def test_what_templates_use(template, text):
    assert render(template) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].nothing.more }}",
        "{% for i in range(1000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% if %}",
        "{{ unknown() }}",
    ],
)
def test_foreign_code_is_harmless_and_says_why(template):
    with pytest.raises(CheckpointError, match="model: chat template") as caught:
        render(template)
    assert "\n" not in str(caught.value)
