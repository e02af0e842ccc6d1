"""A Step of plain integers becomes a Batch of arrays. Knows shapes, not policy."""

from __future__ import annotations

import numpy as np

from qwench.engine.sampling import logits_that_count
from qwench.engine.scheduler import Step
from qwench.model.batch import Batch, Picture
from qwench.model.positions import Axes
from qwench.ops.rows import Rows


def build_batch(step: Step, page_size: int, padding: int = 0) -> Batch:
    """The model's input for ``step``; the last ``padding`` ids of the vocabulary are no tokens.

    A row with prompt log-probabilities asks for logits of all its tokens.
    """
    token_ids: list[int] = []
    positions: Axes = ([], [], [])
    pictures: list[Picture] = []
    kv_slots: list[int] = []
    logit_tokens: list[int] = []
    saves: list[tuple[int, int]] = []
    for row in step.rows:
        span = range(row.start, row.start + row.count)
        first = len(token_ids)
        token_ids += row.request.token_ids[span.start : span.stop]
        for axis, found in zip(positions, row.request.sight.layout.positions(span), strict=True):
            axis.extend(found)
        for shown, places in row.request.sight.within(span):
            begin = shown.offset + places.start - shown.first
            target = first + places.start - span.start
            pictures.append(Picture(shown.digest, begin, target, len(places)))
        kv_slots += (row.request.pages[i // page_size] * page_size + i % page_size for i in span)
        saves += ((first + each.position - row.start - 1, each.slot) for each in row.saves if each.slot is not None)
        if row.prompt_targets:
            logit_tokens += range(first, first + row.count)
        elif row.samples:
            logit_tokens.append(first + row.count - 1)
    few_logits = None
    if len(logit_tokens) == 1:
        (asking,) = (row for row in step.rows if row.prompt_targets or row.samples)
        if not asking.prompt_targets:
            few_logits = np.array(logits_that_count(asking.request, padding), np.float32)
    width = max(len(row.request.pages) for row in step.rows)
    table = [row.request.pages + [0] * (width - len(row.request.pages)) for row in step.rows]
    rows = Rows(
        lengths=tuple(row.count for row in step.rows),
        contexts=tuple(row.start + row.count for row in step.rows),
        page_table=np.array(table, np.int64).reshape(len(table), width),
        page_size=page_size,
        kv_slots=np.array(kv_slots, np.int64),
        state_slots=np.array([row.request.state_slot for row in step.rows], np.int64),
        saves=tuple(saves),
    )
    return Batch(
        token_ids=np.array(token_ids, np.int64),
        positions=np.array(positions, np.int64),
        rows=rows,
        logit_tokens=np.array(logit_tokens, np.int64),
        few_logits=few_logits,
        pictures=tuple(pictures),
    )
