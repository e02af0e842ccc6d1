"""An answer's guide, token by token: it begins behind the thinking, however that ends, and its calls can be read."""

from __future__ import annotations

import json
import random
import threading
from copy import copy
from pathlib import Path
from typing import Any

import pytest

import qwench
from qwench.config import ModelConfig
from qwench.engine.thinking import ThinkingRules
from qwench.errors import Overloaded, RequestError
from qwench.text import grammar as module
from qwench.text.call_grammar import CallGrammar, Form
from qwench.text.calls import CallReader
from qwench.text.grammar import MOST_COMPILED, AnswerGuide, Grammar, read_structure
from qwench.text.model import ModelText
from qwench.text.stream import TOOL_CALL, TOOL_CLOSE
from qwench.text.tools import Tools, read_tools
from tests.text.call_corpus import TOOLS
from tests.text.test_calls import understood

NANO = Path(qwench.__file__).parent / "assets" / "nano"


@pytest.fixture(scope="module")
def text() -> ModelText:
    return ModelText(NANO, ModelConfig.from_folder(NANO))


def wanted(**fields: Any) -> Grammar:
    grammar = read_structure(fields)
    assert grammar is not None
    return grammar


def allowed(guide: AnswerGuide, text: ModelText) -> set[int]:
    assert guide.mask is not None
    return {token for token in range(text.tokenizer.size) if guide.mask[token // 8] >> token % 8 & 1}


def spell(guide: AnswerGuide, text: ModelText, written: str) -> None:
    """Every token of it may come."""
    for token in text.tokenizer.encode(written):
        assert guide.mask is None or token in allowed(guide, text), (written, text.tokenizer.token_text(token))
        assert guide.accept([token]) is None


def rules(text: ModelText, **more: Any) -> ThinkingRules:
    prompt = text.chat_prompt([{"role": "user", "content": "q"}])
    return ThinkingRules(**{**vars(prompt.rules), **more})


def test_it_begins_behind_the_thinking(text: ModelText) -> None:
    end = {text.tokenizer.id_of("<|im_end|>")} - {None}
    for ending in ("</think>\n\n", "</think>", "\n\nenough\n</think>\n\n"):
        guide = text.grammars.guide(wanted(guided_choice=["yes", "no"]), rules(text, open=True))
        spell(guide, text, f'I think {{"a"{ending}')
        assert allowed(guide, text) & end == set()
        spell(guide, text, "yes")
        assert allowed(guide, text) >= end
        assert not {text.tokenizer.token_text(token).strip() for token in allowed(guide, text)} - {
            "<|im_end|>",
            "<|endoftext|>",
        }
    guide = text.grammars.guide(wanted(guided_choice=["yes"]), rules(text, open=False, may_open=True))
    assert text.tokenizer.id_of("<think>") in allowed(guide, text)
    spell(copy(guide), text, "yes")
    spell(guide, text, "<think>anything</think>\n\nyes")


def test_a_copy_goes_its_own_way(text: ModelText) -> None:
    guide = text.grammars.guide(wanted(guided_regex="(ab|ac)d"), ThinkingRules())
    spell(guide, text, "a")
    other = copy(guide)
    spell(guide, text, "bd")
    spell(other, text, "cd")


def test_tags_are_no_text(text: ModelText) -> None:
    guide = text.grammars.guide(wanted(guided_regex="(?s:.*)"), ThinkingRules())
    tags = allowed(guide, text) & set(text.tokenizer.added)
    assert tags <= text.stop_token_ids


def test_what_is_compiled_is_kept_within_bounds(text: ModelText) -> None:
    first = wanted(guided_choice=["0"])
    compiled = text.grammars.compile(first)
    assert text.grammars.compile(first) is compiled
    for number in range(MOST_COMPILED):
        text.grammars.compile(wanted(guided_choice=[f"n{number}"]))
    assert text.grammars.compile(first) is not compiled


def random_answer(guide: AnswerGuide, text: ModelText, seed: int, most: int = 400) -> str:
    """A text that the guide allows, drawn at random; endings are taken when they come."""
    rng, ids = random.Random(seed), list[int]()
    while len(ids) < most:
        may = sorted(allowed(guide, text)) if guide.mask is not None else text.tokenizer.encode(TOOL_CALL)
        ends = [token for token in may if token in text.stop_token_ids]
        if ends:
            break
        closing = [token for token in may if text.tokenizer.token_text(token).startswith(("\n", "</", '"', "}", "]"))]
        token = rng.choice(closing if closing and rng.random() < 0.6 else may)
        ids.append(token)
        assert guide.accept([token]) is None
    return text.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("form", ["tags", "json"])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_grammar_of_calls_allows_is_read_without_mending(text: ModelText, form: Form, seed: int) -> None:
    ids = [text.tokenizer.id_of(tag) for tag in (TOOL_CALL, TOOL_CLOSE)]
    assert ids[0] is not None
    assert ids[1] is not None
    tools = Tools((), TOOLS, most=1)
    grammar = CallGrammar(tools, form, ids[0], ids[1]).must()
    answer = random_answer(text.grammars.guide(grammar, ThinkingRules()), text, seed)
    if not answer.endswith(TOOL_CLOSE):
        return  # too long to end by chance
    reader = CallReader(TOOLS)
    pieces = reader.push(answer) + reader.finish()
    assert not [warning for warning in reader.warnings if "twice" not in warning], answer
    content, calls = understood(pieces)
    assert (content, len(calls)) == ("", 1)
    assert calls[0][0] in TOOLS


def test_calls_come_under_the_grammar_when_they_begin(text: ModelText) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": TOOLS["add"]}}
    tools = read_tools([tool])
    assert tools is not None
    prompt = text.guided(text.chat_prompt([{"role": "user", "content": "q"}], tools=tools.offered), tools, None)
    guide = prompt.guide
    assert isinstance(guide, AnswerGuide)
    assert guide.mask is None
    call = "<tool_call>\n<function=add>\n<parameter=a>\n12\n</parameter>\n</function>\n</tool_call>"
    spell(guide, text, f"Let me see. {call}\n{call} That was all.")
    spell(guide, text, "<tool_call>\n<function=add>\n<parameter=a>\n")
    assert "x" not in {text.tokenizer.token_text(token) for token in allowed(guide, text)}


def test_the_form_of_calls_is_the_templates(text: ModelText) -> None:
    assert text.chat.call_form == "tags"


def test_broken_wishes_are_refused_before_anything_runs(text: ModelText) -> None:
    broken: list[dict[str, Any]] = [
        {"guided_json": {"not": {}}},
        {"guided_json": json.dumps({"type": 5})},
        {"guided_regex": "("},
    ]
    for fields in broken:
        with pytest.raises(RequestError, match="cannot be held to"):
            text.grammars.compile(wanted(**fields))


def test_a_schema_that_allows_everything_is_any_json(text: ModelText) -> None:
    assert text.grammars.compile(wanted(guided_json=True)) is text.grammars.compile(wanted(guided_json={}))


def test_a_long_chain_of_references_overflows_no_stack(text: ModelText) -> None:
    chain = {str(at): {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{at + 1}"}}} for at in range(3_000)}
    text.grammars.compile(wanted(guided_json={"$ref": "#/$defs/0", "$defs": {**chain, "3000": {"type": "string"}}}))
    rules = "\n".join(f"r{at}: r{at + 1}" for at in range(18_000))
    text.grammars.compile(wanted(guided_grammar=f'start: r0\n{rules}\nr18000: "a"'))
    assert threading.stack_size() == 0  # of other threads, as it was


def test_a_compilation_that_hangs_holds_a_place_and_nothing_else(
    text: ModelText, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = text.grammars.compile(wanted(guided_choice=["known"]))
    go, plain = threading.Event(), module.compiled
    monkeypatch.setattr(module, "compiled", lambda *given: plain(*given) if go.wait(20) else None)
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(module, "PLACE_SECONDS", 0.05)
    for number in range(module.COMPILERS):
        with pytest.raises(RequestError, match="guided_choice is too large: it was not compiled within") as refused:
            text.grammars.compile(wanted(guided_choice=[f"hangs {number}"]))
        assert refused.value.param == "guided_choice"
    with pytest.raises(Overloaded, match="being compiled"):
        text.grammars.compile(wanted(guided_choice=["comes too late"]))
    assert text.grammars.compile(wanted(guided_choice=["known"])) is known
    go.set()
    monkeypatch.undo()
    assert not text.grammars.compile(wanted(guided_choice=["comes too late"])).is_error()
