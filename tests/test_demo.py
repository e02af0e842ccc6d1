"""What `make demo` shows runs to its end with the embedded model that ships."""

from __future__ import annotations

import sys

import pytest

from tools import demo


def test_the_demo_shows_every_scene_and_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--since", "0"])
    assert demo.main() == 0
    told = capsys.readouterr().out
    for scene in ("A greeting", "A sum, with thinking", "The same sum, without thinking", "A tool call", "A picture"):
        assert f"\n{scene}\n" in told
    assert told.count(" tokens/s\n") >= 5
    assert "The demo took" in told
    assert "\033" not in told  # colours are for terminals
    thoughts = told.partition("A sum, with thinking")[2].partition("The same sum")[0]
    assert "\n          | " in thoughts
