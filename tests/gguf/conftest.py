"""nano as GGUF files, exported once: what the tests of text, commands and damage share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import qwench
from tests.gguf.export import Choose, all_f32, export, matrices_as, tell_tokenizer

NANO = Path(qwench.__file__).parent / "assets" / "nano"


def nano_model() -> Any:
    import transformers

    return transformers.AutoModelForImageTextToText.from_pretrained(NANO, dtype=torch.float32)


def export_nano(path: Path, choose: Choose) -> Path:
    raw = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    template = (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    advice = json.loads((NANO / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = tell_tokenizer(raw, pre="qwen35", rows=4096, template=template)

    def tell(writer: gguf.GGUFWriter) -> None:
        tokenizer(writer)
        writer.add_float32("general.sampling.temp", advice["temperature"])
        writer.add_float32("general.sampling.top_p", advice["top_p"])
        writer.add_int32("general.sampling.top_k", advice["top_k"])

    return export(nano_model(), path, choose=choose, tell=tell)


@pytest.fixture(scope="session")
def nano_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_nano(tmp_path_factory.mktemp("gguf") / "nano-F32.gguf", all_f32)


@pytest.fixture(scope="session")
def nano_q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = gguf.GGMLQuantizationType.Q8_0
    return export_nano(tmp_path_factory.mktemp("gguf") / "nano-Q8_0.gguf", matrices_as(kind))
