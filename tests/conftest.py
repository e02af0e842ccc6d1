"""What every test stands on: no network, one thread, no GPU unless asked for. Knows no part of the package."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

# Read when the libraries are first imported, hence here and not in a fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread costs more than it brings
os.environ.pop("QWENCH_LOG", None)
# A shell's background job starts with SIGINT ignored, and so would the tests of Ctrl-C and the commands they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none; torch is asked only if such a test was collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def _restored_log() -> Iterator[None]:
    """Commands take the package's log over, those that a module's fixtures run before its first test too; every test
    begins and ends with the log that a program has which only imports the package."""
    logger = logging.getLogger("qwench")

    def restore() -> None:
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)

    restore()
    yield
    restore()
