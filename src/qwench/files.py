"""What a model's name leads to: a folder in Hugging Face layout, or a GGUF file whose header is read. Knows no tensors.

Configuration, text and weights each ask the same object, so that a GGUF header is read once.
"""

from __future__ import annotations

from pathlib import Path

from qwench.config import ModelConfig
from qwench.gguf.config import model_config
from qwench.gguf.file import GgufFile, is_gguf, open_gguf

ModelFiles = Path | GgufFile


def open_files(path: Path) -> ModelFiles:
    """The folder ``path``, or the GGUF file there. Raises CheckpointError where its header is damaged."""
    return open_gguf(path) if is_gguf(path) and not path.is_dir() else path


def read_config(files: ModelFiles) -> ModelConfig:
    """The model's facts. Raises ConfigError naming field and file."""
    return model_config(files) if isinstance(files, GgufFile) else ModelConfig.from_folder(files)
