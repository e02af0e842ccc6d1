"""Every spelling of thinking means what the table says, disagreements are told by name, the document lists them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from qwench.engine.thinking import Closing, Thought
from qwench.errors import RequestError
from qwench.text.model import ModelText
from qwench.text.presets import SMALL_BUDGETS
from qwench.text.thinking import EFFORTS, SPELLINGS, UNBOUNDED, ThinkingPlan, read_thinking
from tests.meta.tree import ROOT
from tests.text.test_presets import QWEN3, USER, config
from tests.text.tiny import TEMPLATE, write_text_files

DOCUMENT = (ROOT / "docs" / "thinking.md").read_text(encoding="utf-8")


def spelled(name: str, value: object) -> dict[str, Any]:
    """A request that says ``value`` in the field ``name``."""
    outer, _, inner = name.partition(".")
    return {outer: {inner: value}} if inner else {outer: value}


def wish(**fields: Any) -> tuple[bool | None, int | None, list[str]]:
    plan = read_thinking(fields)
    return plan.enabled, plan.budget, [warning.partition(":")[0] for warning in plan.warnings]


@pytest.mark.parametrize("name", [each.name for each in SPELLINGS if each.meaning == "switch"])
def test_every_switch_switches(name: str) -> None:
    for value in (True, False):
        plan = read_thinking(spelled(name, value))
        assert (plan.enabled, plan.insists, plan.sources, plan.warnings) == (value, True, (name,), ())
    for wrong in ("false", "true", 0, 1):
        if name != "think" or not isinstance(wrong, str):
            with pytest.raises(RequestError, match=rf"^{re.escape(name)} is .* true, false or left out"):
                read_thinking(spelled(name, wrong))


@pytest.mark.parametrize(
    "spelling", [each for each in SPELLINGS if each.meaning == "budget"], ids=lambda each: each.name
)
def test_every_budget_bounds(spelling: Any) -> None:
    name = spelling.name
    plan = read_thinking(spelled(name, 100))
    assert (plan.enabled, plan.budget, plan.insists, plan.sources) == (True, 100, False, (name,))
    assert read_thinking(spelled(name, 0)).enabled is False
    for wrong in (-2, 2**31, True, 1.5, "100"):
        with pytest.raises(RequestError, match=rf"^{re.escape(name)} is .*; give a number of tokens from 0") as caught:
            read_thinking(spelled(name, wrong))
        assert caught.value.param == name
    if spelling.unbounded:
        assert read_thinking(spelled(name, -1)).budget == UNBOUNDED
    else:
        with pytest.raises(RequestError, match="is -1"):
            read_thinking(spelled(name, -1))


@pytest.mark.parametrize("name", [*(each.name for each in SPELLINGS if each.meaning == "effort"), "think"])
@pytest.mark.parametrize("effort", EFFORTS)
def test_every_level_of_effort_is_a_budget(name: str, effort: str) -> None:
    plan = read_thinking(spelled(name, effort))
    if effort == "none":
        assert (plan.enabled, plan.insists, plan.budget) == (False, True, None)
    else:
        assert (plan.enabled, plan.insists) == (True, False)
        assert plan.budget == (UNBOUNDED if effort == "max" else EFFORTS[effort])
    with pytest.raises(RequestError, match=r"'huge'; known are none, minimal, low, medium, high, xhigh, max\.$"):
        read_thinking(spelled(name, "huge"))


@pytest.mark.parametrize(
    ("fields", "enabled", "budget", "warned"),
    [
        ({}, None, None, []),
        ({"enable_thinking": None, "reasoning": {"effort": None}}, None, None, []),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, True, 2048, []),
        ({"thinking": {"type": "disabled"}}, False, None, []),
        ({"thinking": {"type": "adaptive"}}, None, None, ["thinking.type"]),
        ({"reasoning": {"max_tokens": 50, "enabled": True}}, True, 50, []),
        ({"enable_thinking": False, "thinking_budget": 64}, False, None, ["thinking_budget"]),
        ({"enable_thinking": False, "reasoning_effort": "high"}, False, None, ["reasoning_effort"]),
        ({"enable_thinking": True, "thinking_budget": 0}, False, 0, ["enable_thinking"]),
        ({"reasoning_effort": "high", "thinking_budget": 64}, True, 64, ["reasoning_effort"]),
        ({"enable_thinking": True, "think": True, "thinking_budget": 9, "reasoning_budget": 9}, True, 9, []),
        ({"enable_thinking": True, "reasoning_effort": "low"}, True, 1024, []),
        ({"reasoning": {"effort": "low", "summary": "auto", "depth": 3}}, True, 1024,
         ["reasoning.summary", "reasoning.depth"]),
        ({"chat_template_kwargs": {"anything": 3}}, None, None, []),
    ],
    ids=str,
)  # fmt: skip
def test_spellings_together(
    fields: dict[str, Any], enabled: bool | None, budget: int | None, warned: list[str]
) -> None:
    assert wish(**fields) == (enabled, budget, warned)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"enable_thinking": True, "think": False}, r"enable_thinking (true) and think (false) disagree"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, r"reasoning_effort (none) and enable_thinking (true)"),
        ({"thinking_budget": 5, "reasoning": {"max_tokens": 6}}, r"thinking_budget (5) and reasoning.max_tokens (6)"),
        ({"reasoning_effort": "low", "output_config": {"effort": "max"}}, "reasoning_effort (low) and output_config"),
    ],
)  # fmt: skip
def test_what_cannot_both_be_meant_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=re.escape(sentence)):
        read_thinking(fields)


def test_reasoning_can_be_left_out() -> None:
    for fields in (
        {"reasoning": {"exclude": True}},
        {"include_reasoning": False},
        {"thinking": {"display": "omitted"}},
    ):
        assert not read_thinking(fields).show
    for fields in ({"reasoning": {"exclude": False}}, {"include_reasoning": True}, {"thinking": {"display": "full"}}):
        assert read_thinking(fields).show


def model(folder: Path, kind: str = "qwen3_5", template: str = TEMPLATE) -> ModelText:
    return ModelText(write_text_files(folder, template=template), config(kind, 1024, 24))


def test_the_rules_of_a_plan(tmp_path: Path) -> None:
    text = model(tmp_path)
    close = text.tokenizer.id_of("</think>")
    rules = text.chat_prompt(USER).rules
    assert (rules.open, rules.may_open, rules.budget, rules.begun) == (
        True,
        False,
        SMALL_BUDGETS["Qwen3.5-0.8B"],
        False,
    )
    told = text.tokenizer.decode(rules.sentence, skip_special_tokens=False)
    assert told.startswith("\n\nConsidering the limited time")
    assert told.endswith("directly now.\n</think>\n\n")
    assert rules.sentence.count(close or 0) == rules.bare.count(close or 0) == 1
    off = text.chat_prompt(USER, thinking=read_thinking({"think": False})).rules
    assert (off.open, off.may_open) == (False, False)
    free = text.chat_prompt(USER, thinking=read_thinking({"reasoning_budget": -1}))
    assert free.rules.budget is None
    own = text.chat_prompt(USER, thinking=read_thinking({"reasoning_budget_message": "Enough of </think>."})).rules
    assert text.tokenizer.decode(own.sentence).startswith("\n\nEnough of </think>.\n</think>")
    assert own.sentence.count(close or 0) == 1  # what a user spells is text
    assert text.chat_prompt(USER, add_generation_prompt=False).rules.begun


def test_qwen3_opens_the_block_itself_and_knows_soft_switches(tmp_path: Path) -> None:
    text = model(tmp_path, "qwen3", QWEN3)
    for said, thinks in (("Hi", True), ("Hi /no_think", False), ("/no_think then /think", True), ("a/no_think", True)):
        prompt = text.chat_prompt([{"role": "user", "content": said}])
        assert (prompt.thinks, prompt.rules.open, prompt.rules.may_open) == (thinks, False, True)
        assert prompt.warnings == ()
    off = text.chat_prompt([{"role": "user", "content": "Hi /think"}], thinking=read_thinking({"think": False}))
    assert (off.thinks, off.rules.may_open, off.warnings) == (False, False, ())


def test_soft_switches_that_a_model_does_not_know_are_warned_about(tmp_path: Path) -> None:
    prompt = model(tmp_path).chat_prompt([{"role": "user", "content": "Hi /no_think"}])
    assert prompt.thinks
    assert prompt.warnings == ("messages: this model does not know /think and /no_think, send enable_thinking",)


def test_a_wish_that_a_model_cannot_meet_is_a_warning_and_a_switch_an_error(tmp_path: Path) -> None:
    text = model(tmp_path, template="<|im_start|>assistant\n")
    prompt = text.chat_prompt(USER, thinking=read_thinking({"reasoning_effort": "high"}))
    assert prompt.warnings == ("reasoning_effort: no effect, this model has no thinking mode",)
    with pytest.raises(RequestError, match="has no thinking mode"):
        text.chat_prompt(USER, thinking=read_thinking({"think": True}))


def test_off_closes_a_block_that_the_template_always_opens(tmp_path: Path) -> None:
    text = model(tmp_path, template="<|im_start|>assistant\n<think>\n")
    for spelling in ({"thinking_budget": 0}, {"enable_thinking": False}, {"reasoning_effort": "none"}):
        prompt = text.chat_prompt(USER, thinking=read_thinking(spelling))
        assert (prompt.thinks, prompt.rules.open, prompt.rules.budget, prompt.rules.window) == (False, True, 0, 0)
        assert Thought(prompt.rules, 1000).take(5) == prompt.rules.bare  # no sentence about something that was not


def test_blank_ids_are_those_that_say_nothing(tmp_path: Path) -> None:
    tokenizer = model(tmp_path).tokenizer
    blank = tokenizer.blank_ids
    assert tokenizer.special_ids <= blank
    for text in (" ", "\n", "\n\n", "\t", "\u3000", "\u2003", "\u00a0"):
        assert blank.issuperset(tokenizer.encode(text)), text
    for text in ("a", " a", "0", ".", "日", "é", "👍", "<tool_call>", "\u0000"):
        assert not blank.issuperset(tokenizer.encode(text)), text


def test_the_document_lists_every_spelling_and_every_end() -> None:
    assert re.findall(r"^\| `([\w.]+)` \|", DOCUMENT.partition("Levels of")[0], flags=re.MULTILINE) != []
    listed = set(re.findall(r"^\| `([\w.]+)` \|", DOCUMENT.partition("Levels of")[0], flags=re.MULTILINE))
    assert listed == {each.name for each in SPELLINGS}
    ends = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.partition("| `closed_by` |")[2], flags=re.MULTILINE))
    assert ends == set(get_args(Closing))
    for effort, budget in EFFORTS.items():
        assert f"`{effort}` {'without' if budget is None else budget}" in DOCUMENT
    for name, budget in SMALL_BUDGETS.items():
        assert f"{name} {budget}" in DOCUMENT


def test_a_plan_without_wishes_is_the_default() -> None:
    assert read_thinking({"messages": [], "temperature": 1}) == ThinkingPlan()
