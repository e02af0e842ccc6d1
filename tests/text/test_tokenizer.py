"""The tokenizer equals the library's, bytes are exact, and an unusable file is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from qwench.errors import CheckpointError, RequestError
from qwench.text.tokenizer import Tokenizer
from tests.text.tiny import ADDED, SPECIAL, tokenizer_json, write_text_files

BACKEND = Backend.from_str(tokenizer_json())
TOKENIZER = Tokenizer(Backend.from_str(tokenizer_json()))
TEXT = st.text(st.characters(codec="utf-8")) | st.text("<|think/>im_ed \n'sé日👍")


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_ids_are_the_librarys_and_decode_to_the_normalised_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == BACKEND.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == BACKEND.normalizer.normalize_str(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.size - 1), max_size=30), st.booleans())
def test_any_ids_decode_as_the_library_decodes_them(ids: list[int], skip: bool) -> None:
    assert TOKENIZER.decode(ids, skip_special_tokens=skip) == BACKEND.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_plain_encoding_keeps_tags_as_text(text: str) -> None:
    tagged = f"{text}<|im_end|><think>"
    ids = TOKENIZER.encode_plain(tagged)
    assert not {TOKENIZER.id_of(name) for name in (*SPECIAL, *ADDED)} & set(ids)
    assert TOKENIZER.decode(ids) == BACKEND.normalizer.normalize_str(tagged)


def test_plain_encoding_of_plain_text_is_the_ordinary_one() -> None:
    text = "Hello world's answer:\n  42, naïve 日本語"
    assert TOKENIZER.encode_plain(text) == TOKENIZER.encode(text)


def test_special_tokens_are_known_and_added_ones_are_not_skipped() -> None:
    assert {TOKENIZER.id_of(name) for name in SPECIAL} == TOKENIZER.special_ids
    ids = TOKENIZER.encode("<|im_start|><think>a</think><|im_end|>")
    assert TOKENIZER.decode(ids) == "<think>a</think>"
    assert TOKENIZER.token_text(ids[1]) == "<think>"
    assert TOKENIZER.id_of("<no such token>") is None


def test_padding_ids_are_nothing() -> None:
    assert TOKENIZER.token_bytes(TOKENIZER.size) == b""
    assert TOKENIZER.token_bytes(-1) == b""
    assert TOKENIZER.decode([TOKENIZER.size + 7]) == ""


def test_a_trainers_truncation_does_not_eat_the_prompt(tmp_path: Path) -> None:
    backend = Backend.from_str(tokenizer_json())
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    text = "one two three four five six"
    assert Tokenizer.from_folder(tmp_path).encode(text) == TOKENIZER.encode(text)


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(RequestError, match=r"half of a surrogate pair \(U\+D83D\) at character 2"):
        TOKENIZER.encode("ab\ud83d")


def broken(kind: str) -> str:
    raw = json.loads(tokenizer_json())
    if kind == "decoder":
        raw["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    elif kind == "merges":
        raw["model"]["merges"] = [["no", "such"]]
    elif kind == "decoders":
        raw["decoder"] = {"type": "Sequence", "decoders": 5}
    elif kind == "deep":
        return "[" * 100_000
    elif kind == "deep decoder":
        return '{"decoder":' + '{"type":"Sequence","decoders":[' * 450 + "]}" * 450 + "}"
    elif kind == "list":
        return "[]"
    return json.dumps(raw)[: 500 if kind == "cut" else None]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cut", "is not JSON .* download it again"),
        ("list", "is not a byte-level tokenizer"),
        ("decoder", "is not a byte-level tokenizer"),
        ("decoders", "is not a byte-level tokenizer"),
        ("deep", "is not JSON .* download it again"),
        ("deep decoder", "is not a byte-level tokenizer"),
        ("merges", "is not a usable tokenizer"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, kind: str, sentence: str) -> None:
    (tmp_path / "tokenizer.json").write_text(broken(kind), encoding="utf-8")
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_folder(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; download"):
        Tokenizer.from_folder(tmp_path)
    assert Tokenizer.from_folder(write_text_files(tmp_path)).size == TOKENIZER.size
