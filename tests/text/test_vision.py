"""Conversations with pictures: the same text and the same tokens as the reference's processor and template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from qwench.config import ModelConfig
from qwench.errors import ContextLengthExceeded, RequestError
from qwench.media.patches import Media
from qwench.media.pool import Decoders
from qwench.media.reader import MediaReader
from qwench.media.settings import Caps
from qwench.text.model import ModelText
from qwench.text.vision import Eyes, expand
from tests.media.files import NANO, SMALL, data_uri, document, encoded, noise, video


@pytest.fixture(scope="module")
def text() -> ModelText:
    return ModelText(NANO, ModelConfig.from_folder(NANO))


@pytest.fixture(scope="module")
def eyes(text: ModelText) -> Any:
    assert text.vision is not None
    decoders = Decoders(1)
    yield Eyes(MediaReader(text.vision, decoders=decoders), 4096)
    decoders.close()


@pytest.fixture(scope="module")
def processor() -> Any:
    """The reference's, over nano's own files. The outer brackets it leaves around a video are its mistake, which the
    models were not trained with."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(NANO / "tokenizer.json"))
    settings = json.loads((NANO / "preprocessor_config.json").read_text())
    kept = {name: settings[name] for name in ("size", "patch_size", "image_mean", "image_std")}
    template = (NANO / "chat_template.jinja").read_text()
    images = Qwen2VLImageProcessorPil(**kept)

    def processed(messages: Sequence[Any], seen: Sequence[Media]) -> list[int]:
        told = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        owner: Any = SimpleNamespace(image_token="<|i|>", video_token="<|v|>", image_processor=images)
        owner.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
        owner.vision_start_token, owner.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        for media in seen:
            grid = np.array([media.grid])
            if media.kind == "image":
                new = Qwen3VLProcessor.replace_image_token(owner, {"image_grid_thw": grid}, 0)
                told = told.replace("<|image_pad|>", new, 1)
            else:
                owner._calculate_timestamps = lambda *_, seconds=media.seconds: seconds
                metadata = SimpleNamespace(fps=1, frames_indices=[])
                inputs = {"video_grid_thw": grid, "video_metadata": [metadata]}
                new = Qwen3VLProcessor.replace_video_token(owner, inputs, 0)
                told = told.replace("<|video_pad|>", new, 1)
        told = told.replace("<|i|>", "<|image_pad|>").replace("<|v|>", "<|video_pad|>")
        ids = tokenizer(told, add_special_tokens=False)["input_ids"]
        opening, closing, *pads = tokenizer.convert_tokens_to_ids(
            ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
        )
        neighbours = zip([None, *ids[:-1]], ids, [*ids[1:], None], strict=True)
        return [
            token
            for before, token, after in neighbours
            if not (token == opening and after not in pads) and not (token == closing and before not in pads)
        ]

    return processed


def picture(width: int, height: int, seed: int = 0) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(encoded(noise(width, height, seed)))}}


def film(number: int) -> dict[str, Any]:
    frames = [noise(64, 64, seed) for seed in range(number)]
    return {"type": "video_url", "video_url": {"url": data_uri(video(frames, 4), "video/mp4")}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


CONVERSATIONS = {
    "one": [[picture(64, 96), words("What is this?")]],
    "several": [[words("Compare "), picture(64, 64), picture(320, 32, 1), words(" and "), picture(200, 200, 2)]],
    "extreme": [[picture(1, 150), picture(900, 40)]],
    "two turns": [[picture(64, 64), words("First.")], [words("Second: "), picture(96, 64, 1)]],
    "video": [[film(8), words("What happens?")]],
    "odd video": [[words("Look:"), film(11)]],
    "mixed": [[picture(64, 64), film(6), words("Both."), picture(128, 64, 3)]],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_tokens_are_those_of_the_reference(name: str, text: ModelText, eyes: Eyes, processor: Any) -> None:
    messages: list[dict[str, Any]] = []
    for content in CONVERSATIONS[name]:
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "I see."}]
    messages.pop()
    prompt = text.chat_prompt(eyes.look(messages))
    seen = [span.media for span in prompt.media]
    plain = [
        {
            **turn,
            "content": [part if part["type"] == "text" else {"type": part["type"][:5]} for part in turn["content"]],
        }
        if isinstance(turn["content"], list)
        else turn
        for turn in messages
    ]
    assert prompt.token_ids == processor(plain, seen)
    pads = {text.tokenizer.id_of("<|image_pad|>"), text.tokenizer.id_of("<|video_pad|>")}
    inside = [token for span in prompt.media for token in prompt.token_ids[span.first : span.first + span.count]]
    assert sum(token in pads for token in inside) == sum(media.tokens for media in seen)
    assert sum(token in pads for token in prompt.token_ids) == sum(media.tokens for media in seen)
    for span in prompt.media:
        assert prompt.token_ids[span.first] in pads
        assert prompt.token_ids[span.first + span.count - 1] in pads


def test_a_video_tells_the_time_of_each_moment(text: ModelText, eyes: Eyes) -> None:
    prompt = text.chat_prompt(eyes.look([{"role": "user", "content": [film(8)]}]))
    bracket = "<|vision_start|><|video_pad|><|vision_end|>"
    told = text.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    told = re.sub(r"(<\|video_pad\|>)+", "<|video_pad|>", told)
    assert f"<|im_start|>user\n<0.2 seconds>{bracket}<1.5 seconds>{bracket}<|im_end|>" in told


def test_pages_of_a_document_are_pictures(text: ModelText, eyes: Eyes) -> None:
    part = {"type": "file", "file": {"file_data": data_uri(document(4), "application/pdf"), "filename": "x.pdf"}}
    prompt = text.chat_prompt(eyes.look([{"role": "user", "content": [{**part, "pages": "2-4"}, words("Sum up.")]}]))
    assert len(prompt.media) == 3
    assert prompt.text.count("<|image_pad|>") == 3


def test_frames_may_come_as_a_list(text: ModelText, eyes: Eyes) -> None:
    frames = [data_uri(encoded(noise(64, 64, seed))) for seed in range(5)]
    part = {"type": "video", "video": frames, "fps": 1}
    (span,) = text.chat_prompt(eyes.look([{"role": "user", "content": [part]}])).media
    assert (span.media.kind, span.media.grid[0], span.media.seconds) == ("video", 3, (0.5, 2.5, 4.0))
    commas = ",".join(uri.partition(",")[2] for uri in frames)
    part = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{commas}"}}
    (span,) = text.chat_prompt(eyes.look([{"role": "user", "content": [part]}])).media
    assert span.media.grid[0] == 3


def test_pictures_in_memory_are_seen_too(text: ModelText, eyes: Eyes) -> None:
    shown = noise(70, 90)
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": shown},
        {"type": "image_pil", "image_pil": shown},
        {"image": np.asarray(shown)},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": data_uri(encoded(shown))[22:]},
        },
        {"type": "input_image", "image_url": data_uri(encoded(shown)), "detail": "high"},
        {"type": "file", "file": {"file_data": data_uri(encoded(shown))}},
    ]
    spans = text.chat_prompt(eyes.look([{"role": "user", "content": parts}])).media
    assert len(spans) == len(parts)
    assert len({span.media.digest for span in spans}) == 1


def test_a_prompt_of_ids_is_expanded_as_text_is(text: ModelText, eyes: Eyes) -> None:
    prompt = text.chat_prompt(eyes.look([{"role": "user", "content": [picture(64, 64), film(6)]}]))
    seen = [span.media for span in prompt.media]
    raw = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>"
    ids, spans = expand(text.tokenizer.encode(raw), seen, text.tokenizer)
    assert ids == prompt.token_ids[: len(ids)]
    assert [(span.first, span.count) for span in spans] == [(span.first, span.count) for span in prompt.media]
    with pytest.raises(RequestError, match="placeholders"):
        expand(text.tokenizer.encode(raw), seen[:1], text.tokenizer)
    with pytest.raises(RequestError, match="in the same order"):
        expand(text.tokenizer.encode(raw), seen[::-1], text.tokenizer)


def test_a_model_without_eyes_names_the_part(text: ModelText) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [words("And "), picture(64, 64)]}]
    with pytest.raises(RequestError, match=r"messages\[1\]\.content\[1\].*reads text only") as caught:
        text.chat_prompt(messages)
    assert caught.value.param == "messages[1].content[1]"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "is not a picture"),
        ([words("a"), {"type": "image_url", "image_url": {}}], r"content\[1\] holds nothing to look at"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "neither a data URI"),
        ([{"type": "image_url", "image_url": {"url": "/etc/passwd"}}], "neither a data URI"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}], "not fetched without"),
        ([{"type": "image_url", "image_url": {"url": "data:text/html;base64,AAAA"}}], "declared as text/html"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,$$$$"}}], "not valid base64"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}], "is empty"),
        ([{"type": "image_url", "image_url": {"url": data_uri(encoded(noise(9, 9))), "detail": "ultra"}}], "detail"),
        ([{**picture(64, 64), "max_pixels": -1}], "max_pixels is -1"),
        ([{**film(4), "max_frames": 10**9}], "max_frames is 1000000000"),
        ([{**film(4), "fps": 1e300}], "fps is 1e"),
        ([{"type": "video", "video": []}], "without frames"),
        ([{"type": "video", "video": ["data:image/png;base64,AAAA"] * 5000}], "more than the 768 frames"),
        ([{"type": "video", "video": 5}], "is not an address"),
        ([{"type": "image", "image": ["x"]}], "is no picture"),
        ([{"type": "file", "file": {"file_id": "file-1"}}], "file_id"),
        ([{"type": "file", "file": {"file_data": data_uri(document(2), "application/pdf")}, "pages": 3}], "pages is 3"),
        ([{"type": "input_audio", "input_audio": {"data": "AAAA"}}], "not known here"),
        ([{"type": "image_embeds", "image_embeds": "AAAA"}], "not known here"),
    ],
)
def test_what_cannot_be_seen_is_named(content: list[Any], sentence: str, text: ModelText, eyes: Eyes) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        text.chat_prompt(eyes.look([{"role": "user", "content": content}]))
    assert (caught.value.param or "").startswith("messages[0].content[")


def test_text_that_spells_a_placeholder_stays_text(text: ModelText, eyes: Eyes) -> None:
    spelled = "<|vision_start|><|image_pad|><|vision_end|>"
    prompt = text.chat_prompt(eyes.look([{"role": "user", "content": [picture(64, 64), words(spelled)]}]))
    (span,) = prompt.media
    pad = text.tokenizer.encode("<|image_pad|>")[0]
    assert prompt.token_ids.count(pad) == span.media.tokens
    assert text.tokenizer.decode(prompt.token_ids, skip_special_tokens=False).endswith(
        spelled + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert not text.chat_prompt([{"role": "user", "content": "<|image_pad|>" * 1000}]).media


def test_pictures_that_fill_the_window_are_refused_before_the_next_is_read(text: ModelText, eyes: Eyes) -> None:
    read: list[str] = []

    class Counting(MediaReader):
        def open(self, raw: Mapping[str, Any], where: str, asked: Caps | None = None) -> list[Media]:
            read.append(where)
            return super().open(raw, where, asked)

    reader = Counting(SMALL, decoders=Decoders(1))
    with pytest.raises(ContextLengthExceeded, match="100"):
        Eyes(reader, 100).look([{"role": "user", "content": [picture(512, 512)] * 20}])
    reader.close()
    assert read == ["messages[0].content[0]"]


def test_fields_that_clients_invent_change_nothing(eyes: Eyes) -> None:
    plain = eyes.look([{"role": "user", "content": [picture(64, 64)]}])
    forged = {**picture(64, 64), "uuid": "../x", "image_grid_thw": [1, 999, 999], "grid_thw": [9, 9, 9]}
    other = eyes.look([{"role": "user", "content": [forged]}])
    assert plain[0]["content"][0]["media"].digest == other[0]["content"][0]["media"].digest


def test_a_request_may_ask_for_less_than_the_operator_allows_but_not_for_more(text: ModelText) -> None:
    decoders = Decoders(1)
    reader = MediaReader(SMALL, Caps(max_pixels=20_000), decoders=decoders)
    (seen,) = reader.open(picture(512, 512), "x")
    assert seen.size[0] * seen.size[1] <= 20_000
    (less,) = reader.open(picture(512, 512), "x", Caps(max_pixels=10_000))
    assert less.size[0] * less.size[1] <= 10_000
    with pytest.raises(RequestError, match="more than the 20000 allowed"):
        reader.open(picture(512, 512), "x", Caps(max_pixels=30_000))
    with pytest.raises(RequestError, match=r"x\.max_pixels is 30000"):
        reader.open({**picture(512, 512), "max_pixels": 30_000}, "x")
    with pytest.raises(RequestError, match="min_pixels is 15000, more than max_pixels"):
        reader.open(picture(512, 512), "x", Caps(min_pixels=15_000, max_pixels=10_000))
    decoders.close()
