"""Two requests of one session render to the same beginning whatever their client counted; nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest

from qwench.files import open_files, read_config
from qwench.text.model import ModelText
from qwench.text.noise import without_noise
from qwench.weights.locate import locate


def text(*, keeps_noise: bool = False) -> ModelText:
    files = open_files(locate("nano", offline=True))
    return ModelText(files, read_config(files), keeps_noise=keeps_noise)


def session(number: int) -> list[dict[str, Any]]:
    """As Claude Code sends it: a line with a random number first, and budgets that pile up."""
    budgets = "".join(f"\n\n<total_tokens>{5000 - each} tokens left</total_tokens>" for each in range(number))
    line = f"x-anthropic-billing-header: cc_version=2.1.{number}; cc_entrypoint=cli; cch={number:05x};"
    return [
        {"role": "system", "content": [{"type": "text", "text": line}]},
        {"role": "system", "content": f"You are careful.{budgets}"},
        {"role": "user", "content": "What does <total_tokens>7 tokens left</total_tokens> mean?"},
    ]


def test_what_changes_with_every_request_is_gone_and_told() -> None:
    model = text()
    first, second = (model.chat_prompt(session(number)) for number in (1, 9))
    assert first.text == second.text
    assert "You are careful.<|im_end|>" in first.text
    assert "<total_tokens>7 tokens left</total_tokens>" in first.text  # a user's words stay
    told = "; ".join(first.warnings)
    assert "billing line" in told
    assert "countdown" in told


def test_it_can_be_left_in() -> None:
    prompt = text(keeps_noise=True).chat_prompt(session(3))
    assert "cch=00003" in prompt.text
    assert not prompt.warnings


@pytest.mark.parametrize("content", ["", "Talk about the x-anthropic-billing-header: it is a line.", "<total_tokens>"])
def test_other_system_prompts_stay_as_they_are(content: str) -> None:
    messages = [{"role": "system", "content": content}, {"role": "user", "content": "Hello"}]
    assert without_noise(messages) == (messages, [])


def test_a_system_prompt_of_noise_alone_is_none() -> None:
    messages = [{"role": "system", "content": "x-anthropic-billing-header: a"}, {"role": "user", "content": "Hello"}]
    kept, warnings = without_noise(messages)
    assert kept == messages[1:]
    assert len(warnings) == 1
