"""An engine whose answers are written down: for what a real one does too fast, too rarely or never on purpose."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient, EngineStats, EngineStatus, Generation
from qwench.engine.request import MediaSpan, SamplingParams, TokenEvent, TokenLogprob, Vocabulary
from qwench.engine.thinking import ThinkingRules
from qwench.text.model import ModelText

END = "<|im_end|>"
Script = Callable[[str, SamplingParams], Iterable[TokenEvent | threading.Event]]


class ScriptedEngine(EngineClient):
    """The client's face over a script per request. ``alive`` holds the requests that are neither finished nor aborted.

    A script yields what the engine would deliver; at a ``threading.Event`` it waits until that is set, or the request
    aborted.
    """

    def __init__(self, folder: Path, script: Script, window: int | None = None) -> None:
        super().__init__(EngineConfig(model=str(folder), max_model_len=window))
        self.text = ModelText(self.files, self.model)
        self.script = script
        self._status = EngineStatus("ready", 1.0)
        self.go = threading.Event()  # for scripts that wait
        self.alive: set[int] = set()
        self.submitted: list[SamplingParams] = []
        self.rules: list[ThinkingRules | None] = []
        self.told_to_answer: set[int] = set()
        self.prompts: list[str] = []
        self.owners: list[str] = []
        self.shown: list[tuple[MediaSpan, ...]] = []
        self.guides: list[Any] = []
        self.computed = 0  # tokens of every prompt that are read

    def stats(self) -> EngineStats:
        """Nothing is counted, and there is room for much."""
        counted = dict.fromkeys((field.name for field in fields(EngineStats)), 0)
        return EngineStats(**{**counted, "slots_total": 64, "running": len(self.alive)})

    def become(self, status: EngineStatus) -> None:
        self._status = status

    def close(self) -> None:
        self.become(EngineStatus("stopped", 1.0))

    def submit_choices(
        self,
        prompt_token_ids: Sequence[int],
        choices: Sequence[SamplingParams],
        *,
        thinking: ThinkingRules | None = None,
        owner: str = "",
        background: bool = False,
        **more: Any,
    ) -> list[Generation]:
        self.background = background
        self.shown.append(more.get("media", ()))
        self.guides.append(more.get("guide"))
        self.rules += [thinking] * len(choices)
        self.owners.append(owner)
        return [self._answer(prompt_token_ids, sampling) for sampling in choices]

    def _answer(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        self._require_ready()
        prompt = self.text.tokenizer.decode(list(prompt_token_ids), skip_special_tokens=False)
        self.prompts.append(prompt)
        self.submitted.append(sampling)
        events = iter(self.script(prompt, sampling))
        request = self._request(len(prompt_token_ids), prompt_token_ids, sampling)
        request.computed = self.computed
        generation = Generation(request, self.alive.discard, self.told_to_answer.add)
        self.alive.add(generation.id)
        threading.Thread(target=self._deliver, args=(generation, events), daemon=True).start()
        return generation

    def _deliver(self, generation: Generation, events: Iterable[TokenEvent | threading.Event]) -> None:
        for event in events:
            while isinstance(event, threading.Event) and generation.id in self.alive and not event.wait(0.01):
                pass
            if generation.id not in self.alive:
                generation.deliver(TokenEvent(finish_reason="abort"))
                return
            if isinstance(event, TokenEvent):
                if event.finish_reason is not None:
                    self.alive.discard(generation.id)
                generation.deliver(event)

    def spell(self, answer: str, sampling: SamplingParams) -> list[TokenEvent]:
        """One event per token of ``answer``, then the end; log-probabilities fall by one from token to token."""
        ids = self.text.tokenizer.encode(answer)
        cut = ids[: sampling.max_tokens]
        events = []
        for position, token in enumerate(cut):
            last = position == len(cut) - 1 and len(cut) < len(ids)
            top = tuple((token + rank, -1.0 - position - rank) for rank in range(sampling.logprobs or 0))
            known = (TokenLogprob(token, -1.0 - position, 1, top),) if sampling.logprobs is not None else ()
            events.append(TokenEvent((token,), known, finish_reason="length" if last else None))
        if len(cut) == len(ids):
            events.append(TokenEvent(finish_reason="stop", stop_token_id=self.text.tokenizer.id_of(END)))
        return events


class Seeing(ScriptedEngine):
    """Says what it is told to, whatever it is shown."""

    sees = True

    def start(self, vocabulary: Vocabulary | None = None) -> None:
        self._settled.set()  # it is loaded from the beginning


def answering(answer: str, window: int | None = None) -> Callable[[Path], ScriptedEngine]:
    """An engine that always says ``answer``."""

    def make(folder: Path) -> ScriptedEngine:
        engine = ScriptedEngine(folder, lambda _prompt, sampling: engine.spell(answer, sampling), window)
        return engine

    return make


def install(monkeypatch: pytest.MonkeyPatch, make: Callable[[EngineConfig], EngineClient]) -> None:
    """Have every command run over what ``make`` gives, in place of the real engine."""
    importlib.import_module("qwench.llm")  # else it might be loaded now, and keep the name for what is not its own
    monkeypatch.setattr("qwench.engine.client.EngineClient", make)
