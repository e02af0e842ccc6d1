"""ChatTemplate: messages -> prompt, by the template that came with the checkpoint; normalise_messages.

The template is untrusted text: it runs in the metered sandbox, and whatever goes wrong in it is one sentence. This file
does not know the chat format itself; only the checkpoint's template does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2

from qwench.errors import RequestError, TemplateError
from qwench.fault import fault
from qwench.fields import read_json
from qwench.text.sandbox import METER, Meter, MeteredEnvironment
from qwench.text.stream import THINK_CLOSE, THINK_OPEN
from qwench.text.tokenizer import Tokenizer

MAX_TEMPLATE_CHARACTERS = 256 * 1024
RENDER_SECONDS = 10.0
TURN_START = "<|im_start|>assistant"
TURN_END = "<|im_end|>"
ROLES = ("system", "developer", "user", "assistant", "tool")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

# What a template can fail with: jinja2's own errors, and those of the operations it asks Python for.
FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _Refused(jinja2.TemplateRuntimeError):
    """The template called raise_exception."""


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


class ChatTemplate:
    """A compiled template. ``variables`` are its constants (the special tokens); ``origin`` is named in errors.

    ``reserved`` are the names of its functions and constants, which a request must not replace.
    """

    def __init__(
        self,
        source: str,
        *,
        variables: Mapping[str, Any] | None = None,
        origin: str = "the chat template",
        now: datetime | None = None,
        seconds: float = RENDER_SECONDS,
    ) -> None:
        self.source = source
        self.origin = origin
        self._variables = dict(variables or {})
        self._seconds = seconds
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateError(
                f"{origin} has {len(source)} characters; at most {MAX_TEMPLATE_CHARACTERS} are accepted."
            )
        environment = MeteredEnvironment()

        def strftime_now(form: str) -> str:
            if len(str(form)) > 256:
                raise _Refused("it formats the date with too long a pattern")
            return (now or datetime.now().astimezone()).strftime(str(form))

        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": strftime_now}
        self.reserved: frozenset[str] = frozenset((*environment.globals, *self._variables))
        try:
            code = environment.compile(environment.metered(source), filename=origin)
            self._template = jinja2.Template.from_code(environment, code, environment.globals)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{origin}, line {error.lineno}: {error.message}.") from error
        except FAILURES as error:
            raise TemplateError(f"{origin} cannot be compiled: {_reason(error)}.") from error

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """``chat_template.jinja``, else ``chat_template`` in tokenizer_config.json or chat_template.json, else None.

        ``tokenizer`` gives the default of ``eos_token``. Of several named templates the one called "default" is taken.
        """
        settings = _read_settings(folder / "tokenizer_config.json")
        variables = {name: _content(settings[name]) for name in SPECIAL_TOKENS if settings.get(name) is not None}
        if tokenizer.id_of(TURN_END) is not None:
            variables.setdefault("eos_token", TURN_END)
        path = folder / "chat_template.jinja"
        try:
            fault("read.template")
            source: str | None = path.read_text(encoding="utf-8") if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{path} cannot be read ({error}); download it again.") from error
        for name in ("tokenizer_config.json", "chat_template.json"):
            if source is None:
                path = folder / name
                source = _choose(_read_settings(path).get("chat_template"), path)
        return None if source is None else cls(source, variables=variables, origin=str(path))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. ``enable_thinking`` reaches the template only if it is given; ``variables`` go to it as they are.

        Raises TemplateError if the template refuses the messages, fails, or exceeds its budget of time and size.
        """
        given: dict[str, Any] = {
            **self._variables,
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **(variables or {}),
        }
        if enable_thinking is not None:
            given["enable_thinking"] = enable_thinking
        try:
            given[METER] = Meter(given, seconds=self._seconds)
            return self._template.render(given)
        except _Refused as error:
            raise TemplateError(
                f"The chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except FAILURES as error:
            raise TemplateError(
                f"{Path(self.origin).name} fails on these messages: {_reason(error)}.", param="messages"
            ) from error

    @cached_property
    def call_form(self) -> Literal["tags", "json"] | None:
        """The form in which it shows the model calls of tools; None if it knows none."""
        call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            shown = self.render(turns, add_generation_prompt=False)
        except TemplateError:
            return None
        return "tags" if "<function=f>" in shown else "json" if re.search(r'"name":\s*"f"', shown) else None

    @cached_property
    def can_think(self) -> bool:
        """Whether ``enable_thinking`` changes the prompt at all."""
        try:
            user = [{"role": "user", "content": "Hello"}]
            return self.render(user, enable_thinking=True) != self.render(user, enable_thinking=False)
        except TemplateError:
            return False

    def will_think(self, prompt: str) -> bool:
        """Whether the model is expected to think after ``prompt``.

        Qwen3.5 opens or closes the block in the prompt. Qwen3 closes it to switch thinking off, and else leaves the
        opening to the model: a template that could switch and did not means thinking.
        """
        turn = prompt[prompt.rfind(TURN_START) :] if TURN_START in prompt else ""
        if THINK_OPEN in turn and TURN_END not in turn:
            return prompt_opens_thinking(prompt)
        return prompt_opens_thinking(prompt) or self.can_think


def prompt_opens_thinking(prompt: str) -> bool:
    """Whether the model continues inside a think block: the last turn is the assistant's and leaves one open.

    Only that turn is looked at: a user may write about tags.
    """
    turn = prompt[prompt.rfind(TURN_START) :] if TURN_START in prompt else prompt
    if TURN_END in turn:
        return False
    if turn is prompt:  # not in the usual format: then only a block opened at the very end counts
        return prompt.rstrip().endswith(THINK_OPEN)
    return turn.rfind(THINK_OPEN) > turn.rfind(THINK_CLOSE)


def normalise_messages(messages: object) -> list[dict[str, Any]]:
    """What clients send -> what templates expect; the input stays as it is.

    ``developer`` is ``system``; all system messages become one at the beginning, joined by a blank line; parts of text
    become one string; ``arguments`` of tool calls become a mapping; ``reasoning`` is ``reasoning_content``.
    Raises RequestError that names the message.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise RequestError(f"messages is {_kind(messages)}; give a list of messages.", param="messages")
    if not messages:
        raise RequestError("messages is empty; give at least one user message.", param="messages")
    system: list[str] = []
    others: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        clean = _normalise(message, f"messages[{index}]")
        if clean["role"] == "system":
            system.append(clean["content"])
        else:
            others.append(clean)
    if not system:
        return others
    return [{"role": "system", "content": "\n\n".join(text for text in system if text)}, *others]


def _normalise(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is {_kind(message)}; give an object with role and content.", param=where)
    role = message.get("role")
    if role not in ROLES:
        known = ", ".join(ROLES[:-1])
        raise RequestError(f"{where} has the role {role!r}; known are {known} and {ROLES[-1]}.", param=f"{where}.role")
    clean = {key: value for key, value in message.items() if value is not None}
    clean["role"] = "system" if role == "developer" else role
    clean["content"] = _text(message.get("content"), f"{where}.content", optional=role in {"assistant", "tool"})
    if isinstance(reasoning := clean.pop("reasoning", None), str):
        clean.setdefault("reasoning_content", reasoning)
    calls = clean.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise RequestError(f"{where}.tool_calls is {_kind(calls)}; give a list.", param=f"{where}.tool_calls")
        clean["tool_calls"] = [_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]
    return clean


def _text(content: object, where: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if content is None:
        raise RequestError(f"{where} is missing; give a string.", param=where)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError(f"{where} is {_kind(content)}; give a string or a list of parts.", param=where)
    return "".join(_part(part, f"{where}[{at}]") for at, part in enumerate(content))


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return text
        raise RequestError(f"{where}.text is {_kind(text)}; give a string.", param=where)
    if kind is None:
        raise RequestError(f'{where} has no type; give {{"type": "text", "text": "..."}}.', param=where)
    if not isinstance(kind, str):
        raise RequestError(f'{where}.type is {_kind(kind)}; give a string, such as "text".', param=f"{where}.type")
    raise RequestError(f"{where} is of type {kind!r}, which is not supported yet; send text.", param=where)


def _call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} has no function with a name.", param=where)
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}.function.arguments is not JSON ({error}).", param=where) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{where}.function.arguments is {_kind(arguments)}; give a JSON object.", param=where)
    return {**call, "function": {**function, "arguments": dict(arguments)}}


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    text = str(getattr(error, "message", None) or error).rstrip(".")
    return text or type(error).__name__


def _read_settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _content(token: Any) -> Any:
    """A special token is written as a string or as an object with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _choose(found: Any, path: Path) -> str | None:
    """``chat_template``: a string, or a list of {"name", "template"} of which "default" or the only one counts."""
    if found is None or isinstance(found, str):
        return found
    named: dict[str, str] = {}
    for each in found if isinstance(found, list) else ():
        match each:
            case {"name": str(name), "template": str(template)}:
                named[name] = template
    if "default" in named or len(named) == 1:
        return named.get("default", next(iter(named.values())))
    raise TemplateError(f"{path}: chat_template has none named 'default' (found: {', '.join(named) or 'nothing'}).")
