"""The chat template equals the reference renders byte for byte; the instruction block is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwench.train.template import render

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("chat_golden.json").read_text(encoding="utf-8"))
CASES = [key for key in GOLDEN["renders"] if key.endswith("default_on=False")]
# A render without the generation prompt does not depend on the default, so its reference is stored once.
CASES += [key for key in GOLDEN["renders"] if "gen=False" in key and key.endswith("default_on=True")]
INSTRUCTION = (
    "\n\nTo use a function, answer in this form:\n\n<tool_call>\n<function=name>\n<parameter=key>\nvalue\n"
    "</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.parametrize("key", CASES)
def test_render_equals_reference(key: str) -> None:
    case, generate, thinking, _default = key.split("|")
    options: dict[str, Any] = dict(GOLDEN["inputs"][case])
    options["add_generation_prompt"] = generate == "gen=True"
    switch = {"None": None, "True": True, "False": False}[thinking.split("=")[1]]
    if switch is not None:
        options["enable_thinking"] = switch
    wanted = GOLDEN["renders"][key]["text"]
    if wanted == "ERROR":
        with pytest.raises(ValueError):
            render(**options)
        return
    assert render(**options) == wanted.replace("{TOOLS_INSTRUCTION}", INSTRUCTION)


def test_every_case_is_covered() -> None:
    assert len({key.split("|")[0] for key in CASES}) == len(GOLDEN["inputs"])
