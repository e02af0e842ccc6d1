"""Messages go to standard error, one line each, with the level where it matters."""

from __future__ import annotations

import io
import logging

import pytest

from qwench import log
from qwench.errors import UsageError


def test_lines_name_the_level_unless_they_only_inform() -> None:
    stream = io.StringIO()
    log.configure("debug", stream)
    logger = logging.getLogger("qwench.engine.core")
    logger.info("ready")
    logger.warning("slow")
    logger.debug("step %d", 3)
    assert stream.getvalue() == "qwench: ready\nqwench: warning: slow\nqwench: qwench.engine.core: step 3\n"


def test_the_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCH_LOG", "Error")
    stream = io.StringIO()
    log.configure(stream=stream)
    logging.getLogger("qwench").warning("not this")
    logging.getLogger("qwench").error("but this")
    assert stream.getvalue() == "qwench: error: but this\n"


def test_configuring_twice_does_not_double_the_lines() -> None:
    stream = io.StringIO()
    log.configure("info", stream)
    log.configure("info", stream)
    logging.getLogger("qwench").info("once")
    assert stream.getvalue() == "qwench: once\n"


def test_an_unknown_level_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCH_LOG", "loud")
    with pytest.raises(UsageError, match=r"QWENCH_LOG is 'loud'; give one of debug, info, warning, error\."):
        log.configure()
