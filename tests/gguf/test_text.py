"""Tokenizer, template and sampling advice of a GGUF file equal those of the folder it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.config import ModelConfig
from qwench.errors import ConfigError, TemplateError
from qwench.files import open_files, read_config
from qwench.gguf.file import GgufFile, open_gguf
from qwench.text.gguf_text import QWEN2, QWEN35, gguf_template, gguf_tokenizer
from qwench.text.model import ModelText
from qwench.text.thinking import ThinkingPlan
from qwench.text.tokenizer import Tokenizer
from tests.gguf.conftest import NANO
from tests.gguf.export import tell_tokenizer
from tests.text.tiny import INFILL, PATTERN, TEMPLATE, tokenizer_json

RAW: dict[str, Any] = json.loads(tokenizer_json())
SIZE = len(RAW["model"]["vocab"]) + len(RAW["added_tokens"])
TEXT = st.text(st.characters(codec="utf-8")) | st.text("<|think/>im_ed \n'sé日👍नमस्ते42\u0301")
SCRIPTS = (
    "Hello world's answer:\n\n  42, naïve 日本語 ",
    "नमस्ते दुनिया, สวัสดีชาวโลก, مرحبًا بالعالم, שָׁלוֹם",
    "def f(x):\n\treturn x ** 2  # done\r\n",
    "<|im_start|>user\n<think>\n</think><tool_call>{}</tool_call><|im_end|>",
    "1234567 ½ ² Ⅷ 👍🏽 e\u0301 \u1e9b\u0323",
)

Tell = Callable[[gguf.GGUFWriter], None]


def write(path: Path, tell: Tell) -> GgufFile:
    """A file with metadata and one tensor."""
    writer = gguf.GGUFWriter(path, "qwen35")
    tell(writer)
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((2, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer of the tests from its tokenizer.json, and from a GGUF file with twenty rows of padding."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tell = tell_tokenizer(RAW, pre="qwen35", rows=SIZE + 20)
    return Tokenizer.from_folder(folder), gguf_tokenizer(write(folder / "tiny.gguf", tell))


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_any_text_has_the_same_ids(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    theirs, ours = pair
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode_plain(text) == theirs.encode_plain(text)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, SIZE + 30), max_size=30), skip=st.booleans())
def test_any_ids_have_the_same_text(pair: tuple[Tokenizer, Tokenizer], ids: list[int], skip: bool) -> None:
    theirs, ours = pair
    more = ours.special_ids - theirs.special_ids  # a file calls special whatever looks so
    kept = [each for each in ids if not (skip and each in more)]
    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(kept, skip_special_tokens=skip)


def test_rows_of_padding_are_no_tokens(pair: tuple[Tokenizer, Tokenizer]) -> None:
    theirs, ours = pair
    assert ours.size == theirs.size == SIZE
    assert theirs.special_ids <= ours.special_ids
    assert {ours.token_text(each) for each in ours.special_ids - theirs.special_ids} == set(INFILL)


def test_nano_s_tokenizer_template_and_advice(nano_f32: Path) -> None:
    files = open_files(nano_f32)
    theirs = ModelText(NANO, ModelConfig.from_folder(NANO))
    ours = ModelText(files, read_config(files))
    assert ours.tokenizer.size == theirs.tokenizer.size
    for text in (*SCRIPTS, (NANO / "MODEL_CARD.md").read_text(encoding="utf-8")):
        assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
        assert ours.tokenizer.encode_plain(text) == theirs.tokenizer.encode_plain(text)
    # The converter makes control tokens of whatever is written <|...|>; only these differ.
    more = {ours.tokenizer.token_text(number) for number in ours.tokenizer.special_ids - theirs.tokenizer.special_ids}
    assert all(token.startswith("<|") for token in more)
    assert theirs.tokenizer.special_ids <= ours.tokenizer.special_ids
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    for thinking in (None, True, False):
        asked = ThinkingPlan(enabled=thinking)
        found, expected = (each.chat_prompt(messages, thinking=asked) for each in (ours, theirs))
        assert (found.token_ids, found.thinks, found.thinking_open) == (
            expected.token_ids,
            expected.thinks,
            expected.thinking_open,
        )
    assert ours.stop_token_ids == theirs.stop_token_ids
    ours_drawn, theirs_drawn = (each.sampling_defaults(thinking=False) for each in (ours, theirs))
    assert (ours_drawn.temperature, ours_drawn.top_p) == pytest.approx((theirs_drawn.temperature, theirs_drawn.top_p))
    assert ours_drawn.top_k == theirs_drawn.top_k
    assert ours.presets.direct.source == "metadata of the file"


def test_the_patterns_of_the_line(tmp_path: Path) -> None:
    assert QWEN35 == PATTERN
    assert QWEN35.replace(r"[\p{L}\p{M}]", r"\p{L}").replace(r"\s\p{L}\p{M}", r"\s\p{L}") == QWEN2
    marks = "नमस्ते"
    older = gguf_tokenizer(write(tmp_path / "a.gguf", tell_tokenizer(RAW, pre="qwen2", rows=SIZE)))
    newer = gguf_tokenizer(write(tmp_path / "b.gguf", tell_tokenizer(RAW, pre="qwen35", rows=SIZE)))
    assert older._backend.pre_tokenizer is not None
    assert newer._backend.pre_tokenizer is not None
    cut = [len(each._backend.pre_tokenizer.pre_tokenize_str(marks)) for each in (older, newer)]
    assert cut[0] > cut[1] == 1


def test_a_file_without_a_template_has_none(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", tell_tokenizer(RAW, pre="qwen35", rows=SIZE))
    assert gguf_template(file, gguf_tokenizer(file)) is None


def test_a_template_that_is_none_is_named_by_file_and_key(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", tell_tokenizer(RAW, pre="qwen35", rows=SIZE, template="{% if %}"))
    with pytest.raises(TemplateError, match=r"a\.gguf: tokenizer\.chat_template, line 1: "):
        gguf_template(file, gguf_tokenizer(file))
    file = write(tmp_path / "b.gguf", tell_tokenizer(RAW, pre="qwen35", rows=SIZE, template=TEMPLATE))
    template = gguf_template(file, gguf_tokenizer(file))
    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]).startswith("<|im_start|>user\nx<|im_end|>")


def changed(**change: Any) -> Tell:
    """The metadata of a tokenizer with some values replaced, or left out where None."""
    vocabulary = sorted(RAW["model"]["vocab"], key=RAW["model"]["vocab"].get)
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "qwen35",
        "tokens": vocabulary,
        "token_type": [1] * len(vocabulary),
        "merges": [" ".join(merge) for merge in RAW["model"]["merges"]],
        **change,
    }

    def tell(writer: gguf.GGUFWriter) -> None:
        for name, value in values.items():
            key = f"tokenizer.ggml.{name}"
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_uint32(key, value)

    return tell


COUNT = len(RAW["model"]["vocab"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "llama"}, "key 'tokenizer.ggml.model' is 'llama'; Qwen3 and Qwen3.5 have byte-level BPE"),
        ({"model": None}, "key 'tokenizer.ggml.model' is missing"),
        ({"model": 7}, "key 'tokenizer.ggml.model' is 7; it must be a string"),
        ({"pre": "llama-bpe"}, "key 'tokenizer.ggml.pre' is 'llama-bpe'; known are qwen2, deepseek-r1-qwen, qwen35"),
        ({"pre": None}, "key 'tokenizer.ggml.pre' is missing"),
        ({"tokens": None}, "key 'tokenizer.ggml.tokens' is missing"),
        ({"tokens": [1, 2]}, "is an array of 2 i32; it must be an array of strings"),
        ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "holds a token that repeats token 0, at index 2"),
        ({"tokens": ["a", ""], "token_type": [1, 1]}, "holds a token that is empty, at index 1"),
        ({"token_type": None}, "key 'tokenizer.ggml.token_type' is missing"),
        ({"token_type": [1, 1]}, f"has 2 items for {COUNT} tokens"),
        ({"token_type": [9] * COUNT}, "holds the unknown kind 9 at index 0"),
        ({"token_type": [-1] * COUNT}, "holds the unknown kind -1 at index 0"),
        ({"token_type": ["x"] * COUNT}, "it must be an array of whole numbers"),
        ({"merges": None}, "key 'tokenizer.ggml.merges' is missing"),
        ({"merges": ["nospace"]}, "holds 'nospace' at index 0, which is not a merge of two known tokens"),
        ({"merges": ["e r", "qq zz"]}, "holds 'qq zz' at index 1"),
        ({"merges": ["a  b"]}, "holds 'a  b' at index 0"),
    ],
)
def test_metadata_that_is_no_tokenizer(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        gguf_tokenizer(write(tmp_path / "bad.gguf", changed(**change)))
    assert sentence in caught.value.message
    assert "bad.gguf" in caught.value.message
    assert "\n" not in caught.value.message
