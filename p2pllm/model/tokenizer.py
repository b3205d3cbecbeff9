"""Text and token ids: a checkpoint's tokenizer, its chat template, and where a generated text ends.

Invariants: a chat template is code from a checkpoint, so it runs in a sandbox without access to anything and with
bounded output. A checkpoint without a tokenizer is fine: ids in, ids out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import tokenizers

from p2pllm.errors import CheckpointError
from p2pllm.model.config import ModelConfig
from p2pllm.model.fields import token_ids
from p2pllm.model.header import parse_json
from p2pllm.model.source import Source
from p2pllm.model.text import TextStream

FILE_BYTES_MAX = 64 << 20
CHAT_CHARS_MAX = 4 << 20

_TEMPLATE_ERRORS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError,
)  # fmt: skip
"""What running a foreign template may raise."""

Message = Mapping[str, Any]
"""One turn of a conversation: ``role`` and ``content``, and whatever else the template asks for."""


@dataclass(frozen=True, slots=True)
class TextEnds:
    """The ids that begin and end a text.

    Attributes:
        bos_id: what a text begins with, if anything.
        eos_ids: any of these ends a generation.
    """

    bos_id: int | None
    eos_ids: tuple[int, ...]


def text_ends(source: Source, config: ModelConfig) -> TextEnds:
    """From ``generation_config.json``, which knows all ends of a chat model, else from the config.

    Raises:
        CheckpointError: the file is malformed.
        StorageError: the disk or the download failed.
    """
    raw = _optional_json(source, "generation_config.json") or {}
    bos, eos = token_ids(raw, "bos_token_id"), token_ids(raw, "eos_token_id")
    return TextEnds(bos[0] if bos else config.bos_id, eos or config.eos_ids)


class Tokenizer:
    """A checkpoint's ``tokenizer.json``, and its chat template if there is one; made by ``load_tokenizer``."""

    def __init__(self, inner: tokenizers.Tokenizer, title: str, chat: ChatTemplate | None = None) -> None:
        self._inner = inner
        self._title = title
        self._chat = chat

    @property
    def has_chat_template(self) -> bool:
        return self._chat is not None

    @property
    def vocab_size(self) -> int:
        """Ids are below this, added tokens included."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of ``text``; with ``special`` what a text begins and ends with is added, as the model was trained."""
        return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of ``ids``; ids that the tokenizer does not know have no text."""
        return str(self._inner.decode(list(ids), skip_special_tokens=not special))

    def chat_text(self, messages: Sequence[Message], *, ask: bool = True) -> str:
        """A conversation as the text that the model was trained on; ``ask`` adds the beginning of its answer.

        Raises:
            CheckpointError: there is no chat template, or it refuses these messages.
        """
        if self._chat is None:
            raise CheckpointError(f"{self._title} has no chat template: it is not a chat model")
        return self._chat.render(messages, ask)

    def encode_chat(self, messages: Sequence[Message], *, ask: bool = True) -> list[int]:
        """Ids of a conversation; the template writes the special tokens itself. Raises as ``chat_text`` does."""
        return self.encode(self.chat_text(messages, ask=ask), special=False)

    def stream(self, context: Sequence[int] = (), stop: Sequence[str] = ()) -> TextStream:
        """Decode ids that come one by one, after ``context`` (the prompt's ids); see ``TextStream``."""
        return TextStream(self.decode, context, stop)


def load_tokenizer(source: Source) -> Tokenizer | None:
    """A checkpoint's tokenizer; None when it has none.

    Raises:
        CheckpointError: a file of it is malformed.
        StorageError: the disk or the download failed.
    """
    data = _optional(source, "tokenizer.json")
    if data is None:
        return None
    try:
        inner = tokenizers.Tokenizer.from_str(data.decode())
    except UnicodeDecodeError as exc:
        raise CheckpointError(f"{source.title}: tokenizer.json is not UTF-8") from exc
    except Exception as exc:  # the library raises nothing narrower
        raise CheckpointError(f"{source.title}: tokenizer.json is not usable: {_one_line(exc)}") from exc
    # What a file may ask for, but a prompt never wants.
    inner.no_truncation()
    inner.no_padding()
    return Tokenizer(inner, source.title, _load_chat(source))


class ChatTemplate:
    """A Jinja template from a checkpoint, in a sandbox.

    Raises:
        CheckpointError: it is not a valid template.
    """

    def __init__(self, template: str, tokens: Mapping[str, str], title: str) -> None:
        self._title = title
        self._tokens = dict(tokens)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(template)
        except (jinja2.TemplateError, RecursionError) as exc:
            raise CheckpointError(f"{title}: chat template: {_one_line(exc)}") from exc

    def render(self, messages: Sequence[Message], ask: bool) -> str:
        """Raises CheckpointError when the template refuses the messages or fails."""
        parts, length = [], 0
        try:
            for part in self._template.generate(
                messages=[dict(m) for m in messages], add_generation_prompt=ask, **self._tokens
            ):
                parts.append(part)
                length += len(part)
                if length > CHAT_CHARS_MAX:
                    raise CheckpointError(f"{self._title}: chat template writes more than {CHAT_CHARS_MAX} characters")
        except _TEMPLATE_ERRORS as exc:
            raise CheckpointError(f"{self._title}: chat template: {_one_line(exc)}") from exc
        return "".join(parts)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what a model said, for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja reads it as a class attribute of this type

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML, which no model has seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _load_chat(source: Source) -> ChatTemplate | None:
    raw = _optional_json(source, "tokenizer_config.json") or {}
    file = _optional(source, "chat_template.jinja")
    template = raw.get("chat_template") if file is None else file.decode("utf-8", "replace")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise CheckpointError(f"{source.title}: tokenizer_config.json: chat_template is not a text")
    tokens = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = raw.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        tokens[key] = content if isinstance(content, str) else ""
    return ChatTemplate(template, tokens, source.title)


def _optional(source: Source, name: str) -> bytes | None:
    if name not in source.names():
        return None
    size = source.size(name)
    if size > FILE_BYTES_MAX:
        raise CheckpointError(f"{source.title}: {name} has {size} bytes, more than any such file needs")
    return source.read(name, 0, size)


def _optional_json(source: Source, name: str) -> dict[str, Any] | None:
    data = _optional(source, name)
    return None if data is None else parse_json(data, f"{source.title}: {name}")


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__
