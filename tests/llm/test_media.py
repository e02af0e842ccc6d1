"""The offline face with something to look at: in conversations, and beside raw prompts as vLLM has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwench import LLM
from qwench.errors import RequestError
from tests.media.files import NANO, encoded, noise
from tests.server.scripted import Seeing
from tests.server.test_media import seeing as see


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> tuple[LLM, Seeing]:
    engine = see(NANO)
    monkeypatch.setattr("qwench.llm.EngineClient", lambda config: engine)
    return LLM("nano", mm_processor_kwargs={"max_pixels": 40_000}), engine


def test_a_conversation_may_show_pictures(seeing: tuple[LLM, Seeing], tmp_path: Path) -> None:
    llm, engine = seeing
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(300, 200)))
    parts: list[Any] = [
        {"type": "image", "image": noise(300, 200)},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
        {"type": "text", "text": "Same?"},
    ]
    (output,) = llm.chat([{"role": "user", "content": parts}], use_tqdm=False)
    (spans,) = engine.shown
    assert output.outputs[0].text == "I see."
    assert len({span.media.digest for span in spans}) == 1
    assert spans[0].media.size[0] * spans[0].media.size[1] <= 40_000


def test_raw_prompts_bring_their_pictures_along(seeing: tuple[LLM, Seeing]) -> None:
    llm, engine = seeing
    frames = [noise(64, 64, seed) for seed in range(4)]
    text = "<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>What?"
    data: dict[str, Any] = {"image": noise(64, 64), "video": (np.stack([np.asarray(f) for f in frames]), {"fps": 4})}
    prompts: list[Any] = [
        {"prompt": text, "multi_modal_data": data},
        {"prompt_token_ids": llm.text.tokenizer.encode(text), "multi_modal_data": {**data, "video": [frames]}},
        {"prompt": text, "multi_modal_data": {"image": [noise(64, 64)], "video": frames}},
    ]
    outputs = llm.generate(prompts, use_tqdm=False)
    kinds = [[span.media.kind for span in spans] for spans in engine.shown]
    assert kinds == [["video", "image"]] * 3
    assert engine.shown[0][0].media.seconds == (0.125, 0.625)
    assert outputs[0].prompt_token_ids != outputs[1].prompt_token_ids  # the rate is another
    assert outputs[1].prompt_token_ids == outputs[2].prompt_token_ids


@pytest.mark.parametrize(
    ("text", "data", "sentence"),
    [
        ("x", {"image": noise(8, 8)}, "has 1 of image, but the prompt has fewer placeholders"),
        ("<|image_pad|>", {"video": [[noise(8, 8)]]}, r"multi_modal_data\.image\[0\]"),
        ("<|image_pad|>", {"image": "none.png"}, r"multi_modal_data\.image\[0\] cannot be opened"),
        ("<|image_pad|>", {"image": [3]}, r"multi_modal_data\.image\[0\] is not an address"),
        ("<|image_pad|>", {"audio": [3]}, "holds 'audio'; known are image and video"),
        ("<|image_pad|>", [3], "multi_modal_data is no mapping"),
    ],
)
def test_what_comes_along_wrongly_is_named(seeing: tuple[LLM, Seeing], text: str, data: Any, sentence: str) -> None:
    llm, engine = seeing
    with pytest.raises(RequestError, match=sentence):
        llm.generate({"prompt": text, "multi_modal_data": data}, use_tqdm=False)
    assert not engine.submitted
