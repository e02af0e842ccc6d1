"""Which model a stored state belongs to: a fingerprint of its files and of how it is computed. Knows no tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qwench import __version__
from qwench.files import ModelFiles

SAMPLES = 16  # of a weight file; two checkpoints of one shape differ in all of them
SAMPLE_BYTES = 64 * 1024
SMALL = 64 * 2**20  # files up to this size are read whole unless they are weights
TEXT_SUFFIXES = (".json", ".jinja", ".txt")


def identity(files: ModelFiles, settings: tuple[object, ...]) -> bytes:
    """Of the configuration, the tokenizer, the template and samples of the weights, with ``settings`` of the engine.

    Raises OSError.
    """
    digest = hashlib.blake2b(repr((__version__, settings)).encode(), digest_size=32)
    paths = sorted(path for path in files.iterdir() if path.is_file()) if isinstance(files, Path) else files.parts
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name if isinstance(files, Path) else ''}:{size}\n".encode())
        with path.open("rb") as source:
            if path.suffix in TEXT_SUFFIXES and size <= SMALL:
                digest.update(source.read())
                continue
            for sample in range(SAMPLES):
                source.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(source.read(SAMPLE_BYTES))
    return digest.digest()
