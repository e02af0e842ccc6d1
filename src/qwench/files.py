"""What a model's name leads to: a folder in Hugging Face layout, or a GGUF file whose header is read. Knows no tensors.

Configuration, text and weights each ask the same object, so that a GGUF header is read once.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from qwench.config import ModelConfig
from qwench.gguf.config import model_config
from qwench.gguf.file import GgufFile, is_gguf, open_gguf

PRECISIONS = ("bf16", "f16", "f32", "q8_0")  # of projectors, the best for its size first
_WORD = re.compile(r"[a-z0-9_.]+")

ModelFiles = Path | GgufFile


def open_files(path: Path) -> ModelFiles:
    """The folder ``path``, or the GGUF file there and the projector beside it.

    Raises CheckpointError where a header is damaged.
    """
    if not is_gguf(path) or path.is_dir():
        return path
    file, projector = open_gguf(path), _projector_for(path)
    return file if projector is None else replace(file, projector=open_gguf(projector))


def _projector_for(path: Path) -> Path | None:
    """The mmproj file in the folder of the model ``path``: of several the one whose name has most in common with the
    model's, of these the most exact."""
    found = [each for each in path.parent.glob("*.gguf") if "mmproj" in each.name.lower()]
    words = set(_WORD.findall(path.stem.lower()))

    def fits(each: Path) -> tuple[int, int, str]:
        name = set(_WORD.findall(each.stem.lower()))
        exact = next((index for index, kind in enumerate(PRECISIONS) if kind in name), len(PRECISIONS))
        return len((name & words) - set(PRECISIONS)), -exact, each.name

    return max(found, key=fits, default=None) if "mmproj" not in path.name.lower() else None


def read_config(files: ModelFiles) -> ModelConfig:
    """The model's facts. Raises ConfigError naming field and file."""
    return model_config(files) if isinstance(files, GgufFile) else ModelConfig.from_folder(files)
