"""The law of the answer stream: any portions give the same pieces, nothing is told too early, nothing too late."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from qwench.text.detok import Detokenizer
from qwench.text.stream import AnswerStream, Piece, StopFilter, ThinkingSplitter, overlap
from qwench.text.tokenizer import Tokenizer
from tests.text.tiny import tokenizer_json

TOKENIZER = Tokenizer(Backend.from_str(tokenizer_json()))
IDS = st.lists(st.integers(0, TOKENIZER.size + 3), max_size=40)
# Texts made of what matters: tags, parts of tags, line breaks, letters.
PARTS = ("<think>", "</think>", "<tool_call>", "<", "/", "think", ">", "\n", " ", "a", "b", "</thi", "<tool", "é")
TAGGED = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
STOPS = st.lists(st.sampled_from(("a", "ab", "bb", "</think>", "\n\n", "nk>", "é", "ba")), max_size=3)


def portions(items: str, cuts: list[int]) -> list[str]:
    borders = sorted({cut % (len(items) + 1) for cut in cuts})
    return [items[start:end] for start, end in zip([0, *borders], [*borders, len(items)], strict=True)]


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    whole: list[Piece] = []
    for piece in pieces:
        assert piece.text
        before = whole.pop().text if whole and whole[-1].kind == piece.kind else ""
        whole.append(Piece(piece.kind, before + piece.text))
    return whole


@settings(max_examples=200, deadline=None)
@given(IDS, st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_detokenising_in_portions_is_the_full_decode(ids: list[int], cuts: list[int], skip: bool) -> None:
    detokenizer = Detokenizer(TOKENIZER, skip_special_tokens=skip)
    borders = sorted(min(cut, len(ids)) for cut in cuts)
    told = [detokenizer.push(ids[a:b]) for a, b in zip([0, *borders], [*borders, len(ids)], strict=True)]
    assert "".join(told) + detokenizer.finish() == TOKENIZER.decode(ids, skip_special_tokens=skip)


def test_a_character_waits_for_its_last_byte() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    byte_ids = [next(i for i in range(TOKENIZER.size) if TOKENIZER.token_bytes(i) == bytes([b])) for b in "👍".encode()]
    assert [detokenizer.push([token]) for token in byte_ids] == ["", "", "", "👍"]
    assert detokenizer.push(byte_ids[:2]) == ""
    assert detokenizer.push(TOKENIZER.encode("a")) == "\ufffda"
    assert detokenizer.push(byte_ids[:1]) == ""
    assert detokenizer.finish() == "\ufffd"


def stop_by_letters(text: str, stops: list[str], include: bool) -> str:
    """The definition: letter by letter, end at the first letter that completes a stop string."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end if include else end - max(map(len, hits))]
    return text


@settings(max_examples=250, deadline=None)
@given(TAGGED, STOPS, st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_stop_strings_in_any_portions(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    stop_filter = StopFilter(stops, include_stop=include)
    wanted = stop_by_letters(text, stops, include)
    told = ""
    for portion in portions(text, cuts):
        told += stop_filter.push(portion)
        assert wanted.startswith(told), "text was told that had to be withheld"
    assert told + stop_filter.finish() == wanted
    assert (stop_filter.stopped is not None) == any(stop in text for stop in stops)


@settings(max_examples=200, deadline=None)
@given(TAGGED, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    told = ""
    for end in range(1, len(text) + 1):
        told += stop_filter.push(text[end - 1])
        if stop_filter.stopped is not None:
            return
        held = text[len(told) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


TAGS = ("<think>", "</think>", "<tool_call>")


def split_whole(text: str, thinking_open: bool) -> list[Piece]:
    """The definition, with the whole text at hand."""
    opened = re.match(r"\s*<think>", text)
    if not thinking_open and not opened:
        return [Piece("content", text)] if text else []
    if opened and not thinking_open:
        text = text[opened.end() :]
    closing = re.search(r"\n*(</think>\n*|(?=<tool_call>))", text)
    reasoning, content = (text[: closing.start()], text[closing.end() :]) if closing else (text, "")
    reasoning = re.sub(r"^(\n*<think>)*", "", reasoning)  # the tag may be said again at the beginning, however often
    pieces = [Piece("reasoning", reasoning.lstrip("\n")), Piece("content", content)]
    return [piece for piece in pieces if piece.text]


def split_parts(parts: list[str], thinking_open: bool) -> list[Piece]:
    splitter = ThinkingSplitter(thinking_open=thinking_open)
    pieces = [piece for part in parts for piece in (splitter.tag if part in TAGS else splitter.push)(part)]
    return joined(pieces + splitter.finish())


@settings(max_examples=250, deadline=None)
@given(TAGGED, st.lists(st.integers(0, 80), max_size=6), st.booleans())
def test_splitting_in_any_portions(text: str, cuts: list[int], thinking_open: bool) -> None:
    parts = re.split("(<think>|</think>|<tool_call>)", text)
    cut = [piece for part in parts for piece in ([part] if part in TAGS else portions(part, cuts))]
    assert split_parts(cut, thinking_open) == split_whole(text, thinking_open)


def test_spelled_out_tags_are_text() -> None:
    assert split_parts(["a</thi", "nk>b"], thinking_open=True) == [Piece("reasoning", "a</think>b")]
    assert split_parts(["<", "think>x"], thinking_open=False) == [Piece("content", "<think>x")]


@settings(max_examples=200, deadline=None)
@given(TAGGED, STOPS, st.lists(st.integers(0, 80), max_size=6), st.booleans(), st.booleans())
def test_the_stream_in_any_portions(
    text: str, stops: list[str], cuts: list[int], thinking_open: bool, include: bool
) -> None:
    ids = TOKENIZER.encode(text)
    borders = sorted(min(cut, len(ids)) for cut in cuts)

    def stream(parts: list[list[int]]) -> tuple[list[Piece], str | None, int, int]:
        answer = AnswerStream(TOKENIZER, stop=stops, thinking_open=thinking_open, include_stop=include)
        pieces = [piece for part in parts for piece in answer.push(part)] + answer.finish()
        return joined(pieces), answer.stopped, answer.num_tokens, answer.reasoning_tokens

    whole = stream([ids])
    assert stream([ids[a:b] for a, b in zip([0, *borders], [*borders, len(ids)], strict=True)]) == whole
    pieces = split_whole(TOKENIZER.decode(ids, skip_special_tokens=False), thinking_open)
    content = [
        Piece(each.kind, stop_by_letters(each.text, stops, include)) for each in pieces if each.kind == "content"
    ]
    assert whole[0] == [each for each in (*(p for p in pieces if p.kind == "reasoning"), *content) if each.text]


def test_stop_strings_do_not_stop_the_thinking() -> None:
    ids = TOKENIZER.encode("a STOP b\n</think>\n\nc STOP d")
    stream = AnswerStream(TOKENIZER, stop=["STOP", "\n\n"], thinking_open=True)
    assert joined(stream.push(ids) + stream.finish()) == [Piece("reasoning", "a STOP b"), Piece("content", "c ")]
    assert stream.stopped == "STOP"


def answer(text: str, **options: Any) -> tuple[list[Piece], AnswerStream]:
    stream = AnswerStream(TOKENIZER, **options)
    return joined(stream.push(TOKENIZER.encode(text)) + stream.finish()), stream


def test_reasoning_tokens_count_the_block_with_its_closing_tag() -> None:
    thought, rest = TOKENIZER.encode("why\n</think>"), TOKENIZER.encode("\n\nfine")
    stream = AnswerStream(TOKENIZER, thinking_open=True)
    stream.push([*thought, *rest])
    stream.finish()
    assert stream.reasoning_tokens == len(thought)
    assert stream.num_tokens == len(thought) + len(rest)
    assert answer("never closed", thinking_open=True)[1].reasoning_tokens == len(TOKENIZER.encode("never closed"))
    assert answer("plain")[1].reasoning_tokens == 0
    opened = "<think>why</think>"
    assert answer(opened + "x")[1].reasoning_tokens == len(TOKENIZER.encode(opened))


def test_a_tag_written_in_letters_is_text_as_it_is_to_the_model() -> None:
    ids = TOKENIZER.encode_plain("why</think>so")
    assert TOKENIZER.id_of("</think>") not in ids
    stream = AnswerStream(TOKENIZER, thinking_open=True)
    assert joined(stream.push(ids) + stream.finish()) == [Piece("reasoning", "why</think>so")]


def test_a_tool_call_ends_open_reasoning_and_stays_content() -> None:
    pieces, _ = answer("I call.\n<tool_call>\nx\n</tool_call>", thinking_open=True)
    assert pieces == [Piece("reasoning", "I call."), Piece("content", "<tool_call>\nx\n</tool_call>")]


def test_without_splitting_all_is_content_as_it_was_written() -> None:
    text = "<think>\na\n</think>\n\nb"
    assert answer(text, split_thinking=False)[0] == [Piece("content", text)]


def test_special_tokens_are_skipped_or_shown() -> None:
    assert answer("a<|im_end|>b")[0] == [Piece("content", "ab")]
    assert answer("a<|im_end|>b", skip_special_tokens=False)[0] == [Piece("content", "a<|im_end|>b")]


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    stream = AnswerStream(TOKENIZER, stop=["STOP"], thinking_open=True)
    told = [stream.push([token]) for token in TOKENIZER.encode_plain("ab")]
    assert all(told)
    stream.push(TOKENIZER.encode("</think>"))
    assert joined(stream.push(TOKENIZER.encode("xST"))) == [Piece("content", "x")]
    assert joined(stream.push(TOKENIZER.encode("AR"))) == [Piece("content", "STAR")]


def test_after_a_stop_string_nothing_more_is_read() -> None:
    stream = AnswerStream(TOKENIZER, stop=["two"])
    first = TOKENIZER.encode_plain("one two")
    assert joined(stream.push(first)) == [Piece("content", "one ")]
    assert stream.stopped == "two"
    assert stream.push(TOKENIZER.encode("three")) == []
    assert stream.finish() == []
    assert stream.num_tokens == len(first)


def test_overlap_is_the_longest() -> None:
    assert overlap("aab", "abab") == 2
    assert overlap("xababab", "ababc") == 4
    assert overlap("abc", "abc") == 0
