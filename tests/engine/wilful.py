"""A model with a will of its own, over a real tokenizer: random logits, with a bias for what can go wrong.

What it wants is drawn from the first token of a prompt (its taste): to end, to never close the block, to close and end
at once, to draw line breaks, to call tools, to spell tags out. Logits depend on taste, position and last token alone.
"""

from __future__ import annotations

import random
from functools import cache

import torch

from qwench.cache.pool import Pool
from qwench.cache.storage import Storage
from qwench.engine.core import Engine
from qwench.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from qwench.engine.runner import Runner
from qwench.engine.scheduler import Scheduler
from qwench.engine.thinking import ThinkingRules, Thought
from qwench.model.batch import Batch, CacheTensors
from qwench.ops.choosing import TorchChooser
from qwench.text.stream import AnswerStream, Piece
from qwench.text.tokenizer import Tokenizer
from tests.engine.ledger import LEDGER_SPEC

STRENGTHS = (-50.0, -5.0, 0.0, 0.0, 4.0, 8.0, 50.0)


class WilfulModel:
    """``tokenizer`` says which ids can go wrong."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.size = tokenizer.size
        tags = [tokenizer.id_of(tag) for tag in ("<think>", "</think>", "<tool_call>")]
        spelled = tokenizer.encode_plain("</think>")
        groups = [end_ids, *([tag] for tag in tags if tag is not None), tokenizer.blank_ids, spelled]
        self.groups = [sorted(group) for group in groups]
        self.wanted = cache(self._wanted)
        self.noise = cache(self._noise)

    def forward(self, batch: Batch, cache: CacheTensors, seen: object = None) -> torch.Tensor:
        tokens, positions = batch.token_ids.tolist(), batch.positions[0].tolist()
        rows: list[int] = [0] * len(tokens)
        for row, span in batch.rows.spans():
            slot = int(batch.rows.state_slots[row])
            if positions[span.start] == 0:
                cache.recurrent[0][slot] = tokens[span.start]
            rows[span.start : span.stop] = [int(cache.recurrent[0][slot].item())] * (span.stop - span.start)
        places = batch.logit_tokens.tolist()
        return torch.stack([self.logits(rows[i], positions[i], tokens[i]) for i in places])

    def logits(self, taste: int, position: int, last: int) -> torch.Tensor:
        return self.wanted(taste) + self.noise((taste * 31 + position * 7 + last * 13) % 509)

    def _wanted(self, taste: int) -> torch.Tensor:
        rng, wanted = random.Random(taste), torch.zeros(self.size)
        for group in self.groups:
            wanted[group] += rng.choice(STRENGTHS)
        return wanted

    def _noise(self, seed: int) -> torch.Tensor:
        return 2 * torch.randn(self.size, generator=torch.Generator().manual_seed(seed))


def wilful_engine(tokenizer: Tokenizer, end_ids: frozenset[int], *, num_pages: int, num_slots: int = 8) -> Engine:
    storage = Storage(LEDGER_SPEC, num_pages=num_pages, page_size=8, num_slots=num_slots)
    scheduler = Scheduler(Pool(num_pages), Pool(num_slots), page_size=8, max_step_tokens=24)
    model = WilfulModel(tokenizer, end_ids)
    return Engine(scheduler, Runner(model, storage, page_size=8, chooser=TorchChooser()))


class Reader:
    """One answer of such a model, read as text."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, number: int, taste: int, room: int, rules: ThinkingRules
    ) -> None:
        sampling = SamplingParams(temperature=random.Random(number).choice((0.0, 1.0)), seed=number)
        self.rules = rules
        self.token_ids: list[int] = []
        self.reason: FinishReason | None = None
        self.last = TokenEvent()
        self._pieces: list[Piece] = []
        self._stream = AnswerStream(tokenizer, thinking_open=rules.open)
        request = Request(
            id=number,
            prompt_len=2,
            token_ids=[taste, 0],
            sampling=sampling,
            stop_token_ids=rules.end_ids,
            seed=number,
            max_total=2 + room,
            thought=Thought(rules, room),
        )
        engine.add([request], [self._take])

    def _take(self, event: TokenEvent) -> None:
        self.last, self.reason = event, event.finish_reason
        self.token_ids += event.token_ids
        self._pieces += self._stream.push(event.token_ids)
        if event.finish_reason is not None:
            self._pieces += self._stream.finish()

    @property
    def reasoning_tokens(self) -> int:
        return self._stream.reasoning_tokens

    def text(self, kind: str) -> str:
        return "".join(piece.text for piece in self._pieces if piece.kind == kind)
