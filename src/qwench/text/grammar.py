"""Structured output: what a request wants of its answer's form, compiled for one tokenizer, and obeyed token by token.

The automaton is llguidance's. A grammar is about the answer alone: it begins when thinking is over, however that ended,
and knows nothing of what was thought. What cannot be held to is refused by name before anything runs; nothing is ever
promised and then left out. Knows no engine: ``AnswerGuide`` is what the engine calls a Guide.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from threading import BoundedSemaphore, Event, Lock, Thread, stack_size
from typing import TYPE_CHECKING, Any

from qwench.engine.thinking import ThinkingRules
from qwench.errors import Overloaded, RequestError
from qwench.text.lean import lean
from qwench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance  # imported where it is first needed: most answers have no grammar

MOST_COMPILED = 64
MOST_CHARACTERS = 256 * 1024  # of a grammar's source
COMPILERS = 2  # grammars that are compiled at a time
COMPILE_SECONDS = 5.0  # what hangs longer holds one of these places; whoever waits for one is told to come again
PLACE_SECONDS = 2.0
# Bytes of a compiler's stack: a chain of references is followed by recursion, and a stack that overflows ends the
# process. The longest chain within MOST_CHARACTERS takes less than half; the bytes are reserved, and used by it alone.
STACK = 512 << 20
# Between two parts of JSON: a line and its indent, and no more of a model that writes nothing but blanks.
JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": r"\n?[ \t]{0,40}"}
LISTED = re.compile(r"\s*(\d+ \||\^$)")  # a line of the grammar in llguidance's complaint

KINDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "lark",
    "grammar": "lark",
}
OUTPUTS = {"json": "json", "regex": "regex", "choice": "choice", "grammar": "lark"}  # of structured_outputs


@dataclass(frozen=True)
class Grammar:
    """What an answer has to be: ``source`` is llguidance's, ``field`` is who asked for it, for sentences.

    ``rule`` is the same as part of a grammar in Lark's form, where it can be. ``begins_with``: the answer is free until
    this token, and again when the grammar is fulfilled (calls of tools).
    """

    source: str
    field: str
    rule: str | None = None
    begins_with: int | None = None


class Grammars:
    """All that is compiled for one tokenizer; for any thread. The first use lays out the vocabulary, once."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._lock = Lock()
        self._places = BoundedSemaphore(COMPILERS)
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def guide(self, grammar: Grammar, rules: ThinkingRules) -> AnswerGuide:
        """A guide at the beginning of an answer. Raises RequestError."""
        return AnswerGuide(self.compile(grammar), grammar, rules, self._breaks())

    def compile(self, grammar: Grammar, *, keep: bool = True) -> llguidance.LLMatcher:
        """The automaton at its beginning, to be copied. Raises RequestError, or Overloaded while others compile."""
        if len(grammar.source) > MOST_CHARACTERS:
            reason = f"its grammar has {len(grammar.source)} characters, more than {MOST_CHARACTERS}"
            raise RequestError(f"{grammar.field} is too large: {reason}.", param=grammar.field)
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._lay_out()
            found = self._compiled.get(grammar.source)
            if found is not None:
                self._compiled.move_to_end(grammar.source)
                return found
        matcher = self._in_time(self._vocabulary, grammar)
        if matcher.is_error():
            raise RequestError(f"{grammar.field} cannot be held to: {_reason(matcher)}.", param=grammar.field)
        with self._lock:
            if not keep:
                return matcher
            self._compiled[grammar.source] = matcher
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        return matcher

    def _in_time(self, vocabulary: llguidance.LLTokenizer, grammar: Grammar) -> llguidance.LLMatcher:
        """The compiled grammar, made on a thread that nobody waits for when it hangs."""
        if not self._places.acquire(timeout=PLACE_SECONDS):
            raise Overloaded("Too many grammars are being compiled; send the request again later.")
        found: list[llguidance.LLMatcher] = []
        done = Event()

        def work() -> None:
            try:
                found.append(compiled(vocabulary, grammar.source))
            finally:
                self._places.release()
                done.set()

        _start_deep(Thread(target=work, name="qwench-grammar", daemon=True))
        if not done.wait(COMPILE_SECONDS) or not found:
            reason = f"it was not compiled within {COMPILE_SECONDS:g} seconds; simplify it"
            raise RequestError(f"{grammar.field} is too large: {reason}.", param=grammar.field)
        return found[0]

    def _lay_out(self) -> llguidance.LLTokenizer:
        import llguidance

        wrapper = llguidance.TokenizerWrapper(_Words(self._tokenizer, self._end_ids))
        return llguidance.LLTokenizer(wrapper, n_vocab=self._tokenizer.size, eos_token=sorted(self._end_ids))

    def _breaks(self) -> frozenset[int]:
        """Tokens of nothing but line breaks, which models write behind their thoughts."""
        found = (self._tokenizer.id_of(token) for token in ("Ċ", "ĊĊ"))
        return frozenset(token for token in found if token is not None)


_starting = Lock()  # the size is everybody's


def _start_deep(thread: Thread) -> None:
    """Start it with a stack of STACK bytes."""
    with _starting:
        usual = stack_size(STACK)
        try:
            thread.start()
        finally:
            stack_size(usual)


def limits() -> llguidance.LLParserLimits:
    """What bounds the time and memory of one grammar."""
    import llguidance

    return llguidance.LLParserLimits(max_items_in_row=20_000, step_max_items=500_000, max_grammar_size=500_000)


def compiled(vocabulary: llguidance.LLTokenizer, source: str) -> llguidance.LLMatcher:
    """The automaton of ``source``, or one that says what is wrong with it."""
    import llguidance

    matcher = llguidance.LLMatcher(vocabulary, source, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()  # some limits are met only here
    return matcher


class _Words:
    """The vocabulary as llguidance reads it. Tags are words of their own, which no text contains."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.eos_token_id = min(end_ids, default=0)
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.added)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_plain(text.decode("utf-8", "replace"))


class _Phase(Enum):
    THINKING = "inside the think block: anything"
    MAY_THINK = "the first token may open it"
    BREAK = "just behind it: the line breaks that belong there, or the answer"
    FREE = "anything until a call begins"
    ANSWER = "by the grammar"


class AnswerGuide:
    """One answer on its way. ``mask`` is what may come next, as the engine reads it."""

    def __init__(
        self, matcher: llguidance.LLMatcher, grammar: Grammar, rules: ThinkingRules, breaks: frozenset[int]
    ) -> None:
        self._start = matcher  # never advanced
        self._matcher = matcher.deep_copy()
        self._grammar = grammar
        self._rules = rules
        self._breaks = breaks
        self._phase = _Phase.THINKING if rules.open else self._answer_phase()
        if rules.may_open and rules.budget != 0 and grammar.begins_with is None:
            self._phase = _Phase.MAY_THINK
        self.mask: bytes | None = None
        self._set_mask()

    def __copy__(self) -> AnswerGuide:
        other = object.__new__(AnswerGuide)
        vars(other).update(vars(self))
        other._matcher = self._matcher.deep_copy()
        return other

    def accept(self, token_ids: Sequence[int]) -> str | None:
        for token in token_ids:
            self._advance(token)
        return self._set_mask()

    def _advance(self, token: int) -> None:
        rules, phase = self._rules, self._phase
        if phase is _Phase.THINKING:
            if token == rules.close_id:
                self._phase = _Phase.FREE if self._grammar.begins_with is not None else _Phase.BREAK
                return
            if token != rules.tool_id:
                return
            self._phase = self._answer_phase()
        elif phase is _Phase.MAY_THINK and token == rules.open_id:
            self._phase = _Phase.THINKING
            return
        elif phase is _Phase.BREAK and token in self._breaks:
            self._phase = _Phase.ANSWER
            return
        if self._phase is _Phase.FREE:
            if token != self._grammar.begins_with:
                return
            self._matcher = self._start.deep_copy()
        self._phase = _Phase.ANSWER
        self._matcher.consume_token(token)
        if self._grammar.begins_with is not None and self._matcher.is_accepting():
            self._phase = _Phase.FREE

    def _answer_phase(self) -> _Phase:
        return _Phase.ANSWER if self._grammar.begins_with is None else _Phase.FREE

    def _set_mask(self) -> str | None:
        """The mask of now. Returns what the automaton died of; then nothing may come."""
        if self._phase in (_Phase.THINKING, _Phase.FREE):
            self.mask = None
            return None
        mask = self._matcher.compute_bitmask() if not self._matcher.is_error() else b""
        if self._matcher.is_error():
            return f"{self._grammar.field} could not be followed further ({_reason(self._matcher)})"
        more = set[int | None]()
        if self._phase is _Phase.MAY_THINK:
            more = {self._rules.open_id}
        elif self._phase is _Phase.BREAK:
            more = set(self._breaks)
        self.mask = _with(mask, {token for token in more if token is not None})
        return None


def _with(mask: bytes, ids: set[int]) -> bytes:
    if not ids:
        return mask
    bits = bytearray(mask)
    for token in ids:
        bits[token // 8] |= 1 << token % 8
    return bytes(bits)


def read_structure(fields: Mapping[str, Any]) -> Grammar | None:
    """What a request's fields want, in the spellings of OpenAI, vLLM and llama.cpp; None without a wish.

    Raises RequestError, also for wishes of two fields.
    """
    wishes: list[tuple[str, str, Any]] = []  # the field, a kind of grammar, and what it holds
    for name, value in fields.items():
        if value is None:
            continue
        if name in KINDS:
            wishes.append((name, KINDS[name], value))
        elif name == "response_format":
            wishes += _response_format(value)
        elif name == "structured_outputs":
            wishes += _structured_outputs(value)
    if len(wishes) > 1:
        reason = f"{wishes[0][0]} and {wishes[1][0]} both say what the answer has to be; send one"
        raise RequestError(f"{reason}.", param=wishes[1][0])
    return _grammar(*wishes[0]) if wishes else None


def _response_format(value: Any) -> list[tuple[str, str, Any]]:
    field, kind = "response_format", value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return []
    if kind == "json_object":
        return [(field, "json", value.get("schema") or {"type": "object"})]
    if kind == "json_schema":
        inner = value.get("json_schema")
        if not isinstance(inner, Mapping) or "schema" not in inner:
            raise RequestError(f"{field}.json_schema.schema is missing; send a JSON schema.", param=field)
        return [(field, "json", inner["schema"])]
    if kind in ("regex", "grammar"):
        return [(field, "lark" if kind == "grammar" else kind, value.get("pattern" if kind == "regex" else kind))]
    known = "text, json_object, json_schema, regex or grammar"
    raise RequestError(f"{field} is {value!r:.80}; its type should be {known}.", param=field)


def _structured_outputs(value: Any) -> list[tuple[str, str, Any]]:
    given = {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, Mapping) else {}
    found = [(f"structured_outputs.{name}", OUTPUTS[name], inner) for name, inner in given.items() if name in OUTPUTS]
    if given.get("json_object"):
        found.append(("structured_outputs.json_object", "json", {"type": "object"}))
    if not found:
        known = ", ".join((*OUTPUTS, "json_object"))
        raise RequestError(f"structured_outputs is {value!r:.80}; give one of {known}.", param="structured_outputs")
    return found


def _grammar(field: str, kind: str, wanted: Any) -> Grammar:
    """What ``field`` holds, a grammar of one kind. Raises RequestError."""
    import llguidance

    if kind == "json":
        return _json_grammar(field, wanted)
    if kind == "choice":
        if not isinstance(wanted, list) or not wanted or not all(isinstance(each, str) and each for each in wanted):
            raise RequestError(f"{field} is {wanted!r:.80}; give a list of texts that are not empty.", param=field)
        rule = " | ".join(json.dumps(each, ensure_ascii=False) for each in wanted)
        return Grammar(lark_source(f"start: {rule}"), field, f"({rule})")
    if not isinstance(wanted, str) or not wanted.strip():
        raise RequestError(f"{field} is {wanted!r:.80}; give a text.", param=field)
    if kind == "regex":
        rule = "/" + re.sub(r"(?<!\\)/", r"\/", wanted) + "/"
        return Grammar(llguidance.LLMatcher.grammar_from_regex(wanted), field, rule)
    if "::=" in wanted:
        raise RequestError(f"{field} is in GBNF or EBNF; write it in Lark's form (docs/structured.md).", param=field)
    return Grammar(lark_source(wanted), field)


def _json_grammar(field: str, schema: Any) -> Grammar:
    import llguidance

    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field} is not JSON ({error}); give a JSON schema.", param=field) from None
    if not isinstance(schema, (dict, bool)):
        raise RequestError(f"{field} is {schema!r:.80}; give a JSON schema, an object.", param=field)
    schema = {} if schema is True else schema
    try:
        source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(lean(schema)), overrides=JSON_OPTIONS)
        return Grammar(source, field, json_rule(schema) if isinstance(schema, dict) else None)
    except (ValueError, RecursionError) as error:  # it nests too deeply, or is `false`
        raise RequestError(f"{field} is no schema that an answer can be held to ({error}).", param=field) from None


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of ``schema`` as part of a grammar in Lark's form."""
    return f"%json {json.dumps({**lean(schema), 'x-guidance': JSON_OPTIONS})}"


def lark_source(text: str) -> str:
    import llguidance

    return llguidance.LLMatcher.grammar_from_lark(text)


def _reason(matcher: llguidance.LLMatcher) -> str:
    """llguidance's sentence on one line, without the grammar it repeats."""
    if "coerce_one_of" in matcher.get_error():
        return "oneOf whose members are not plainly different; anyOf can be"
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip() and not LISTED.match(line)]
    return " ".join(lines).partition(" <state>")[0][:400].rstrip(".") or "no reason given"
