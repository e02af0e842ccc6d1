"""ModelText: everything about a checkpoint that is text. Tokenizer, template, sampling presets, end tokens.

What the faces (LLM, server, commands) hold beside the engine. Knows no weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qwench.config import ModelConfig
from qwench.engine.request import Guide, MediaSpan, SamplingParams, Vocabulary
from qwench.engine.thinking import ThinkingRules
from qwench.errors import CheckpointError, RequestError, TemplateError
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.media.settings import VisionSettings
from qwench.text.call_grammar import CallGrammar
from qwench.text.chat import ChatTemplate, normalise_messages, prompt_opens_thinking
from qwench.text.gguf_text import gguf_template, gguf_tokenizer, gguf_vision
from qwench.text.grammar import Grammar, Grammars
from qwench.text.literal import Literal
from qwench.text.messages import complete, respell
from qwench.text.noise import without_noise
from qwench.text.presets import QWEN3, ModelPresets, presets_for
from qwench.text.stream import TOOL_CALL, TOOL_CLOSE
from qwench.text.thinking import KNOWN, UNBOUNDED, ThinkingPlan, closing_ids, rules_for, soft_switch
from qwench.text.tokenizer import Tokenizer
from qwench.text.tools import Tools
from qwench.text.vision import expand, media_of, text_of, without_pixels

TEMPLATE_OWN = frozenset(("messages", "tools", "add_generation_prompt"))
MOST_KNOWN = 64  # lists of tools
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation for the engine. ``thinks``: the model is expected to; ``thinking_open``: it already does.

    ``rules`` are what the engine holds the answer to, and ``guide`` what it lets it say; ``warnings`` tell of wishes
    that this model cannot meet. ``media`` says where pictures and videos lie among the ids.
    """

    text: str
    token_ids: list[int]
    thinking_open: bool
    thinks: bool
    rules: ThinkingRules
    warnings: tuple[str, ...] = ()
    media: tuple[MediaSpan, ...] = ()
    guide: Guide | None = None


class ModelText:
    """``keeps_noise``: what clients write anew with every request is left in system prompts.

    Raises CheckpointError, TemplateError or ConfigError if what ``files`` hold cannot be used.
    """

    def __init__(self, files: ModelFiles, config: ModelConfig, *, keeps_noise: bool = False) -> None:
        self.keeps_noise = keeps_noise
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
        self.vision: VisionSettings | None = None  # what pictures have to be like, where the checkpoint has eyes
        if config.vision is not None and isinstance(files, GgufFile):
            assert files.projector is not None, "where else would its configuration come from"
            self.vision = gguf_vision(files.projector, config.vision)
        elif config.vision is not None and not isinstance(files, GgufFile):
            self.vision = VisionSettings.from_folder(files, config.vision)
        self._known_faulty: OrderedDict[str, frozenset[str]] = OrderedDict()
        self.presets: ModelPresets = presets_for(files, config)
        self._obeys_soft_switch = config.model_type in QWEN3
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
        thinking: ThinkingPlan | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """Messages as clients send them -> prompt. Raises RequestError or TemplateError.

        ``variables`` are the request's chat_template_kwargs, of which those that ``thinking`` was read from are left
        out. Where the template always opens the block, off means that the engine closes it at once. Thinking that the
        template does not have is refused if a switch insists, because nothing would come of it, else warned about.
        """
        thinking = thinking or ThinkingPlan()
        more = {name: value for name, value in (variables or {}).items() if f"chat_template_kwargs.{name}" not in KNOWN}
        for name in more:
            if name in TEMPLATE_OWN:
                raise _taken(name, "has a parameter of its own; use that")
            if name in self.chat.reserved:
                raise _taken(name, "is the chat template's own; leave it out")
        switch = thinking.enabled if thinking.insists or self.chat.can_think else None
        respelled, used = respell(messages)
        clean: Sequence[Mapping[str, Any]] = normalise_messages(respelled)
        clean, warnings = (clean, []) if self.keeps_noise else without_noise(clean)
        clean, added = complete(clean)
        warnings += [f"messages: {rule}" for rule in (*used, *added)]
        seen = media_of(clean)
        literal = Literal(self.tokenizer, without_pixels(clean), tools, more)
        text = self.chat.render(
            literal.messages,
            tools=literal.tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=switch,
            variables=literal.variables,
        )
        opened = prompt_opens_thinking(text)
        may_think = self.chat.will_think(text)
        source = next(iter(thinking.sources), "enable_thinking")
        if thinking.enabled and not may_think:
            if switch and add_generation_prompt:
                raise RequestError(
                    f"{source} asks for thinking, but this model's chat template has no thinking mode; leave it out.",
                    param=source,
                )
            warnings.append(f"{source}: no effect, this model has no thinking mode")
        asked = soft_switch([{**message, "content": text_of(message["content"])} for message in clean])
        if asked is not None and not self._obeys_soft_switch:
            warnings.append("messages: this model does not know /think and /no_think, send enable_thinking")
        silenced = thinking.enabled is False or (asked is False and self._obeys_soft_switch and not opened)
        rules = self._rules(thinking, opened=opened, may_think=may_think, begun=not add_generation_prompt)
        thinks = may_think and not silenced
        ids, spans = expand(literal.encode(text), seen, self.tokenizer)
        return ChatPrompt(literal.text(text), ids, opened, thinks, rules, tuple(warnings), spans)

    def guided(self, prompt: ChatPrompt, tools: Tools | None, grammar: Grammar | None) -> ChatPrompt:
        """``prompt`` with a guide that holds the answer to ``grammar``, and calls to the schemas of ``tools``.

        Raises RequestError for what cannot be held to. Where a call is only possible, it is told.
        """
        warnings: list[str] = []
        if tools is not None:
            grammar = self._of_calls(tools, grammar, warnings)
        guide = None if grammar is None else self.grammars.guide(grammar, prompt.rules)
        return replace(prompt, guide=guide, warnings=(*prompt.warnings, *warnings))

    def _of_calls(self, tools: Tools, answer: Grammar | None, warnings: list[str]) -> Grammar | None:
        form, open_id, close_id = self.chat.call_form, self.tokenizer.id_of(TOOL_CALL), self.tokenizer.id_of(TOOL_CLOSE)
        must = tools.required or bool(tools.strict) or answer is not None
        if form is None or open_id is None or close_id is None:
            if must:
                raise RequestError("tools cannot be held to: this model has no form of calls.", param="tools")
            return None
        if answer is not None and answer.rule is None and not tools.required:
            raise RequestError(f"{answer.field} cannot be combined with tools; send one of them.", param=answer.field)

        def of(some: Tools, loose: frozenset[str]) -> Grammar:
            calls = CallGrammar(some, form, open_id, close_id, loose=loose)
            if not tools.required and answer is None:
                return calls.whenever()
            return calls.must(None if tools.required or answer is None else answer.rule)

        complaint: RequestError | None = None
        for loose in self._loosenings(tools, of):
            if complaint is not None and loose & tools.strict:
                raise complaint
            try:
                wanted = of(tools, loose)
                self.grammars.compile(wanted)
            except RequestError as error:
                complaint = complaint or error
            else:
                if complaint is not None:
                    names = "" if len(loose) == len(tools.parameters) else f" of {', '.join(sorted(loose))}"
                    warnings.append(f"{complaint.message.rstrip('.')}; only types{names} are held to")
                return wanted
        assert complaint is not None
        if must:
            raise complaint
        warnings.append(f"{complaint.message.rstrip('.')}; nothing of them is held to")
        return None

    def _loosenings(self, tools: Tools, of: Callable[[Tools, frozenset[str]], Grammar]) -> Iterator[frozenset[str]]:
        """Of which tools only types shall count: none; then those that alone cannot be held to; then all."""
        yield frozenset()
        if faulty := self._faulty(tools, of):
            yield faulty
        yield frozenset(tools.parameters)

    def _faulty(self, tools: Tools, of: Callable[[Tools, frozenset[str]], Grammar]) -> frozenset[str]:
        """The tools that alone cannot be held to. Agents send the same ones each time: remembered."""
        key = repr((tools.parameters, sorted(tools.strict)))
        found = self._known_faulty.get(key)
        if found is None:
            found = frozenset(name for name in tools.parameters if not self._holds_to(tools, name, of))
            self._known_faulty[key] = found
            if len(self._known_faulty) > MOST_KNOWN:
                self._known_faulty.popitem(last=False)
        return found

    def _holds_to(self, tools: Tools, name: str, of: Callable[[Tools, frozenset[str]], Grammar]) -> bool:
        try:
            self.grammars.compile(
                of(replace(tools, parameters={name: tools.parameters[name]}), frozenset()), keep=False
            )
        except RequestError:
            return False
        return True

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.stop_token_ids)

    def _rules(self, plan: ThinkingPlan, *, opened: bool, may_think: bool, begun: bool) -> ThinkingRules:
        """What the engine holds the answer to."""
        shared = self._shared_rules
        if shared.close_id is None:
            return replace(shared, begun=begun)
        budget = self.presets.thinking_budget if plan.budget is None else plan.budget
        rules = replace(shared, open=opened, may_open=may_think and not opened, begun=begun)
        if plan.enabled is False:  # a block that the template has opened all the same: an empty one
            return replace(rules, budget=0, sentence=shared.bare)
        sentence = closing_ids(plan.sentence, self.tokenizer) if plan.sentence else shared.sentence
        return replace(rules, budget=None if budget == UNBOUNDED else budget, sentence=sentence)

    @cached_property
    def _shared_rules(self) -> ThinkingRules:
        return rules_for(self.tokenizer, self.stop_token_ids)

    def sampling_defaults(self, thinking: bool) -> SamplingParams:
        """The recommended sampling of the mode."""
        return self.presets.of(thinking=thinking).params()

    def sampling(self, thinking: bool, overrides: Mapping[str, Any]) -> SamplingParams:
        """The recommended sampling with the user's fields on top (temperature 0: greedy, nothing recommended stays)."""
        return self.presets.of(thinking=thinking).params(overrides)


def _taken(name: str, reason: str) -> RequestError:
    return RequestError(f"chat_template_kwargs holds {name}, which {reason}.", param="chat_template_kwargs")
