"""The law of tool calls: however a text is cut, the same content and the same calls, whose arguments are JSON."""

from __future__ import annotations

import json
import time
from itertools import count
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwench.text.calls import CallReader, new_id
from qwench.text.stream import Piece, join
from tests.text.call_corpus import MENDED, NANO, TOLERATED, TOOLS, WELL, Case, xml

ALL = (*WELL, *MENDED, *NANO, *TOLERATED)


def read(parts: list[str]) -> tuple[list[Piece], list[str]]:
    ids = count()
    reader = CallReader(TOOLS, make_id=lambda: f"call_{next(ids)}")
    pieces: list[Piece] = []
    for part in parts:
        for piece in reader.push(part):
            assert piece.text
            join(pieces, piece)
    for piece in reader.finish():
        join(pieces, piece)
    return pieces, reader.warnings


def understood(pieces: list[Piece]) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Content and calls; arguments that are no JSON object fail here."""
    calls: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for piece in pieces:
        if piece.call is not None:
            assert piece.call.index == list({**calls, piece.call.id: 0}).index(piece.call.id)
            calls.setdefault(piece.call.id, []).append(piece.text)
            names[piece.call.id] = piece.call.name
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    return content, tuple((names[number], strictly("".join(parts))) for number, parts in calls.items())


def strictly(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), f"a key twice in {text}"
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} in {text}")

    found = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("case", ALL, ids=lambda case: repr(case.text)[:60])
def test_what_is_understood(case: Case) -> None:
    pieces, warnings = read([case.text])
    content = case.content or ("" if case.calls else case.text)
    assert understood(pieces) == (content, case.calls)
    assert bool(warnings) == (case in MENDED + NANO)


@pytest.mark.parametrize("case", ALL, ids=lambda case: repr(case.text)[:60])
def test_every_split_gives_the_same_pieces(case: Case) -> None:
    whole = read([case.text])
    assert read(list(case.text)) == whole, "letter by letter"
    for cut in range(1, len(case.text)):
        assert read([case.text[:cut], case.text[cut:]]) == whole, f"cut at {cut}"


@pytest.mark.parametrize("case", WELL, ids=lambda case: repr(case.text)[:60])
def test_every_beginning_of_a_call_closes_to_json(case: Case) -> None:
    """An answer may be cut anywhere."""
    for end in range(len(case.text)):
        pieces, _ = read([case.text[:end]])
        _, calls = understood(pieces)
        assert [name for name, _ in calls] == [name for name, _ in case.calls[: len(calls)]]


TAGS = (
    *("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>", ">", "<", "\n", " "),
    *(
        "get_weather",
        "city",
        "add",
        "a",
        "1",
        '"',
        "{",
        "}",
        '{"name": "add", "arguments": {',
        '"a": 1',
        "\\",
        "x",
        "é",
    ),
    *("<function=add>", "<parameter=a>", "<parameter=text>", "<function=write_file>"),
)


@settings(max_examples=600, deadline=None)
@example("<function=write_file><parameter=a><tool_call></function></tool_call>", [45])  # a tag where a portion begins
@given(st.lists(st.sampled_from(TAGS), max_size=24).map("".join), st.lists(st.integers(0, 200), max_size=6))
def test_random_texts_in_any_portions(text: str, cuts: list[int]) -> None:
    borders = sorted({cut % (len(text) + 1) for cut in cuts})
    parts = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    whole = read([text])
    assert read(parts) == whole
    assert read(list(text)) == whole
    content, calls = understood(whole[0])
    if not calls:
        assert content == text, "without a call nothing is lost"


VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES, st.integers(), st.integers(0, 200))
def test_what_the_template_writes_is_read_back(path: str, text: str, mode: int, cut: int) -> None:
    written = xml("write_file", ("path", path), ("text", text), ("mode", str(mode)))
    pieces, warnings = read([written[:cut], written[cut:]])
    assert understood(pieces) == ("", (("write_file", {"path": path, "text": text, "mode": mode}),))
    assert not warnings


def test_text_is_told_while_it_is_written() -> None:
    reader = CallReader(TOOLS)
    reader.push("<tool_call>\n<function=write_file>\n<parameter=text>\n")
    assert "".join(piece.text for piece in reader.push("one line\nand half")) == "one line\\nand half"
    assert [piece.text for piece in reader.push(" more")] == [" more"]


def test_content_waits_only_for_what_may_become_a_call() -> None:
    reader = CallReader(TOOLS)
    assert [piece.text for piece in reader.push("Hello \n")] == ["Hello"]
    assert [piece.text for piece in reader.push("<b>")] == [" \n<b>"]
    assert reader.push("<too") == []
    assert [piece.text for piece in reader.push("th")] == ["<tooth"]


def test_after_the_most_calls_the_answer_is_over() -> None:
    reader = CallReader(TOOLS, most=1)
    pieces = reader.push(2 * xml("now") + " and more") + reader.finish()
    assert [(piece.kind, piece.text) for piece in pieces] == [("tool_call", "{}")]
    assert reader.over


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize("depth", [90, 5_000])
def test_deep_nesting_is_text_at_worst(depth: int) -> None:
    for text in (xml("set", ("tags", "[" * depth + "]" * depth)), f'<tool_call>{{"name": {"[" * depth}}}</tool_call>'):
        understood(read([text])[0])


def test_numbers_that_json_has_not() -> None:
    for value in ("NaN", "Infinity", "1e999", "-inf", "9" * 5_000):
        _, calls = understood(read([xml("add", ("b", value))])[0])
        assert calls == (("add", {"b": value}),)
    text = '<tool_call>\n{"name": "add", "arguments": {"b": 1e999}}\n</tool_call>'
    assert understood(read([text])[0])[1] == ()


BEGUN = "<tool_call>\n<function=add>\n"
VALUE = f"{BEGUN}<parameter=a>\n"
FOOD = (
    " " * 100_000,
    "\n" * 100_000,
    "<tool_call>" * 10_000,
    "<tool_call>\n" + " " * 100_000,
    "<function=" * 10_000,
    "<parameter=" * 10_000,
    BEGUN + "<parameter=a>" * 8_000,
    VALUE + "</parameter>x" * 8_000,
    VALUE + "<" * 60_000,
    VALUE + "{" + "'\"" * 20_000,
    '<tool_call>\n{"name": "add", "arguments": {"a": "' + '\\"' * 40_000,
    "<tool_call>\n{" + "'a': '" * 20_000,
    "<tool_call>\n" + "{" * 40_000,
    '<tool_call>\n{"name": "' + "\\" * 60_000,
    "<tool_call>\n{'x': True" + ", " * 40_000,
    "[f(x=" * 20_000,
    "__import__('os').mkdir('x')" * 2_000,
)


@pytest.mark.parametrize("portion", [1, 64, 10**9])
@pytest.mark.parametrize("food", FOOD, ids=lambda food: repr(food[:40]))
def test_hostile_texts_are_read_in_a_time_that_grows_with_their_length(food: str, portion: int) -> None:
    text = food[:20_000] if portion == 1 else food
    began = time.process_time()
    reader = CallReader(TOOLS)
    for at in range(0, len(text), portion):
        reader.push(text[at : at + portion])
    reader.finish()
    assert time.process_time() - began < 1.5
