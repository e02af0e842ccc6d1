"""ModelText: everything about a checkpoint that is text. Tokenizer, template, sampling presets, end tokens.

What the faces (LLM, server, commands) hold beside the engine. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.config import ModelConfig
from qwench.engine.request import SamplingParams, Vocabulary
from qwench.errors import CheckpointError, RequestError, TemplateError
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.text.chat import ChatTemplate, normalise_messages, prompt_opens_thinking
from qwench.text.gguf_text import gguf_template, gguf_tokenizer
from qwench.text.presets import ModelPresets, presets_for
from qwench.text.tokenizer import Tokenizer

TEMPLATE_OWN = frozenset(("messages", "tools", "add_generation_prompt"))
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation for the engine. ``thinks``: the model is expected to; ``thinking_open``: it already does."""

    text: str
    token_ids: list[int]
    thinking_open: bool
    thinks: bool


class ModelText:
    """Raises CheckpointError, TemplateError or ConfigError if what ``files`` hold cannot be used."""

    def __init__(self, files: ModelFiles, config: ModelConfig) -> None:
        self.template: ChatTemplate | None
        if isinstance(files, GgufFile):
            self.path = files.path
            self.tokenizer = gguf_tokenizer(files)
            self.template = gguf_template(files, self.tokenizer)
        else:
            self.path = files
            self.tokenizer = Tokenizer.from_folder(files)
            self.template = ChatTemplate.from_folder(files, self.tokenizer)
        if self.tokenizer.size > config.vocab_size:
            raise CheckpointError(
                f"{self.path / 'tokenizer.json'} has {self.tokenizer.size} ids, but vocab_size in config.json is "
                f"{config.vocab_size}; the two files belong to different models."
            )
        self.presets: ModelPresets = presets_for(files, config)
        ends = (self.tokenizer.id_of(token) for token in END_TOKENS)
        stops = {*config.eos_token_ids, *(end for end in ends if end is not None)}
        # A padding row is never drawn, so it cannot end an answer either.
        self.stop_token_ids: frozenset[int] = frozenset(stop for stop in stops if stop < self.tokenizer.size)

    @property
    def chat(self) -> ChatTemplate:
        """The template; TemplateError if the checkpoint has none."""
        if self.template is None:
            raise TemplateError(
                "This checkpoint has no chat template, neither as chat_template.jinja nor in tokenizer_config.json; "
                "add that file, or use generate or /v1/completions, which need none.",
                param="messages",
            )
        return self.template

    @property
    def vocabulary(self) -> Vocabulary:
        """What the engine has to know of this tokenizer."""
        return Vocabulary(self.tokenizer.size, self.stop_token_ids)

    def chat_prompt(
        self,
        messages: object,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """Messages as clients send them -> prompt. Raises RequestError or TemplateError.

        ``variables`` are the request's chat_template_kwargs; ``enable_thinking`` may be among them. A thinking switch
        that the template does not have is refused, because nothing would come of it.
        """
        more = dict(variables or {})
        enable_thinking = _one_switch(enable_thinking, more.pop("enable_thinking", None))
        for name in more:
            if name in TEMPLATE_OWN:
                raise _taken(name, "has a parameter of its own; use that")
            if name in self.chat.reserved:
                raise _taken(name, "is the chat template's own; leave it out")
        text = self.chat.render(
            normalise_messages(messages),
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            variables=more,
        )
        opened = prompt_opens_thinking(text)
        if (
            enable_thinking is not None
            and add_generation_prompt
            and not self.chat.can_think
            and enable_thinking != opened
        ):
            always = "always thinks" if opened else "has no thinking mode"
            raise RequestError(
                f"enable_thinking is {enable_thinking}, but this model's chat template {always}; leave it out.",
                param="enable_thinking",
            )
        return ChatPrompt(text, self.tokenizer.encode(text), opened, self.chat.will_think(text))

    def sampling_defaults(self, thinking: bool) -> SamplingParams:
        """The recommended sampling of the mode."""
        return self.presets.of(thinking=thinking).params()

    def sampling(self, thinking: bool, overrides: Mapping[str, Any]) -> SamplingParams:
        """The recommended sampling with the user's fields on top (temperature 0: greedy, nothing recommended stays)."""
        return self.presets.of(thinking=thinking).params(overrides)


def _taken(name: str, reason: str) -> RequestError:
    return RequestError(f"chat_template_kwargs holds {name}, which {reason}.", param="chat_template_kwargs")


def _one_switch(enable: object, inner: object) -> bool | None:
    """The one meaning of both thinking switches, or None where neither was given. Raises RequestError."""
    for name, value in (("enable_thinking", enable), ("chat_template_kwargs.enable_thinking", inner)):
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"{name} is {value!r:.80}; it should be true, false or left out.", param=name)
    if enable is not None and inner is not None and enable != inner:
        raise RequestError(
            "enable_thinking and chat_template_kwargs.enable_thinking disagree; send one of them.",
            param="enable_thinking",
        )
    found = inner if enable is None else enable
    assert found is None or isinstance(found, bool)
    return found
