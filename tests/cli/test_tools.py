"""`qwench chat --tools`: calls are shown as data, and in a conversation their results are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwench import cli
from qwench.text.tools import read_tools
from tests.cli.conftest import Install
from tests.cli.test_chat import talk
from tests.text.call_corpus import xml

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = f"Look.\n\n{xml('f', ('x', '1'))}"


def test_a_call_is_printed_and_part_of_the_document(
    scripted: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = scripted(CALL)
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    flags = ["chat", "m", "-p", "What?", "--no-think", "--tools", str(path)]
    assert cli.main(flags) == 0
    assert capsys.readouterr().out == 'Look.\nf({"x": "1"})\n'
    assert cli.main([*flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": "1"}'}
    assert document["finish_reason"] == "tool_calls"
    assert '"name": "f"' in engine.prompts[0]


def test_results_are_asked_for_in_a_conversation(scripted: Install) -> None:
    engine = scripted(lambda prompt, params: engine.spell("Done." if "tool_response>\n42" in prompt else CALL, params))
    chat, out, _ = talk(engine, "What?", "42", tools=read_tools(TOOLS))
    assert out == 'Look.\nf({"x": "1"})\nDone.\n'
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["tool_call_id"] == chat.messages[1]["tool_calls"][0]["id"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "cannot be read as JSON"), ("[1]", "tools[0] is not a function"), ('{"a": 1}', "give a list of functions")],
)
def test_a_file_that_holds_no_tools(
    scripted: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    scripted(CALL)
    path = tmp_path / "tools.json"
    path.write_text(text)
    assert cli.main(["chat", "m", "-p", "What?", "--tools", str(path)]) == 2
    assert complaint in capsys.readouterr().err
