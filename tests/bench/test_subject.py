"""What a sample of a row times."""

from __future__ import annotations

from qwench.bench.rows import Row
from qwench.bench.subject import Choice, build, measure


def test_a_prompt_of_many_steps_is_timed_to_its_end() -> None:
    row = Row(prefill=1100)  # more than a step reads
    subject = build(Choice("nano"), [row])
    before = subject.engine.counters.prompt_tokens
    assert measure(subject, row, seed=1) > 0
    assert subject.engine.counters.prompt_tokens - before == row.prefill
    assert subject.engine.scheduler.is_idle()
