"""A few hundred random changes to valid requests; tests/reliability has many more."""

from __future__ import annotations

import logging

import pytest

from qwench.engine.client import EngineClient
from qwench.server.app import build_app
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.hostile.mutations import bombard, mutated

MUTATIONS = 300


@pytest.mark.timeout(300)
def test_changed_requests_are_answered_or_refused(
    nano: EngineClient, nano_text: ModelText, caplog: pytest.LogCaptureFixture
) -> None:
    app = build_app(nano, nano_text, ServerSettings(names=("nano",)))
    with caplog.at_level(logging.ERROR):
        faults, _ = bombard(app, map(mutated, range(MUTATIONS)))
    assert not faults, "\n".join(faults)
    assert not caplog.records
    assert nano.stats().running == nano.stats().waiting == 0
